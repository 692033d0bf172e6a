package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// SplitDestination splits DEST[:PORTS] as users write it: a name, a pattern,
// an address, a CIDR, [IPv6]:PORTS. A bare IPv6 address has no ports.
func SplitDestination(s string) (dest, ports string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		dest, after, ok := strings.Cut(rest, "]")
		if !ok {
			return "", "", fmt.Errorf("%q: the [ has no ]", s)
		}
		if after == "" {
			return dest, "", nil
		}
		ports, ok := strings.CutPrefix(after, ":")
		if !ok || ports == "" {
			return "", "", fmt.Errorf("%q: want [ADDRESS]:PORTS", s)
		}
		return dest, ports, nil
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return s, "", nil
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return s, "", nil
	}
	dest, ports, found := strings.Cut(s, ":")
	if found && ports == "" || dest == "" || strings.Trim(ports, "0123456789,-* ") != "" {
		return "", "", fmt.Errorf("%q: want DEST or DEST:PORTS, with an IPv6 address in brackets: [2001:db8::1]:443", s)
	}
	return dest, ports, nil
}
