package redirect

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// lockTable is the pair of tables that all locks share in the host: one
	// inet, one bridge. They match the mark alone and hold no state.
	lockTable = "weir_lock"
	// lockPrefix starts the name of each attachment's own netdev table.
	lockPrefix = "weir-"
	// lockMark is put on every packet that comes from a locked container. It
	// is set on the host's side of the veth, so the container has no say in
	// it, and a packet that enters another namespace loses its mark.
	lockMark = 0x04000000
)

// lock is the host's half: what comes out of a locked interface goes nowhere
// unless it answers a connection that somebody else made. It holds even when a
// container with CAP_NET_ADMIN has thrown its own ruleset away, and against
// AF_PACKET, which passes no hook inside.
type lock struct {
	conn *nftables.Conn
	name string
}

func (l lock) table() *nftables.Table {
	return &nftables.Table{Name: lockPrefix + l.name, Family: nftables.TableFamilyNetdev}
}

func sharedTables() (inet, bridge *nftables.Table) {
	return &nftables.Table{Name: lockTable, Family: nftables.TableFamilyINet},
		&nftables.Table{Name: lockTable, Family: nftables.TableFamilyBridge}
}

// install locks the host's ends in one batch. It may be repeated: each chain's
// rules are replaced as one.
func (l lock) install(list []Interface) error {
	inet, bridge := sharedTables()
	l.conn.AddTable(inet)
	lockPrerouting().queue(l.conn, inet)
	l.conn.AddTable(bridge)
	lockBridge().queue(l.conn, bridge)
	t := l.table()
	l.conn.AddTable(t)
	for _, i := range list {
		if i.Host != "" {
			lockIngress(i).queue(l.conn, t)
		}
	}
	if err := l.conn.Flush(); err != nil {
		return fmt.Errorf("install the host's lock: %w", err)
	}
	return nil
}

// damage says in one line what of the lock is missing; "" when it is whole.
func (l lock) damage(list []Interface) (string, error) {
	inet, bridge := sharedTables()
	wanted := []struct {
		table *nftables.Table
		chain chain
	}{{inet, lockPrerouting()}, {bridge, lockBridge()}}
	for _, i := range list {
		if i.Host != "" {
			wanted = append(wanted, struct {
				table *nftables.Table
				chain chain
			}{l.table(), lockIngress(i)})
		}
	}
	for _, w := range wanted {
		rules, err := l.conn.GetRules(w.table, &nftables.Chain{Name: w.chain.name})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("list the host's lock: %w", err)
		}
		if len(rules) != len(w.chain.rules) {
			return fmt.Sprintf("chain %s of table %s has %d rules instead of %d", w.chain.name, w.table.Name, len(rules), len(w.chain.rules)), nil
		}
	}
	return "", nil
}

// remove takes the attachment's table away, and the shared ones with the last.
func (l lock) remove() error {
	if err := removeTable(l.conn, l.table()); err != nil {
		return fmt.Errorf("remove the host's lock: %w", err)
	}
	names, err := lockNames(l.conn)
	if err != nil || len(names) > 0 {
		return err
	}
	inet, bridge := sharedTables()
	for _, t := range []*nftables.Table{inet, bridge} {
		l.conn.AddTable(t)
		l.conn.DelTable(t)
	}
	if err := l.conn.Flush(); err != nil {
		return fmt.Errorf("remove the host's shared lock tables: %w", err)
	}
	return nil
}

