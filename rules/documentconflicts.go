package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
			other := a.String()
			switch {
			case !eb.Inspected():
				d.warnUninspected(b, a)
			case !ea.Inspected():
				d.warnUninspected(a, b)
			case ea.Protocol != eb.Protocol:
				d.fail(b.at, "this endpoint has protocol: %s, but %s covers the same requests with equal rank and protocol: %s; give one a more specific path", eb.Protocol, other, ea.Protocol)
			default:
				d.fail(b.at, "this endpoint has enforcement: %s, but %s covers the same requests with equal rank and enforcement: %s; give both the same", enforcement(eb), other, enforcement(ea))
			}
		}
	}
}

// warnUninspected says what becomes of requests to an endpoint that is not
// inspected where one that is matches as well: the more specific rule wins.
func (d *documentReader) warnUninspected(open, inspected *endpointSource) {
	if open.first < inspected.last {
		d.warn(open.at, "connections that this endpoint allows are not inspected, because it is more specific than %s, which would inspect them", inspected)
		return
	}
	d.warn(open.at, "requests to this endpoint are inspected all the same where %s matches too, and denied where nothing allows them", inspected)
}

// checkPlain finds plain rules that let pass uninspected what an endpoint would
// inspect. One warning for each rule is enough.
func (d *documentReader) checkPlain(plain []plainSource, endpoints []endpointSource) {
	for i := range plain {
		p := &plain[i]
		if p.rule.Action != ActionAllow || p.entry.transports&overTCP == 0 || len(d.warnings) >= maxProblems {
			continue
		}
		rank := p.entry.specificity()
		j := slices.IndexFunc(endpoints, func(e endpointSource) bool {
			return e.rule.Endpoint.Inspected() && rank < e.last && p.meets(&e)
		})
		if j >= 0 {
			d.warn(p.at, "connections that this rule allows are not inspected, because it is more specific than %s, which would inspect them", &endpoints[j])
		}
	}
}

// meets reports whether one connection could fall under both.
func (p *plainSource) meets(e *endpointSource) bool {
	if !slices.ContainsFunc(e.ports, func(port int) bool { return p.entry.ports.contains(uint16(port)) }) {
		return false
	}
	same := false
	switch d := &p.entry.dest; d.kind {
	case exactly:
		same = e.host.match(d.name)
	case below:
		same = componentsMeet(append([]string{"*", "**"}, strings.Split(d.name, ".")...), e.labels)
	case within:
		same = componentsMeet(append([]string{"**"}, strings.Split(d.name, ".")...), e.labels)
	case address, network:
		same = slices.ContainsFunc(e.addresses(), d.prefix.Overlaps)
	}
	return same && programsMeet(p.rule.Binaries, e.rule.Binaries)
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

// String names the endpoint, for a person.
func (e *endpointSource) String() string {
	line, _ := nodePosition(e.at)
	return fmt.Sprintf("the endpoint of network_policies.%s on line %d", e.rule.Endpoint.Policy, line)
}

func (e *endpointSource) addresses() []netip.Prefix {
	if e.addr.IsValid() {
		return []netip.Prefix{e.addr}
	}
	return e.rule.Endpoint.AllowedIPs
}
