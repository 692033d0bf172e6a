package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is a network interface of the container other than lo.
type Interface struct {
	Name   string
	Host   string // the host's end of it; empty when the host's namespace has none
	Locked bool   // the host's end lets out nothing but answers to inbound connections
	Reason string // why it is not locked; empty when it is, and when it needs no lock

	index   int
	uplink  bool // leads out of the container
	outside bool // stands on an interface or socket of another namespace, or may
	up      bool
	mac     net.HardwareAddr
	addrs   []netip.Addr

	// settled: the addresses are the ones that the runtime gave; what the
	// container makes of them later does not count.
	settled bool
	// reported: a change after that was reported.
	reported bool
}

// links sees a namespace's interfaces and their other ends in the host's.
type links struct {
	inside *netlink.Handle
	host   *netlink.Handle
	hostNS *NetNS
	// loWasBare: giveRoutes brought lo up, and it had no IPv4 address before.
	loWasBare bool
}

func openLinks(ns, host *NetNS) (*links, error) {
	inside, err := netlink.NewHandleAt(ns.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in namespace %s: %w", ns.ID(), err)
	}
	outside, err := netlink.NewHandleAt(host.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		inside.Close()
		return nil, fmt.Errorf("open netlink in the host's namespace: %w", err)
	}
	return &links{inside: inside, host: outside, hostNS: host}, nil
}

func (l *links) close() {
	l.inside.Close()
	l.host.Close()
}

// list looks at every interface of the container but lo.
func (l *links) list() ([]Interface, error) {
	all, err := dump(func() ([]netlink.Link, error) { return l.inside.LinkList() })
	if err != nil {
		return nil, fmt.Errorf("list the container's interfaces: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return l.inside.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the container's addresses: %w", err)
	}
	// Asked every time: the number is given when the two namespaces first
	// share an interface, which may be after the attach.
	nsid, err := l.inside.GetNetNsIdByFd(l.hostNS.fd())
	if err != nil {
		return nil, fmt.Errorf("find the host's namespace from the container's: %w", err)
	}
	var found []Interface
	masters := map[int]bool{} // bridges and bonds that have an uplink as port
	for _, link := range all {
		if link.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		i := classify(link, nsid)
		if i.uplink {
			masters[link.Attrs().MasterIndex] = true
		}
		if i.uplink && i.Reason == "" && link.Type() == "veth" {
			if err := l.findHostEnd(&i, link.Attrs().ParentIndex); err != nil {
				return nil, err
			}
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex == i.index {
				i.addrs = append(i.addrs, ip.Unmap())
			}
		}
		found = append(found, i)
	}
	for i := range found {
		found[i].uplink = found[i].uplink || masters[found[i].index]
	}
	return found, nil
}

// classify says whether an interface leads out of the container and whether
// its other end can be locked. nsid is the host's namespace as the container
// numbers it, -1 when they share nothing.
func classify(link netlink.Link, nsid int) Interface {
	a := link.Attrs()
	i := Interface{Name: a.Name, index: a.Index, up: a.Flags&net.FlagUp != 0, mac: a.HardwareAddr}
	sameNS := a.NetNsID < 0
	switch kind := link.Type(); kind {
	case "veth":
		switch {
		case sameNS:
		case a.NetNsID == nsid:
			i.uplink = true
		case a.MasterIndex != 0: // a port of a bridge inside: a nested container's
		default:
			i.uplink = true
			i.Reason = "the other end lies in a namespace that is not the host's"
		}
	case "bridge", "dummy", "ifb", "nlmon", "vrf", "team", "bond":
	case "sit", "ipip", "gre", "gretap", "ip6tnl", "ip6gre", "ip6gretap", "erspan", "ip6erspan", "vti", "vti6", "xfrm":
		i.uplink = true // what they carry leaves by another interface
	case "vlan", "macvlan", "macvtap", "ipvlan", "ipvtap":
		i.uplink = true
	default:
		i.uplink = true
		i.Reason = fmt.Sprintf("it is a %s interface, which has no end on the host to lock", kind)
		// Its datagrams leave by the namespace that it was made from, which
		// the kernel does not tell (drivers/net/wireguard/device.c).
		i.outside = kind == "wireguard"
	}
	if !sameNS && link.Type() != "veth" {
		i.uplink, i.outside = true, true
		i.Reason = fmt.Sprintf("it is a %s on an interface or a socket outside, which has no end of its own to lock", link.Type())
	}
	return i
}

// findHostEnd looks the other end of a veth up by its index in the host.
func (l *links) findHostEnd(i *Interface, index int) error {
	peer, err := l.host.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		i.Reason = "the host's end has just disappeared"
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the host's end of %s: %w", i.Name, err)
	}
	if peer.Type() != "veth" || peer.Attrs().ParentIndex != i.index {
		i.Reason = fmt.Sprintf("the host's interface %d is not its other end", index)
		return nil
	}
	i.Host = peer.Attrs().Name
	return nil
}

// remove deletes an interface of the container.
func (l *links) remove(i Interface) error {
	if err := l.inside.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: i.index}}); err != nil {
		return fmt.Errorf("remove interface %s: %w", clean(i.Name), err)
	}
	return nil
}

// uplinkIndexes are the elements of the set of uplinks: lo always, so that
// nothing is ever forwarded round by it.
func (l *links) uplinkIndexes(list []Interface) []int {
	indexes := []int{loopbackIndex}
	for _, i := range list {
		if i.uplink {
			indexes = append(indexes, i.index)
		}
	}
	return indexes
}

// loopbackIndex is lo's in every namespace (LOOPBACK_IFINDEX of net/flow.h).
const loopbackIndex = 1

// locals are the addresses of the namespace itself.
func (l *links) locals() (map[netip.Addr]bool, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return l.inside.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the container's addresses: %w", err)
	}
	set := map[netip.Addr]bool{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			set[ip.Unmap()] = true
		}
	}
	return set, nil
}

// dump repeats a netlink dump that a change under way interrupted
// (NLM_F_DUMP_INTR, netlink(7)); after five tries the last answer counts.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var got []T
	var err error
	for range 5 {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
	return got, nil
}
