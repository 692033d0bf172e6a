package selftest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attack is one way out that has to be closed. try is called inside the
// attacked namespace, on a thread of its own; an error says why it could not
// be tried at all. What it reached over a socket of its own it reports as got.
type attack struct {
	name string
	try  func() (got bool, err error)
	// event is what the daemon has to record of it. The zero value says that
	// there is none: the rules in the namespace or the lock on the host drop such
	// packets, and nobody is asked.
	event expected
}

// target is what an attack aims at.
type target struct {
	lab     *lab
	canary  netip.Addr // outside
	canary6 netip.Addr
	host    netip.Addr // the bridge's address: a service of the host
	open    uint16     // where the canary's server and the host's listen
}

const patience = 700 * time.Millisecond

var (
	metadata  = netip.AddrFrom4([4]byte{169, 254, 169, 254})
	multicast = netip.AddrFrom4([4]byte{224, 0, 0, 251})
)

// attacks are all of them against one target.
func attacks(t target) []attack {
	tcp := func(to netip.Addr, port uint16, mark int) func() (bool, error) {
		return func() (bool, error) { return dial("tcp", to, port, mark, words) }
	}
	udp := func(to netip.Addr, port uint16) func() (bool, error) {
		return func() (bool, error) { return false, send(to, port, words) }
	}
	return []attack{
		{"TCP to an address no rule allows", tcp(t.canary, t.open, 0), refusal("tcp", t.canary)},
		{"the same over IPv6", tcp(t.canary6, t.open, 0), refusal("tcp", t.canary6)},
		{"the same as an IPv4-mapped IPv6 address", func() (bool, error) { return mapped(t.canary, t.open) }, refusal("tcp", t.canary)},
		{"TCP with every mark set (SO_MARK)", tcp(t.canary, t.open, -1), refusal("tcp", t.canary)},
		{"cloud metadata", tcp(metadata, 80, 0), refusal("tcp", metadata)},
		{"a service of the host", tcp(t.host, t.open, 0), refusal("tcp", t.host)},
		{"DNS straight to an outside server, UDP", func() (bool, error) {
			return false, send(t.canary, 53, question())
		}, expected{kind: "dns", transport: "udp", host: asked}},
		{"DNS straight to an outside server, TCP", func() (bool, error) {
			q := question()
			// Weir itself may answer; whether the outside saw it is counted.
			_, err := dial("tcp", t.canary, 53, 0, append([]byte{0, byte(len(q))}, q...))
			return false, err
		}, expected{kind: "dns", transport: "tcp", host: asked}},
		{"UDP (QUIC, DoQ)", udp(t.canary, 443), refusal("udp", t.canary)},
		{"UDP over IPv6", udp(t.canary6, 443), refusal("udp", t.canary6)},
		{"multicast (mDNS)", udp(multicast, 5353), expected{}},
		{"ICMP echo with a payload", func() (bool, error) { return false, raw(t.canary, unix.IPPROTO_ICMP, []byte{8, 0, 0, 0}) }, expected{}},
		{"a protocol of its own (GRE)", func() (bool, error) { return false, raw(t.canary, unix.IPPROTO_GRE, nil) }, expected{}},
		{"frames past the kernel (AF_PACKET)", func() (bool, error) { return false, frames(t, 0) }, expected{}},
		{"frames past the queue as well (PACKET_QDISC_BYPASS)", func() (bool, error) { return false, frames(t, 1) }, expected{}},
		{"frames straight to the driver (AF_XDP)", func() (bool, error) { return false, express(t) }, expected{}},
		{"an address of its own choice", func() (bool, error) { return otherAddress(t) }, refusal("udp", t.canary)},
		{"the rules in the namespace flushed", func() (bool, error) { return flushed(t) }, expected{kind: "tamper", reason: "; restored"}},
	}
}

// words are what every attack says.
var words = []byte(secret + "\n")

// asked is a name that nobody allows.
const asked = secret + ".example"

// question is a DNS query for it (RFC 1035, section 4.1): recursion desired,
// type TXT, class IN.
func question() []byte {
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(asked, ".") {
		q = append(append(q, byte(len(label))), label...)
	}
	return append(q, 0, 0, 16, 0, 1)
}

