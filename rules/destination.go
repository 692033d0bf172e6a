package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

type destinationKind uint8

const (
	anywhere destinationKind = iota // *
	exactly                         // a name
	below                           // *.d
	within                          // **.d
	globbed                         // an endpoint's host with stars
	address                         // one address
	network                         // a CIDR
	listed                          // an endpoint without host: each of its allowed_ips
)

// destination is a parsed destination pattern.
type destination struct {
	kind   destinationKind
	name   string       // exactly: the name; below, within, globbed: the literal suffix
	prefix netip.Prefix // address and network, masked
	glob   *hostGlob
}

// named reports whether only a flow with a name can match.
func (d *destination) named() bool {
	return d.kind == exactly || d.kind == below || d.kind == within || d.kind == globbed
}

func (d *destination) String() string {
	switch d.kind {
	case anywhere:
		return "*"
	case exactly:
		return d.name
	case below:
		return "*." + d.name
	case within:
		return "**." + d.name
	case globbed:
		return d.glob.pattern
	case address:
		return d.prefix.Addr().String()
	case network:
		return d.prefix.String()
	default:
		return ""
	}
}

// parseDestination reads the destination of a plain rule.
func parseDestination(s string) (destination, error) {
	if s == "*" {
		return destination{kind: anywhere}, nil
	}
	if isCanonicalName(s) { // the usual case, without an attempt at an address
		return destination{kind: exactly, name: s}, nil
	}
	d, err := parseUnusual(s)
	if err != nil {
		return destination{}, fmt.Errorf("destination %q: %w", s, err)
	}
	return d, nil
}

func parseUnusual(s string) (destination, error) {
	switch {
	case s == "":
		return destination{}, errors.New(`empty; write a name, an address, a CIDR, or "*" for everything`)
	case strings.Contains(s, "://"):
		return destination{}, errors.New("a URL; write only its host, and the port under ports")
	case strings.HasPrefix(s, "["):
		return destination{}, errors.New("write an IPv6 address without brackets, and the port under ports")
	}
	if strings.Contains(s, "/") {
		return parseNetwork(s)
	}
	if s[0] != '*' {
		if a, err := netip.ParseAddr(s); err == nil {
			return addressDestination(a), nil
		}
	}
	if host, port, ok := strings.Cut(s, ":"); ok && !strings.Contains(port, ":") {
		return destination{}, fmt.Errorf("write %q, and the port %q under ports", host, port)
	}
	kind, rest := exactly, s
	if r, ok := strings.CutPrefix(s, "**."); ok {
		kind, rest = within, r
	} else if r, ok := strings.CutPrefix(s, "*."); ok {
		kind, rest = below, r
	}
	if strings.Contains(rest, "*") {
		return destination{}, errors.New(`a star stands only alone or in front: "*", "*.example.com" (below example.com) or "**.example.com" (example.com and below)`)
	}
	name, err := CanonicalName(rest)
	if errors.Is(err, ErrAddress) {
		return destination{}, fmt.Errorf("%q is not a host name and not an address in the usual form; write an IPv4 address as four decimal numbers, as in 192.0.2.1", rest)
	}
	if err != nil {
		return destination{}, err
	}
	return destination{kind: kind, name: name}, nil
}

func addressDestination(a netip.Addr) destination {
	a = plain(a)
	return destination{kind: address, prefix: netip.PrefixFrom(a, a.BitLen())}
}

// plain is the form in which addresses are compared: IPv4-mapped IPv6 is the
// IPv4 address, and a zone says nothing about where a packet ends up.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func parseNetwork(s string) (destination, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return destination{}, errors.New("not a network in CIDR form; write an address and a number of bits, as in 10.0.0.0/8")
	}
	return networkDestination(p), nil
}

func networkDestination(p netip.Prefix) destination {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	p = p.Masked()
	if p.IsSingleIP() {
		return destination{kind: address, prefix: p}
	}
	return destination{kind: network, prefix: p}
}

// parseEndpointHost reads the destination of a rule with an endpoint, whose
// stars mean something narrower than those of parseDestination.
// An endpoint without host is about its allowed addresses.
func parseEndpointHost(s string, allowed []netip.Prefix) (destination, error) {
	if s == "" && len(allowed) > 0 {
		return destination{kind: listed}, nil
	}
	if !strings.Contains(s, "*") {
		return parseDestination(s)
	}
	g, err := compileEndpointHost(s)
	if err != nil {
		return destination{}, err
	}
	return destination{kind: globbed, name: g.suffix(), glob: &g}, nil
}

// SuffixWarning returns a warning when a destination such as "*.co.uk" covers
// everything below a public suffix, where names of unrelated owners live, and
// "" otherwise. (Canonical itself warns about whole top-level domains.)
// publicSuffix is that of golang.org/x/net/publicsuffix, which this package
// cannot import without importing a network.
func SuffixWarning(pattern string, publicSuffix func(domain string) (suffix string, icann bool)) string {
	d, err := parseDestination(pattern)
	if err != nil || d.kind != below && d.kind != within || !strings.Contains(d.name, ".") {
		return ""
	}
	if suffix, _ := publicSuffix(d.name); suffix != d.name {
		return ""
	}
	return fmt.Sprintf("%q covers every name under the public suffix %q, whoever owns it", pattern, d.name)
}
