package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"

	diag "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// socket is one that sock_diag listed, with all that is needed to destroy it.
type socket struct {
	family, protocol byte
	state            byte
	id               [sockIDSize]byte // struct inet_diag_sockid as it came
	local, remote    netip.AddrPort
}

const (
	// Sizes of linux/inet_diag.h: struct inet_diag_sockid, and struct
	// inet_diag_msg up to and without its attributes.
	sockIDSize  = 48
	diagMsgSize = 72
	// Message types of linux/sock_diag.h.
	sockDiagByFamily = 20
	sockDestroy      = 21
	// established is TCP_ESTABLISHED, and the state of a connected UDP socket.
	established = 1
	// connectedStates leaves out listening, closed and time-wait sockets
	// (net/tcp_states.h); a connected UDP socket is in state 1.
	connectedStates = 0xfff &^ (1<<10 | 1<<7 | 1<<6)
)

// cut destroys the sockets that were connected to the outside before the
// attach, inbound ones too, and forgets what connection tracking knows of
// them: in a namespace that had a translation before ours, for example
// Docker's for its resolver, an old connection would flow around the redirect
// for life. Connections captured since the ruleset is there are spared. Those
// established before it that have gone meanwhile are reported as well: it has
// reset the ones that were sending. UDP sockets that were not there before, or
// lived on from a dead daemon's capture, are spared too: each datagram is
// captured by itself.
func (a *Attachment) cut(before []socket) ([]Connection, error) {
	locals, err := a.links.locals()
	if err != nil {
		return nil, err
	}
	conn, err := a.openDiag()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	sockets, err := connected(conn)
	if err != nil {
		return nil, err
	}
	captured, err := a.forget(locals)
	if err != nil {
		return nil, err
	}
	listed, early := map[[sockIDSize]byte]bool{}, map[[sockIDSize]byte]bool{}
	for _, s := range sockets {
		listed[s.id] = true
	}
	for _, s := range before {
		early[s.id] = s.state == established
		if early[s.id] && !listed[s.id] {
			sockets = append(sockets, s)
		}
	}
	var closed []Connection
	for _, s := range sockets {
		c := Connection{Protocol: protocolName(s.protocol), Local: s.local, Remote: s.remote}
		if locals[s.remote.Addr()] || s.remote.Addr().IsLoopback() || s.remote.Addr().IsUnspecified() || captured[c] ||
			s.protocol == unix.IPPROTO_UDP && !early[s.id] {
			continue
		}
		err := destroy(conn, s)
		if errors.Is(err, unix.ENOENT) && !early[s.id] {
			continue // it has gone by itself
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("cut the connection from %s to %s: %w", s.local, s.remote, err)
		}
		closed = append(closed, c)
	}
	return closed, nil
}

func (a *Attachment) openDiag() (*diag.Conn, error) {
	conn, err := diag.Dial(unix.NETLINK_INET_DIAG, &diag.Config{NetNS: a.ns.fd()})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag in namespace %s: %w", a.ns.ID(), err)
	}
	return conn, nil
}

// connectedBefore lists what is connected before the ruleset is there.
func (a *Attachment) connectedBefore() ([]socket, error) {
	conn, err := a.openDiag()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return connected(conn)
}

// connected lists the connected TCP and UDP sockets of both families.
func connected(conn *diag.Conn) ([]socket, error) {
	var sockets []socket
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			s := socket{family: family, protocol: protocol}
			answer, err := conn.Execute(diag.Message{
				Header: diag.Header{Type: sockDiagByFamily, Flags: diag.Request | diag.Dump},
				Data:   s.request(),
			})
			if err != nil {
				return nil, fmt.Errorf("list the container's sockets: %w", err)
			}
			for _, m := range answer {
				s, err := parseSocket(protocol, m.Data)
				if err != nil {
					return nil, err
				}
				if s.remote.Port() != 0 {
					sockets = append(sockets, s)
				}
			}
		}
	}
	return sockets, nil
}

