package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	diag "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Finding is what Check found out about one thing that an attachment needs.
type Finding struct {
	Feature string
	OK      bool
	Detail  string // what the kernel answered; empty when OK
	Fix     string // what to do about it; empty when OK
}

// feature is one that an attachment needs, and how to try it.
type feature struct {
	name, kernel, config string
	try                  func(ns *NetNS) error
}

// features are tried in order. The versions are those in which the upstream
// kernel got them.
func features() []feature {
	inet := &nftables.Table{Name: "weir_check", Family: nftables.TableFamilyINet}
	bridge := &nftables.Table{Name: "weir_check", Family: nftables.TableFamilyBridge}
	netdev := &nftables.Table{Name: "weir_check", Family: nftables.TableFamilyNetdev}
	with := func(t *nftables.Table, ch chain, rules ...[]expr.Any) func(*NetNS) error {
		for _, r := range rules {
			ch.rules = append(ch.rules, rule{exprs: r})
		}
		ch.name, ch.policy = "try", nftables.ChainPolicyAccept
		return func(ns *NetNS) error { return tryChain(ns, t, ch) }
	}
	nat := chain{kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: natPriority}
	filter := chain{kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput}
	return []feature{
		{"nftables inet tables", "3.14", "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET", with(inet, filter)},
		{"nftables inet nat redirect", "5.2", "CONFIG_NFT_NAT, CONFIG_NFT_REDIR", with(inet, nat, match(l4proto(unix.IPPROTO_TCP), redirectTo(1)))},
		{"nftables fib", "4.10", "CONFIG_NFT_FIB_INET", with(inet, filter, match(toLocal(), verdict(expr.VerdictAccept)))},
		{"nftables connection tracking matches", "3.14", "CONFIG_NFT_CT, CONFIG_NF_CONNTRACK", with(inet, filter, match(replying(), verdict(expr.VerdictAccept)))},
		{"nftables reject", "3.14", "CONFIG_NFT_REJECT_INET", with(inet, filter, rejectUnreachable(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))},
		{"nftables inet route", "5.2", "CONFIG_NF_TABLES_INET", with(inet, captureUDPOutput())},
		{"nftables notrack", "4.9", "CONFIG_NFT_CT", with(inet, answerUDP())},
		{"nftables tproxy", "4.19", "CONFIG_NFT_TPROXY", with(inet, captureUDPPrerouting(ports{udp: 1}))},
		{"routing by mark", "2.6.26", "CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES", trySteering},
		{"nftables netdev ingress", "4.2", "CONFIG_NETFILTER_INGRESS, CONFIG_NF_TABLES_NETDEV", with(netdev, chain{kind: nftables.ChainTypeFilter, hook: nftables.ChainHookIngress, device: "lo"}, setMark(lockMark, true))},
		{"nftables bridge tables", "3.18", "CONFIG_NF_TABLES_BRIDGE", with(bridge, lockBridge())},
		{"connection tracking over netlink", "2.6.16", "CONFIG_NF_CT_NETLINK", tryConntrack},
		{"destroying sockets", "4.9", "CONFIG_INET_DIAG_DESTROY, CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG", tryDestroy},
		{"capture of a connection", "5.2", "the options above", tryCapture},
		{"capture of a datagram", "5.2", "the options above", tryCaptureUDP},
	}
}

// Check tries everything that an attachment needs from the kernel in a network
// namespace made for the purpose, and changes nothing else. The first finding
// is whether such a namespace can be made; when not, it is the only one.
func Check() []Finding {
	const name = "network namespaces"
	ns, err := throwAway()
	if err != nil {
		return []Finding{{
			Feature: name, Detail: err.Error(),
			Fix: "run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN, on a kernel with CONFIG_NET_NS",
		}}
	}
	defer ns.Close()
	findings := []Finding{{Feature: name, OK: true}}
	for _, f := range features() {
		finding := Finding{Feature: f.name, OK: true}
		if err := f.try(ns); err != nil {
			finding.OK, finding.Detail = false, err.Error()
			finding.Fix = fmt.Sprintf("use Linux %s or later built with %s; load the module if it is one", f.kernel, f.config)
		}
		findings = append(findings, finding)
	}
	return findings
}

// explain turns an error that may come from a missing feature into one that
// names the feature.
func explain(err error) error {
	for _, errno := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EINVAL} {
		if !errors.Is(err, errno) {
			continue
		}
		ns, nsErr := throwAway()
		if nsErr != nil {
			return err
		}
		defer ns.Close()
		for _, f := range features() {
			if tried := f.try(ns); tried != nil {
				return errors.Join(&FeatureError{Feature: f.name, Kernel: f.kernel, Config: f.config, Err: tried}, err)
			}
		}
	}
	return err
}

