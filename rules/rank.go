package rules

import (
	"math/bits"
	"net/netip"
	"strings"
)

// rank orders the rules of a layer: the lower wins. specificity makes it from
// the table of the package comment, one field after the other from the highest bit down.
type rank uint64

func (p *entry) specificity() rank {
	d := &p.dest
	container := uint64(0)
	if p.container.every() {
		container = 2
	} else if p.container.glob != "" {
		container = 1
	}
	class, length, literals, width := uint64(0), uint64(0), uint64(0), uint64(0)
	switch d.kind {
	case network:
		class = 1
		length = uint64(128 - wideBits(d.prefix))
	case globbed:
		class = 2
		length = uint64(maxName - len(d.name))
		literals = uint64(max(0, d.glob.specificity()-len(d.name)))
		if strings.Contains(d.glob.pattern, "**") {
			width = 1
		}
	case below, within:
		class = 2
		length = uint64(maxName - len(d.name))
		width = 1
		if d.kind == within {
			width = 2
		}
	case anywhere:
		class = 3
	}
	anyTransport, anyBinary := uint64(0), uint64(0)
	if p.transports == overBoth {
		anyTransport = 1
	}
	if len(p.binaries) == 0 {
		anyBinary = 1
	}
	k := container
	k = k<<2 | class
	k = k<<8 | length
	k = k<<8 | 255 - min(literals, 255)
	k = k<<2 | width
	k = k<<17 | uint64(p.ports.count)
	k = k<<1 | anyTransport
	k = k<<1 | anyBinary
	k = k<<2 | uint64(p.effect)
	return rank(k)
}

// against says why a rule of rank r loses to one of rank winner that precedes
// it in the same layer.
func (r rank) against(winner rank) string {
	switch first := bits.Len64(uint64(r^winner)) - 1; { // the highest bit that differs
	case first < 0:
		return "as specific as the rule that won, but younger"
	case first < 2:
		return "as specific as the rule that won; deny beats inspected allow beats plain allow"
	case first < 3:
		return "less specific: the rule that won lists programs"
	case first < 4:
		return "less specific: the rule that won names a transport"
	case first < 21:
		return "less specific: the rule that won has fewer ports"
	case first < 41:
		return "less specific: the rule that won has a narrower destination"
	default:
		return "less specific: the rule that won is closer to this container"
	}
}

// wideBits is the length of a prefix with IPv4 counted as the last 32 bits of
// IPv6, so that an address and the one it embeds compare.
func wideBits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits() + 96
	}
	return p.Bits()
}
