package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// routeProtocol marks the routes that are ours, so that a later daemon
	// finds those of a dead one. The number is in none of the ranges that
	// linux/rtnetlink.h or iproute2 give away.
	routeProtocol = 87
	// routeMetric is higher than any route that a runtime would add, so that
	// theirs count as soon as they are there.
	routeMetric = 1<<32 - 2
)

// giveRoutes makes connect() work where there is no route out: without one it
// fails before the packet meets any hook. Each family without a default route
// gets one by lo, where the packets are then captured. IPv6 only where it is
// on; elsewhere a connect fails at once, as it did before. It says whether lo
// had to be brought up.
func (l *links) giveRoutes() (broughtUp bool, err error) {
	lo, err := l.inside.LinkByIndex(loopbackIndex)
	if err != nil {
		return false, fmt.Errorf("find lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		addrs, err := dump(func() ([]netlink.Addr, error) { return l.inside.AddrList(lo, netlink.FAMILY_V4) })
		if err != nil {
			return false, fmt.Errorf("list the addresses of lo: %w", err)
		}
		l.loWasBare = len(addrs) == 0
		if err := l.inside.LinkSetUp(lo); err != nil {
			return false, fmt.Errorf("bring lo up: %w", err)
		}
		broughtUp = true
	}
	locals, err := l.locals()
	if err != nil {
		return broughtUp, err
	}
	v4 := &netlink.Route{
		LinkIndex: loopbackIndex, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Src: net.IPv4(127, 0, 0, 1), Scope: netlink.SCOPE_LINK, Protocol: routeProtocol, Priority: routeMetric,
	}
	if err := l.giveRoute(v4, netlink.FAMILY_V4); err != nil {
		return broughtUp, err
	}
	if !locals[netip.IPv6Loopback()] {
		return broughtUp, nil
	}
	v6 := &netlink.Route{
		LinkIndex: loopbackIndex, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		Protocol: routeProtocol, Priority: routeMetric,
	}
	return broughtUp, l.giveRoute(v6, netlink.FAMILY_V6)
}

func (l *links) giveRoute(route *netlink.Route, family int) error {
	routes, err := dump(func() ([]netlink.Route, error) { return l.inside.RouteList(nil, family) })
	if err != nil {
		return fmt.Errorf("list the container's routes: %w", err)
	}
	for _, r := range routes {
		if isDefault(r) && r.Type == unix.RTN_UNICAST {
			return nil
		}
	}
	if err := l.inside.RouteReplace(route); err != nil {
		return fmt.Errorf("add a route by lo to %v: %w", route.Dst, err)
	}
	return nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// takeRoutes removes the routes of giveRoutes, a dead daemon's too.
func (l *links) takeRoutes() error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return l.inside.RouteList(nil, family) })
		if err != nil {
			errs = append(errs, fmt.Errorf("list the container's routes: %w", err))
		}
		for _, r := range routes {
			if r.Protocol != routeProtocol {
				continue
			}
			if err := l.inside.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove the route by lo to %v: %w", r.Dst, err))
			}
		}
	}
	return errors.Join(errs...)
}

// takeLoopback takes lo down again, and away from it 127.0.0.1/8, if that is
// what the kernel gave it when it came up (inetdev_event in
// net/ipv4/devinet.c) and leaves on it; ::1 goes by itself.
func (l *links) takeLoopback() error {
	lo, err := l.inside.LinkByIndex(loopbackIndex)
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := l.inside.LinkSetDown(lo); err != nil {
		return fmt.Errorf("take lo down: %w", err)
	}
	if !l.loWasBare {
		return nil
	}
	kernels := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}
	if err := l.inside.AddrDel(lo, kernels); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("take the kernel's address off lo: %w", err)
	}
	return nil
}