// throwAway makes a network namespace that lasts as long as the handle. The
// thread that made it stays locked and ends with its goroutine.
func throwAway() (*NetNS, error) {
	type answer struct {
		ns  *NetNS
		err error
	}
	made := make(chan answer, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- answer{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		ns, err := Open("/proc/thread-self/ns/net")
		made <- answer{ns, err}
	}()
	a := <-made
	if a.err != nil {
		return nil, a.err
	}
	return a.ns, upLoopback(a.ns)
}

func upLoopback(ns *NetNS) error {
	l, err := openLinks(ns, ns)
	if err != nil {
		return err
	}
	defer l.close()
	_, err = l.giveRoutes()
	return err
}

func tryChain(ns *NetNS, t *nftables.Table, ch chain) error {
	c, _, err := openNFT(ns)
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	c.AddTable(t)
	ch.queue(c, t)
	if err := c.Flush(); err != nil {
		return err
	}
	return removeTable(c, t)
}

func tryConntrack(ns *NetNS) error {
	h, err := netlink.NewHandleAt(ns.handle(), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	return err
}

// tryDestroy connects a UDP socket and destroys it.
func tryDestroy(ns *NetNS) error {
	return ns.do(func() error {
		c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
		if err != nil {
			return err
		}
		defer c.Close()
		conn, err := diag.Dial(unix.NETLINK_INET_DIAG, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		sockets, err := connected(conn)
		if err != nil {
			return err
		}
		if len(sockets) != 1 {
			return fmt.Errorf("sock_diag lists %d sockets instead of 1", len(sockets))
		}
		return destroy(conn, sockets[0])
	})
}

func trySteering(ns *NetNS) error {
	l, err := openLinks(ns, ns)
	if err != nil {
		return err
	}
	defer l.close()
	return errors.Join(l.steer(), l.unsteer())
}

const captureWait = 2 * time.Second

// tryDst is an address of TEST-NET-2 (RFC 5737).
var tryDst = netip.MustParseAddrPort("198.51.100.1:80")

// captured runs f while everything is captured on lo.
func captured(ns *NetNS, f func(l *listeners) error) error {
	l, err := listen(ns)
	if err != nil {
		return err
	}
	defer l.close()
	c, _, err := openNFT(ns)
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	links, err := openLinks(ns, ns)
	if err != nil {
		return err
	}
	defer links.close()
	r := newRuleset(l.ports())
	if err := r.install(c, []int{loopbackIndex}); err != nil {
		return err
	}
	err = links.steer()
	if err == nil {
		err = f(l)
	}
	return errors.Join(err, links.unsteer(), removeTable(c, r.table))
}

func tryCapture(ns *NetNS) error {
	return captured(ns, func(l *listeners) error { return captureTCP(ns, l) })
}

func captureTCP(ns *NetNS, l *listeners) error {
	client := make(chan error, 1)
	go func() {
		client <- ns.inside(func() error {
			conn, err := net.DialTimeout("tcp", tryDst.String(), captureWait)
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}()
	if err := l.tcp.SetDeadline(time.Now().Add(captureWait)); err != nil {
		return err
	}
	accepted, err := l.tcp.AcceptTCP()
	if err != nil {
		return errors.Join(err, <-client)
	}
	got, err := OriginalDst(accepted)
	if err == nil && got != tryDst {
		err = fmt.Errorf("a connection to %s arrived as one to %s", tryDst, got)
	}
	return errors.Join(err, accepted.Close(), <-client)
}

func tryCaptureUDP(ns *NetNS) error {
	return captured(ns, func(l *listeners) error { return captureUDP(ns, l) })
}

// captureUDP answers one datagram and refuses another.
func captureUDP(ns *NetNS, l *listeners) error {
	client := make(chan error, 1)
	go func() {
		client <- ns.inside(func() error {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(tryDst))
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(captureWait)); err != nil {
				return err
			}
			buf := make([]byte, 16)
			for _, want := range []error{nil, unix.ECONNREFUSED} {
				if _, err := conn.Write([]byte("try")); err != nil {
					return err
				}
				if _, err := conn.Read(buf); !errors.Is(err, want) {
					return fmt.Errorf("a datagram was answered with %v instead of %v", err, want)
				}
			}
			return nil
		})
	}()
	serve := func() error {
		if err := l.udp.SetReadDeadline(time.Now().Add(captureWait)); err != nil {
			return err
		}
		buf := make([]byte, 16)
		for _, answer := range []func(from, dst netip.AddrPort) error{
			func(from, dst netip.AddrPort) error { return l.udp.Reply([]byte("yes"), from, dst) },
			l.udp.Refuse,
		} {
			_, from, dst, err := l.udp.ReadFrom(buf)
			if err == nil && dst != tryDst {
				err = fmt.Errorf("a datagram to %s arrived as one to %s", tryDst, dst)
			}
			if err != nil {
				return err
			}
			if err := answer(from, dst); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(serve(), <-client)
}