// dial connects and reports whether the connection carried anything: a
// redirected one is accepted by Weir first and reset when it is refused.
func dial(network string, to netip.Addr, port uint16, mark int, payload []byte) (bool, error) {
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if ctl := c.Control(func(fd uintptr) {
			if mark != 0 {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
			}
		}); ctl != nil {
			return ctl
		}
		return err
	}}
	c, err := d.Dial(network, netip.AddrPortFrom(to, port).String())
	if err != nil {
		return false, nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(payload); err != nil {
		return false, nil
	}
	n, _ := c.Read(make([]byte, 64))
	return n > 0, nil
}

// mapped is dial by an IPv6 socket to an IPv4 address, which Go would make an
// IPv4 socket of.
func mapped(to netip.Addr, port uint16) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	for _, which := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} { // the first is connect's, too
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, which, &wait); err != nil {
			return false, err
		}
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Connect(fd, &unix.SockaddrInet6{Addr: to.As16(), Port: int(port)})
	}
	if err != nil {
		return false, nil
	}
	if _, err := unix.Write(fd, words); err != nil {
		return false, nil
	}
	n, _ := unix.Read(fd, make([]byte, 64))
	return n > 0, nil
}

// send sends datagrams; a refusal by the kernel is what is hoped for.
func send(to netip.Addr, port uint16, payload []byte) error {
	c, err := net.DialTimeout("udp", netip.AddrPortFrom(to, port).String(), patience)
	if err != nil {
		return nil
	}
	defer c.Close()
	for range 3 {
		// EPERM and ECONNREFUSED are refusals.
		_, _ = c.Write(payload)
	}
	return nil
}

// raw sends a packet of a protocol of its own making.
func raw(to netip.Addr, proto int, head []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range 3 {
		_ = unix.Sendto(fd, append(head, secret...), 0, &unix.SockaddrInet4{Addr: to.As4()})
	}
	return nil
}

// frame is a datagram to the canary as an Ethernet frame, and the interface
// that it would leave by.
func (t target) frame() ([]byte, netlink.Link, error) {
	h, err := netlink.NewHandle()
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		return nil, nil, err
	}
	src, dst := address(t.lab.run, 2).As4(), t.canary.As4()
	payload := []byte(secret)
	udp := append([]byte{0x30, 0x39, 0x01, 0xbb, 0, byte(8 + len(payload)), 0, 0}, payload...)
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, src[:]...), dst[:]...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	// To everybody: the bridge hands it to the canary whatever its address is.
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, link.Attrs().HardwareAddr...)
	return append(append(append(frame, 0x08, 0x00), ip...), udp...), link, nil
}

// frames writes frames to the interface itself.
func frames(t target, bypass int) error {
	frame, link, err := t.frame()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, bypass); err != nil {
		return err
	}
	for range 3 {
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
	return nil
}

// otherAddress takes an address that was not there before and sends from it.
func otherAddress(t target) (bool, error) {
	h, err := netlink.NewHandle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		return false, err
	}
	other := addr(address(t.lab.run, 77))
	if err := h.AddrAdd(link, other); err != nil {
		return false, err
	}
	defer h.AddrDel(link, other)
	d := net.Dialer{Timeout: patience, LocalAddr: &net.UDPAddr{IP: other.IP}}
	if c, err := d.Dial("udp", netip.AddrPortFrom(t.canary, 443).String()); err == nil {
		defer c.Close()
		for range 3 {
			_, _ = c.Write([]byte(secret))
		}
	}
	return false, nil
}

// flushed removes every rule in the namespace, again and again, and uses the
// moments until Weir has put them back.
func flushed(t target) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	for range 5 {
		c.FlushRuleset()
		if err := c.Flush(); err != nil {
			return false, err
		}
		if err := errors.Join(send(t.canary, 443, words), raw(t.canary, unix.IPPROTO_ICMP, []byte{8, 0, 0, 0})); err != nil {
			return false, err
		}
		if got, err := dial("tcp", t.canary, t.open, 0, words); got || err != nil {
			return got, err
		}
	}
	return false, nil
}

// serve answers on an address, so that an attempt that gets through is seen.
func (l *lab) serve(in func(func() error) error, at netip.AddrPort) error {
	var listener net.Listener
	if err := in(func() (err error) { listener, err = net.Listen("tcp", at.String()); return }); err != nil {
		return err
	}
	l.undo = append(l.undo, listener.Close)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if n, _ := c.Read(make([]byte, 64)); n > 0 {
					fmt.Fprintln(c, "reached")
				}
			}()
		}
	}()
	return nil
}

// requireRoot says what is missing before anything is made.
func requireRoot(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the self-test makes network namespaces and needs root: sudo weir selftest")
	}
	return nil
}
