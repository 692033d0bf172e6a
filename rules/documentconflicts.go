package rules

import (
	"fmt"
	"net/netip"
	"slices"
)

// checkConflicts finds endpoints that could judge the same request with equal
// rank and contradict each other. With different binaries they never meet,
// unless one program starts another; what is left over is denied when it
// happens.
func (d *documentReader) checkConflicts(all []endpointSource) {
	for i := range all {
		if len(d.problems) >= maxProblems {
			return
		}
		for j := range i {
			a, b := &all[j], &all[i]
			ea, eb := a.rule.Endpoint, b.rule.Endpoint
			if !ea.Inspected() && !eb.Inspected() || ea.Protocol == eb.Protocol && ea.Audit == eb.Audit || !endpointsMeet(a, b) {
				continue
			}
			line, _ := nodePosition(a.at)
			other := fmt.Sprintf("the endpoint of network_policies.%s on line %d", ea.Policy, line)
			switch {
			case !eb.Inspected():
				d.warn(b.at, "requests to this endpoint are inspected all the same, and denied where nothing allows them, because of %s", other)
			case !ea.Inspected():
				d.warn(b.at, "requests to %s, which has no protocol, are inspected all the same, because of this one", other)
			case ea.Protocol != eb.Protocol:
				d.fail(b.at, "this endpoint has protocol: %s, but %s covers the same requests with equal rank and protocol: %s; give one a more specific path", eb.Protocol, other, ea.Protocol)
			default:
				d.fail(b.at, "this endpoint has enforcement: %s, but %s covers the same requests with equal rank and enforcement: %s; give both the same", enforcement(eb), other, enforcement(ea))
			}
		}
	}
}

func enforcement(e *Endpoint) string {
	if e.Audit {
		return "audit"
	}
	return "enforce"
}

// endpointsMeet reports whether one request could fall under both with equal
// rank. In doubt it says yes.
func endpointsMeet(a, b *endpointSource) bool {
	if !slices.ContainsFunc(a.ports, func(p int) bool { return slices.Contains(b.ports, p) }) {
		return false
	}
	if !destinationsMeet(a, b) {
		return false
	}
	if !programsMeet(a.rule.Binaries, b.rule.Binaries) {
		return false
	}
	if !a.rule.Endpoint.Inspected() || !b.rule.Endpoint.Inspected() {
		return true // whole connections are opened, or are not
	}
	pa, pb := a.rule.Endpoint.Path, b.rule.Endpoint.Path
	if pa == "" {
		pa = "**"
	}
	if pb == "" {
		pb = "**"
	}
	return globLiterals(pa) == globLiterals(pb) && pathGlobsMeet(pa, pb)
}

func programsMeet(a, b []string) bool {
	return len(a) == 0 || len(b) == 0 || slices.ContainsFunc(a, func(x string) bool {
		return slices.ContainsFunc(b, func(y string) bool { return pathGlobsMeet(x, y) })
	})
}

// destinationsMeet compares hosts by name, and whatever says which addresses
// it means by address. A name may stand for any address.
func destinationsMeet(a, b *endpointSource) bool {
	if a.host.pattern != "" && b.host.pattern != "" {
		x, exactX := a.host.exact()
		y, exactY := b.host.exact()
		if exactX && exactY {
			return x == y
		}
		return componentsMeet(a.labels, b.labels)
	}
	pa, pb := a.addresses(), b.addresses()
	return slices.ContainsFunc(pa, func(p netip.Prefix) bool { return slices.ContainsFunc(pb, p.Overlaps) })
}

func (e *endpointSource) addresses() []netip.Prefix {
	if e.addr.IsValid() {
		return []netip.Prefix{e.addr}
	}
	return e.rule.Endpoint.AllowedIPs
}
