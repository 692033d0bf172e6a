package selftest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The lab's network is taken from the range for benchmarks (RFC 2544), which
// no host uses. The third part of the address differs from run to run.
func address(run, host byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 19, run, host}) }

func address6(run, host byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0x5e, 0x1f, 14: run, 15: host})
}

// lab is two namespaces on a bridge: inside, which is attacked from, and
// outside, which holds the canary.
type lab struct {
	run             byte
	bridge          string
	inside, outside string // names
	insideNS        netns.NsHandle
	outsideNS       netns.NsHandle
	undo            []func() error
}

func newLab() (*lab, error) {
	pid := os.Getpid()
	l := &lab{
		run: byte(pid), bridge: fmt.Sprintf("weirst%d", pid%100000),
		inside: fmt.Sprintf("weir-selftest-%d", pid), outside: fmt.Sprintf("weir-selftest-%d-out", pid),
		insideNS: netns.None(), outsideNS: netns.None(),
	}
	if err := l.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("building the test network: %w", err), l.close())
	}
	return l, nil
}

func (l *lab) build() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: l.bridge}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	l.undo = append(l.undo, func() error { return netlink.LinkDel(bridge) })
	for _, a := range []netip.Addr{address(l.run, 1), address6(l.run, 1)} {
		if err := netlink.AddrAdd(bridge, addr(a)); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return err
	}
	var err error
	if l.insideNS, err = l.join(l.inside, "i", 2); err != nil {
		return err
	}
	l.outsideNS, err = l.join(l.outside, "o", 3)
	return err
}

func addr(a netip.Addr) *netlink.Addr {
	bits := 24
	if a.Is6() {
		bits = 120
	}
	// Without duplicate address detection the address counts at once.
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: unix.IFA_F_NODAD}
}

// join makes a named namespace with a leg on the bridge.
func (l *lab) join(name, side string, host byte) (netns.NsHandle, error) {
	var ns netns.NsHandle
	err := onThread(netns.None(), func() (err error) { ns, err = netns.NewNamed(name); return })
	if err != nil {
		return ns, err
	}
	l.undo = append(l.undo, func() error { return errors.Join(ns.Close(), netns.DeleteNamed(name)) })
	bridge, err := netlink.LinkByName(l.bridge)
	if err != nil {
		return ns, err
	}
	leg := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: l.bridge + side, MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(ns),
	}
	if err := netlink.LinkAdd(leg); err != nil {
		return ns, err
	}
	if err := netlink.LinkSetUp(leg); err != nil {
		return ns, err
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return ns, err
	}
	defer h.Close()
	for _, name := range []string{"lo", "eth0"} {
		link, err := h.LinkByName(name)
		if err != nil {
			return ns, err
		}
		if err := h.LinkSetUp(link); err != nil {
			return ns, err
		}
		if name == "lo" {
			continue
		}
		for _, a := range []netip.Addr{address(l.run, host), address6(l.run, host)} {
			if err := h.AddrAdd(link, addr(a)); err != nil {
				return ns, err
			}
		}
		gateway := address(l.run, 1)
		if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
			return ns, err
		}
	}
	return ns, nil
}

func (l *lab) close() error {
	var errs []error
	for i := len(l.undo) - 1; i >= 0; i-- {
		errs = append(errs, l.undo[i]())
	}
	return errors.Join(errs...)
}

// onThread calls f on a thread of its own, inside ns unless that is none. The
// thread ends with the call.
func onThread(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: a thread that has changed namespaces is thrown away.
		runtime.LockOSThread()
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// canary counts the packets that reach the outside from the attacked side.
type canary struct {
	fd   int
	done chan struct{}
	mu   sync.Mutex
	seen int
}

// watch counts the frames from the inside that get as far as the bridge: none
// belongs there, whatever address it carries. Looking there and not at the
// outside, it does not take a firewall of the host's own, which on most hosts
// drops what the bridge forwards, for Weir's. What the host itself sends, as
// Weir does for allowed connections, is not counted.
func (l *lab) watch() (*canary, error) {
	h, err := netlink.NewHandleAt(l.insideNS)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	mac := link.Attrs().HardwareAddr
	bridge, err := netlink.LinkByName(l.bridge)
	if err != nil {
		return nil, err
	}
	c := &canary{done: make(chan struct{})}
	const all = uint16(unix.ETH_P_ALL)
	const network = all<<8 | all>>8
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(network)); err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	// A promiscuous bridge hands the host a copy of every frame it takes in.
	if err := errors.Join(
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: bridge.Attrs().Index}),
		unix.SetsockoptPacketMreq(c.fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(bridge.Attrs().Index), Type: unix.PACKET_MR_PROMISC}),
	); err != nil {
		return nil, errors.Join(fmt.Errorf("canary: %w", err), unix.Close(c.fd))
	}
	l.undo = append(l.undo, func() error { close(c.done); return nil })
	go func() {
		defer unix.Close(c.fd)
		frame := make([]byte, 2048)
		for {
			select {
			case <-c.done:
				return
			default:
			}
			n, _, err := unix.Recvfrom(c.fd, frame, 0)
			if err != nil || n < 14 || isNeighbourTalk(frame[:n]) || string(frame[6:12]) != string(mac) && !isMarked(frame[:n]) {
				continue
			}
			c.mu.Lock()
			c.seen++
			c.mu.Unlock()
		}
	}()
	return c, nil
}

// isNeighbourTalk reports ARP and IPv6 neighbour discovery, which the lock
// lets through so that inbound connections work.
func isNeighbourTalk(frame []byte) bool {
	const arp, ipv6, icmp6 = 0x0806, 0x86dd, 58
	switch int(frame[12])<<8 | int(frame[13]) {
	case arp:
		return true
	case ipv6:
		return len(frame) > 54 && frame[20] == icmp6 && frame[54] >= 133 && frame[54] <= 136
	}
	return false
}

// secret is carried by every datagram of an attack, so that it is known
// wherever it comes out.
const secret = "weir-selftest-secret"

func isMarked(frame []byte) bool {
	for i := 0; i+len(secret) <= len(frame); i++ {
		if string(frame[i:i+len(secret)]) == secret {
			return true
		}
	}
	return false
}

// take returns how many packets came since the last call, after giving those
// on their way a moment.
func (c *canary) take(ctx context.Context) int {
	select {
	case <-ctx.Done():
	case <-time.After(150 * time.Millisecond):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.seen
	c.seen = 0
	return n
}
