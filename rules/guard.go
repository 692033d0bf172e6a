package rules

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// class is what the address guard calls an address.
type class uint8

const (
	public class = iota
	private
	linkLocal
	metadata
	loopback // the container's own, or the host's when Captured
	unspecified
	multicast
	broadcast
	hostAddress
)

// never reports whether addresses of the class are dialled for no rule at all.
func (c class) never() bool { return c >= unspecified }

var (
	privateRanges = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), // RFC 1918
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT, RFC 6598
		netip.MustParsePrefix("fc00::/7"),      // unique local, RFC 4193
		netip.MustParsePrefix("fec0::/10"),     // site-local, deprecated by RFC 3879
	}
	linkLocalRanges = []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"), // RFC 3927
		netip.MustParsePrefix("fe80::/10"),      // RFC 4291 2.5.6
	}
	// thisNetwork cannot be a destination (RFC 1122 3.2.1.3); Linux takes
	// 0.0.0.0 for the local host.
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	// metadataServices are where clouds hand out credentials; the one that
	// all share, 169.254.169.254, is link-local.
	metadataServices = []netip.Addr{
		netip.MustParseAddr("100.100.100.200"), // Alibaba
		netip.MustParseAddr("168.63.129.16"),   // Azure
		netip.MustParseAddr("192.0.0.192"),     // Oracle
		netip.MustParseAddr("fd00:ec2::254"),   // AWS
	}

	nat64       = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	localNAT64  = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	sixToFour   = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo      = netip.MustParsePrefix("2001::/32")       // RFC 4380
	compatible  = netip.MustParsePrefix("::/96")           // RFC 4291 2.5.5.1
	translated  = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765, SIIT
	limitedCast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

// classify names the class of an unmapped address without zone. That an
// address is the host's own is not known here.
func classify(a netip.Addr) class {
	switch {
	case a.IsUnspecified() || thisNetwork.Contains(a):
		return unspecified
	case a.IsLoopback():
		return loopback
	case a.IsMulticast():
		return multicast
	case a == limitedCast:
		return broadcast
	case inAny(linkLocalRanges, a):
		return linkLocal
	}
	for _, m := range metadataServices {
		if a == m {
			return metadata
		}
	}
	if inAny(privateRanges, a) {
		return private
	}
	return public
}

func inAny(ranges []netip.Prefix, a netip.Addr) bool {
	for _, r := range ranges {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// maxEmbedded is how many IPv4 addresses one IPv6 address can mean at most.
const maxEmbedded = 4

// embedded returns the IPv4 addresses that an IPv6 address stands for: where
// a translator or a tunnel on the way would send the packet. Which layout the
// local NAT64 prefix has is not known, so all that RFC 6052 2.2 offers count.
func embedded(a netip.Addr) (means [maxEmbedded]netip.Addr, n int) {
	if !a.Is6() {
		return means, 0
	}
	b := a.As16()
	v4 := func(i, j, k, l int) netip.Addr { return netip.AddrFrom4([4]byte{b[i], b[j], b[k], b[l]}) }
	last := v4(12, 13, 14, 15)
	switch {
	case localNAT64.Contains(a):
		for _, m := range [...]netip.Addr{last, v4(6, 7, 9, 10), v4(7, 9, 10, 11), v4(9, 10, 11, 12)} {
			// The layouts that were not meant yield addresses full of zeros.
			if m == last || !thisNetwork.Contains(m) {
				means[n] = m
				n++
			}
		}
		return means, n
	case nat64.Contains(a), translated.Contains(a):
		means[0] = last
	case sixToFour.Contains(a):
		means[0] = v4(2, 3, 4, 5)
	case teredo.Contains(a): // the client's address, all bits flipped
		means[0] = netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	case compatible.Contains(a) && !a.IsUnspecified() && !a.IsLoopback():
		means[0] = last
	case binary.BigEndian.Uint32(b[8:])&^0x02000000 == 0x00005efe: // ISATAP, RFC 5214 6.1
		means[0] = last
	default:
		return means, 0
	}
	return means, 1
}

// look classifies every address that a query is about.
func (g *Guard) look(q *query) {
	for i, a := range q.addrs[:q.addrCount] {
		c := classify(a)
		switch {
		case c == loopback && i == 0 && !q.captured:
			c = public // the container's own, which no packet leaves for
		case c == loopback, g.Hosts[a]:
			c = hostAddress
		}
		q.classes[i] = c
		q.worst = max(q.worst, c)
	}
}

// admits reports whether the guard lets a flow pass that e allows.
func (q *query) admits(e *entry) bool {
	if q.worst == public {
		return true
	}
	for i, a := range q.addrs[:q.addrCount] {
		if !admitsOne(q.classes[i], a, e) {
			return false
		}
	}
	return true
}

func admitsOne(c class, a netip.Addr, e *entry) bool {
	switch c {
	case public:
		return true
	case private:
		return e.names(a) || e.dest.kind == exactly || inAny(e.allowedIPs(), a)
	case linkLocal:
		if !e.names(a) {
			return false
		}
		// A larger network happens to cover the range; it does not name it.
		for _, r := range linkLocalRanges {
			if r.Contains(a) {
				return e.dest.prefix.Bits() >= r.Bits()
			}
		}
		return false
	case metadata:
		return e.names(a) && e.dest.kind == address
	default:
		return false
	}
}

// names reports whether the destination is an address or network with a in it.
func (e *entry) names(a netip.Addr) bool {
	return (e.dest.kind == address || e.dest.kind == network) && e.dest.prefix.Contains(a)
}

// refusal says why the guard does not let a flow pass that e allows; e is nil
// in learning mode.
func (p *Policy) refusal(q *query, e *entry) string {
	if q.addrCount == 0 {
		return noAddress
	}
	i := 0
	for ; i < q.addrCount-1; i++ {
		if e == nil && (q.classes[i] > private) || e != nil && !admitsOne(q.classes[i], q.addrs[i], e) {
			break
		}
	}
	a, what := q.addrs[i], q.addrs[i].String()
	if i > 0 {
		what = fmt.Sprintf("%s, which stands for %s,", q.addrs[0], a)
	}
	switch q.classes[i] {
	case unspecified:
		return what + " is the unspecified address, which is never dialled"
	case multicast:
		return what + " is a multicast address, which is never dialled"
	case broadcast:
		return what + " is the broadcast address, which is never dialled"
	case hostAddress:
		if p.guard.ControlPorts[q.port] {
			return fmt.Sprintf("%s port %d is Weir's own control port, which no container may reach", what, q.port)
		}
		if a.IsLoopback() {
			return what + " is the host's own loopback, which is never dialled"
		}
		return what + " is an address of the host itself, which is never dialled"
	case linkLocal:
		return what + " is a link-local address, where clouds keep their metadata; only a rule for this very address or for a network inside its link-local range would open it" + lent(e)
	case metadata:
		return what + " is a cloud metadata service; only a rule for this very address would open it" + lent(e)
	default:
		return what + " is a private address; a rule for the address, its network or the exact host name would open it" + lent(e)
	}
}

func lent(e *entry) string {
	if e == nil {
		return ""
	}
	return ", and " + e.reason + " is none"
}