// request is struct inet_diag_req_v2.
func (s socket) request() []byte {
	b := make([]byte, 8, 8+sockIDSize)
	b[0], b[1] = s.family, s.protocol
	binary.NativeEndian.PutUint32(b[4:], connectedStates)
	return append(b, s.id[:]...)
}

func destroy(conn *diag.Conn, s socket) error {
	_, err := conn.Execute(diag.Message{
		Header: diag.Header{Type: sockDestroy, Flags: diag.Request | diag.Acknowledge},
		Data:   s.request(),
	})
	return err
}

// parseSocket reads struct inet_diag_msg.
func parseSocket(protocol byte, b []byte) (socket, error) {
	if len(b) < diagMsgSize {
		return socket{}, fmt.Errorf("sock_diag answered with %d bytes, want %d", len(b), diagMsgSize)
	}
	s := socket{family: b[0], protocol: protocol, state: b[1], id: [sockIDSize]byte(b[4 : 4+sockIDSize])}
	addr := func(b []byte) netip.Addr {
		if s.family == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[:4]))
		}
		return netip.AddrFrom16([16]byte(b[:16])).Unmap()
	}
	s.local = netip.AddrPortFrom(addr(s.id[4:]), binary.BigEndian.Uint16(s.id[0:]))
	s.remote = netip.AddrPortFrom(addr(s.id[20:]), binary.BigEndian.Uint16(s.id[2:]))
	return s, nil
}

func protocolName(number byte) string {
	if number == unix.IPPROTO_TCP {
		return "tcp"
	}
	return "udp"
}

// forget deletes the namespace's connection tracking entries, but those that
// our own ruleset has redirected and those between local addresses. Docker's
// resolver does not count as local. It returns the connections that were
// spared because they are captured. The kernel walks its whole table, about
// 10 ms a family, so both are walked at once, and none if there is no entry.
func (a *Attachment) forget(locals map[netip.Addr]bool) (map[Connection]bool, error) {
	if a.untracked() {
		return nil, nil
	}
	var g errgroup.Group
	families := []netlink.InetFamily{unix.AF_INET, unix.AF_INET6}
	flows := make([]staleFlows, len(families))
	for i, family := range families {
		flows[i] = staleFlows{ports: a.listeners.ports(), locals: locals, captured: map[Connection]bool{}}
		g.Go(func() error {
			h, err := netlink.NewHandleAt(a.ns.handle(), unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer h.Close()
			_, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, family, &flows[i])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("delete the connection tracking entries of namespace %s: %w", a.ns.ID(), err)
	}
	maps.Copy(flows[0].captured, flows[1].captured)
	return flows[0].captured, nil
}

// untracked says that the kernel knows of no connection in the namespace. If
// it cannot be asked that way, the answer is no.
func (a *Attachment) untracked() bool {
	var count []byte
	err := a.ns.do(func() (err error) {
		count, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		return err
	})
	return err == nil && strings.TrimSpace(string(count)) == "0"
}

// staleFlows selects the entries that forget deletes.
type staleFlows struct {
	ports    ports
	locals   map[netip.Addr]bool
	captured map[Connection]bool
}

// MatchConntrackFlow is called by netlink for every entry.
func (f *staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	src, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	answers, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	src, dst, answers = src.Unmap(), dst.Unmap(), answers.Unmap()
	p := flow.Reverse.SrcPort
	ours := p == f.ports.tcp || p == f.ports.dnsTCP || p == f.ports.dnsUDP
	if ours && (f.locals[answers] || answers.IsLoopback()) {
		f.captured[Connection{
			Protocol: protocolName(flow.Forward.Protocol),
			Local:    netip.AddrPortFrom(src, flow.Forward.SrcPort),
			Remote:   netip.AddrPortFrom(dst, flow.Forward.DstPort),
		}] = true
		return false
	}
	return dst == dockerDNS || !(f.locals[dst] || dst.IsLoopback()) || !(f.locals[src] || src.IsLoopback())
}
