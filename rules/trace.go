package rules

import (
	"fmt"
	"time"
)

// maxSteps bounds the part of a trace that one layer fills for one name.
const maxSteps = 200

// Explain is Decide with the Trace filled: for each name that the flow can
// have, every layer that was looked at, in the order of precedence, with the
// rules for this destination and why each won, lost or did not match; then,
// for a request of an inspected flow, what its endpoints said. A layer with
// more than 200 rules for one destination is cut short.
func (p *Policy) Explain(r Request) Decision {
	var q query
	var requestSteps []Step
	d := p.decide(&q, &r, func(s Step) { requestSteps = append(requestSteps, s) })
	if p == nil {
		return d
	}
	hosts := q.names
	if d.Host != "" || len(hosts) == 0 {
		hosts = []string{d.Host}
	}
	for _, q.host = range hosts {
		d.Trace = p.trace(&q, r.Stage, &d, d.Trace)
	}
	d.Trace = append(d.Trace, requestSteps...)
	if d.Rule == nil {
		d.Trace = append(d.Trace, Step{Layer: d.Layer, Text: d.Verdict.String(), Matched: true, Won: true, Why: d.Reason})
	}
	return d
}

// trace appends the walk through the layers under the name q.host.
func (p *Policy) trace(q *query, s Stage, d *Decision, steps []Step) []Step {
	var won outcome
	if s != Resolve {
		won = p.judge(q)
	}
	for i, l := range p.layers {
		ls := l.lists(nil, q, whole)
		head := len(steps)
		steps = append(steps, Step{Layer: l.source, Text: count(l.count, "rule")})
		var seen *entry
		for e := next(ls); e != nil; e = next(ls) {
			if e == seen {
				continue // the container's name and id both match
			}
			seen = e
			if len(steps)-head > maxSteps {
				steps = append(steps, Step{Layer: l.source, Text: "…", Why: "more rules are for this destination than a trace shows"})
				break
			}
			step := Step{Layer: l.source, Rule: e.rule.ID, Text: e.rule.text(), Matched: q.match(e) != no}
			wins := e == won.entry || s == Resolve && e.rule == d.Rule
			switch {
			case !step.Matched:
				step.Why = q.mismatch(e)
			case wins && e.rule == d.Rule:
				step.Won, step.Why = true, d.Reason
			case wins:
				step.Won, step.Why = d.Rule == nil && d.Layer != AddressGuard, "the first match under the name "+q.target()
			case s == Resolve:
				step.Why = "does not settle whether some flow to the name could be allowed"
			case won.entry != nil && won.layer < i:
				step.Why = "a rule of the " + string(p.layers[won.layer].source) + " layer comes first"
			case won.entry != nil && won.layer == i && won.entry.before(e):
				step.Why = e.rank.against(won.entry.rank)
			default:
				step.Why = "applies to some programs only, and the one that connects is not known yet"
			}
			steps = append(steps, step)
		}
		concern := len(steps) - head - 1
		steps[head].Matched = concern > 0
		switch {
		case concern > 0:
			steps[head].Why = fmt.Sprintf("%d for %s", concern, q.target())
		case l.count > 0:
			steps[head].Why = "none for " + q.target()
		}
	}
	return steps
}

// count is a number of things, as a person says it.
func count(n int, thing string) string {
	switch n {
	case 0:
		return "no " + thing + "s"
	case 1:
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// mismatch says why an entry for the query's destination does not match.
func (q *query) mismatch(e *entry) string {
	switch {
	case !live(e.rule, q.time):
		return "expired at " + e.rule.Expires.UTC().Format(time.RFC3339)
	case e.transports&q.transport == 0:
		return "for another transport"
	case q.transport != overBoth && !e.ports.contains(q.port):
		return "for other ports"
	case q.unprovable(e):
		return "for any transport, and only a rule that names udp lets UDP out, because UDP proves no name"
	case q.matchProgram(e.binaries) == no && q.program == nil:
		return "lists programs, and the one that connects could not be found"
	case q.matchProgram(e.binaries) == no:
		return "lists programs, and " + q.program.Path + " and its ancestors are not among them"
	case e.dest.kind == below && q.host == e.dest.name:
		return "for names below " + e.dest.name + ", not for itself"
	case e.dest.named() && q.unproven:
		return "for a name that the client only claims"
	case e.dest.named() && isLocalhost(e.dest.name):
		return "localhost means the loopback, and this address is elsewhere"
	case q.addrCount > 0 && len(e.allowedIPs()) > 0 && !inAny(e.allowedIPs(), q.addrs[0]):
		return "its allowed_ips do not hold the address"
	default:
		return "its destination does not match"
	}
}
