package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// udpMark is put on datagrams that are to be captured, and leads them to
	// lo. It exempts from nothing: whoever sets it is captured.
	udpMark = 0x08000087
	// answerMark is put on the answers; see answerUDP. Whoever sets it gets
	// datagrams to its own addresses out of connection tracking, no more.
	answerMark = 0x08000088
	// steerTable is the routing table that marked datagrams are looked up in.
	steerTable = 8787
	// steerPriority comes after the kernel's table of local addresses (0) and
	// before rules of others.
	steerPriority = 87
)

// steering is what leads marked datagrams of one family to lo.
type steering struct {
	family int
	route  netlink.Route
}

// steerings are those of the families that the namespace has. The source is
// for programs that set the mark themselves: their datagrams are looked up here
// first, and would otherwise come from the address that they go to.
func (l *links) steerings() ([]steering, error) {
	locals, err := l.locals()
	if err != nil {
		return nil, err
	}
	local := func(family int, any net.IP, bits int, src net.IP) steering {
		return steering{family, netlink.Route{
			LinkIndex: loopbackIndex, Dst: &net.IPNet{IP: any, Mask: net.CIDRMask(0, bits)}, Src: src,
			Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: steerTable, Protocol: routeProtocol,
		}}
	}
	all := []steering{local(netlink.FAMILY_V4, net.IPv4zero.To4(), 32, net.IPv4(127, 0, 0, 1))}
	if locals[netip.IPv6Loopback()] {
		all = append(all, local(netlink.FAMILY_V6, net.IPv6zero, 128, nil))
	}
	return all, nil
}

func steerRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := ^uint32(0)
	r.Family, r.Priority, r.Mark, r.Mask, r.Table, r.Protocol = family, steerPriority, udpMark, &mask, steerTable, routeProtocol
	return r
}

func isSteerRule(r netlink.Rule) bool {
	return r.Priority == steerPriority && r.Mark == udpMark && r.Table == steerTable && r.Protocol == routeProtocol
}

// steer leads datagrams with udpMark to lo. What else lies in the table goes.
func (l *links) steer() error {
	all, err := l.steerings()
	if err != nil {
		return err
	}
	for _, s := range all {
		if err := l.clearSteerTable(s.family); err != nil {
			return err
		}
		if err := l.inside.RouteReplace(&s.route); err != nil {
			return fmt.Errorf("add a route by lo for captured datagrams: %w", err)
		}
		if err := l.inside.RuleAdd(steerRule(s.family)); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("add a routing rule for captured datagrams: %w", err)
		}
	}
	return nil
}

// steered says whether steer has to be called again.
func (l *links) steered() (bool, error) {
	all, err := l.steerings()
	if err != nil {
		return false, err
	}
	for _, s := range all {
		routes, err := l.steerRoutes(s.family)
		if err != nil {
			return false, err
		}
		if len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL || routes[0].LinkIndex != loopbackIndex || !isDefault(routes[0]) {
			return false, nil
		}
		rules, err := l.steerRules(s.family)
		if err != nil || len(rules) == 0 {
			return false, err
		}
	}
	return true, nil
}

// unsteer takes away what steer has put, a dead daemon's too.
func (l *links) unsteer() error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := l.steerRules(family)
		errs = append(errs, err)
		for _, r := range rules {
			if err := l.inside.RuleDel(&r); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the routing rule for captured datagrams: %w", err))
			}
		}
		errs = append(errs, l.clearSteerTable(family))
	}
	return errors.Join(errs...)
}

func (l *links) steerRules(family int) ([]netlink.Rule, error) {
	all, err := dump(func() ([]netlink.Rule, error) { return l.inside.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("list the container's routing rules: %w", err)
	}
	var ours []netlink.Rule
	for _, r := range all {
		if isSteerRule(r) {
			r.Family = family
			ours = append(ours, r)
		}
	}
	return ours, nil
}

func (l *links) steerRoutes(family int) ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return l.inside.RouteListFiltered(family, &netlink.Route{Table: steerTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the container's routes for captured datagrams: %w", err)
	}
	return routes, nil
}

func (l *links) clearSteerTable(family int) error {
	routes, err := l.steerRoutes(family)
	errs := []error{err}
	for _, r := range routes {
		if err := l.inside.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route for captured datagrams to %v: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

// checkSteering leads captured datagrams to lo again if the container has
// changed that. Meanwhile they got nowhere: what leaves by another interface
// is dropped.
func (a *Attachment) checkSteering() ([]Tamper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil, ErrClosed
	}
	ok, err := a.links.steered()
	if err != nil || ok {
		return nil, err
	}
	t := Tamper{Time: time.Now(), Kind: Routing, What: "the routing of captured datagrams was changed"}
	t.Err = a.links.steer()
	t.Restored = t.Err == nil
	return []Tamper{t}, nil
}