// lockNames are the names of the attachments that have a table in the host.
func lockNames(c *nftables.Conn) ([]string, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list the host's lock tables: %w", err)
	}
	var names []string
	for _, t := range tables {
		if name, ok := strings.CutPrefix(t.Name, lockPrefix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// lockIngress lets a container's frames in by the host's end of its interface,
// marked, and only under its own addresses: with another sender it could talk
// in a neighbour's connections or take the neighbour's traffic.
func lockIngress(i Interface) chain {
	rules := []rule{{
		fmt.Sprintf("@ll,48,48 != %s drop", number(i.mac)),
		match(etherSourceNot(i.mac), verdict(expr.VerdictDrop)),
	}}
	pass := func(text string, parts ...[]expr.Any) {
		marked := match(append(parts, setMark(lockMark, true), verdict(expr.VerdictAccept))...)
		rules = append(rules, rule{text + " meta mark set meta mark | 0x04000000 accept", marked})
	}
	for _, a := range i.addrs {
		if !a.Is4() {
			continue
		}
		ip := a.AsSlice()
		// RFC 826: sender hardware address at 8, sender protocol address at 14;
		// 28 bytes in all, and behind them no room for words to a neighbour.
		rules = append(rules, rule{
			fmt.Sprintf("@ll,96,16 0x806 meta length 28 @nh,64,48 %s @nh,112,32 %s accept", number(i.mac), number(ip)),
			match(etherType(unix.ETH_P_ARP), length(28), field(8, i.mac), field(14, ip), verdict(expr.VerdictAccept)),
		})
		pass(fmt.Sprintf("@ll,96,16 0x800 @nh,96,32 %s", number(ip)), etherType(unix.ETH_P_IP), field(12, ip))
	}
	// An advertisement speaks for its target (RFC 4861 section 4.4: at 8),
	// whatever its sender is.
	own := ip6Addrs(i)
	for _, a := range own {
		target := []expr.Any{payload(expr.PayloadBaseTransportHeader, 8, 16), equal(a.AsSlice())}
		pass(fmt.Sprintf("@ll,96,16 0x86dd icmpv6 type nd-neighbor-advert @th,64,128 %s", number(a.AsSlice())),
			etherType(unix.ETH_P_IPV6), icmp6Type(ndAdvert), target)
	}
	rules = append(rules, rule{
		"@ll,96,16 0x86dd icmpv6 type nd-neighbor-advert drop",
		match(etherType(unix.ETH_P_IPV6), icmp6Type(ndAdvert), verdict(expr.VerdictDrop)),
	})
	for _, a := range own {
		pass(fmt.Sprintf("@ll,96,16 0x86dd @nh,64,128 %s", number(a.AsSlice())), etherType(unix.ETH_P_IPV6), field(8, a.AsSlice()))
	}
	return chain{
		name: i.Host, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookIngress,
		priority: -500, policy: nftables.ChainPolicyDrop, device: i.Host, rules: rules,
	}
}

// number prints bytes as nft does, as one hexadecimal number.
func number(b []byte) string { return fmt.Sprintf("%#x", new(big.Int).SetBytes(b)) }

// ip6Addrs are the interface's IPv6 addresses with the link-local one that it
// will give itself when it comes up (RFC 4291 appendix A).
func ip6Addrs(i Interface) []netip.Addr {
	var own []netip.Addr
	var linkLocal bool
	for _, a := range i.addrs {
		if a.Is6() {
			own = append(own, a)
			linkLocal = linkLocal || a.IsLinkLocalUnicast()
		}
	}
	if !linkLocal && len(i.mac) == 6 {
		m := i.mac
		own = append(own, netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}))
	}
	return own
}

// lockPrerouting judges marked packets that are routed or meant for the host,
// and bridged ones too where br_netfilter is on. It comes right after
// connection tracking, before any rule of the host can change the mark. What
// passes loses the mark, which is how the bridge chain knows it was judged.
//
// Neighbours are looked for on the link and at the host, never further: such
// packets have no connection, and a router would hand them on with whatever is
// in them. Of a connection only the packets pass, not errors about it: those
// belong to whatever connection they quote, which may be anybody's.
func lockPrerouting() chain {
	return chain{
		name: "judge", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
		priority: -199, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"meta mark & 0x04000000 == 0x00000000 accept", match(markBits(lockMark, false), verdict(expr.VerdictAccept))},
			{"icmpv6 type nd-neighbor-solicit ip6 daddr ff02::/16 accept", match(icmp6Type(ndSolicit), toNeighbours6(), verdict(expr.VerdictAccept))},
			{"icmpv6 type nd-neighbor-solicit fib daddr type local accept", match(icmp6Type(ndSolicit), toLocal(), verdict(expr.VerdictAccept))},
			{"icmpv6 type nd-neighbor-advert ip6 daddr ff02::/16 accept", match(icmp6Type(ndAdvert), toNeighbours6(), verdict(expr.VerdictAccept))},
			{"icmpv6 type nd-neighbor-advert fib daddr type local accept", match(icmp6Type(ndAdvert), toLocal(), verdict(expr.VerdictAccept))},
			{
				"ct direction reply ct state established meta mark set meta mark & 0xfbffffff accept",
				match(answering(expr.CtStateBitESTABLISHED), setMark(lockMark, false), verdict(expr.VerdictAccept)),
			},
			{"drop", verdict(expr.VerdictDrop)},
		},
	}
}

// lockBridge stops frames from one port of a bridge to another that
// lockPrerouting has not let pass. ARP is never marked.
func lockBridge() chain {
	return chain{
		name: "judge", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: 10, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"meta mark & 0x04000000 != 0x00000000 drop", match(markBits(lockMark, true), verdict(expr.VerdictDrop))},
		},
	}
}
