package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Decide judges a request by what is known about it. It is safe for
// concurrent use and does not allocate when the verdict is Allow, outside
// learning mode and below stage HTTP.
//
// Inspect asks for more facts, and says by NeedProgram, by NeedBody or by the
// stage which. An Allow or Deny never changes when more facts of the same
// flow are added: Decide at Hello first asks what it would have said at
// Connect, and at HTTP what at Hello.
//
// Names and addresses need not be canonical. A request whose Addr is zero and
// that was not Captured asks about a name in general, for explanations and
// policy tests: rules about addresses then do not match, and the guard is
// silent.
func (p *Policy) Decide(r Request) Decision {
	var q query
	return p.decide(&q, &r, nil)
}

// decide fills the zero q and judges it.
func (p *Policy) decide(q *query, r *Request, trace func(Step)) Decision {
	switch {
	case p == nil:
		return deny(q, Default, "no policy is in force; default deny")
	case r.Stage < Resolve || r.Stage > GraphQL:
		return deny(q, Default, "a request without a stage cannot be judged")
	}
	problem := q.read(r, &p.guard)
	var d Decision
	switch {
	case problem != "":
		d = deny(q, Default, problem)
	case r.Stage == Resolve:
		d = p.resolve(q)
	case r.Stage == Connect:
		d = p.connect(q)
	case r.Stage == Hello:
		d = p.hello(q, r.Claim)
	default:
		d = p.request(q, *r, trace)
	}
	if p.asks && problem == "" && d.Verdict == Deny && d.Layer == Default && d.Rule == nil {
		d = p.ask(q, r, d)
	}
	if p.allowAll {
		d = p.learn(q, r.Stage, d)
		if p.inspect != nil && d.Verdict == Allow && r.Stage > Resolve {
			d = p.lookInto(r, d)
		}
	}
	return d
}

// learn lets everything pass that the guard does, whatever the layers say.
func (p *Policy) learn(q *query, s Stage, would Decision) Decision {
	d := Decision{Verdict: Allow, Layer: AllowAll, Reason: p.learning, Host: would.Host, Path: would.Path, Would: &would}
	if s == Resolve || q.worst <= private {
		return d
	}
	// Only what a rule for the address itself says counts here: it is known
	// from the first stage on, so the verdict does not change later.
	q.host, q.unproven = "", false
	o := p.judge(q)
	switch {
	case q.worst.never() || o.finding.denies() && !o.needProgram:
		d = deny(q, AddressGuard, p.refusal(q, nil))
		d.Host, d.Would = would.Host, &would
	case o.needProgram:
		d = needProgram(q, o)
		d.Host, d.Would = would.Host, &would
	}
	return d
}

// connect judges by address and candidates alone, as far as that goes.
func (p *Policy) connect(q *query) Decision {
	if q.transport != overTCP || q.addrCount > 0 && q.addrs[0].IsLoopback() && !q.captured {
		return p.unnarrowed(q) // there are no first bytes to look at
	}
	if len(q.names) == 0 {
		o := p.judge(q)
		switch {
		case o.needProgram:
			return needProgram(q, o)
		case o.finding.denies():
			if p.lurks(q, o, inspects) || p.lurks(q, o, passes) {
				return look("this container resolved no name to the address; the client may still prove one that a rule allows")
			}
		case o.finding == inspected, p.lurks(q, o, refuses), p.lurks(q, o, inspects):
			return look("a rule for a name could come first, so the client has to say which name it wants")
		}
		return p.decision(q, o)
	}
	var first, last outcome
	denials, settled := 0, true
	for i, name := range q.names {
		q.host = name
		last = p.judge(q)
		if last.needProgram {
			return needProgram(q, last)
		}
		if last.finding.denies() {
			denials++
		}
		settled = settled && last.finding == allowedAnyhow && !p.lurks(q, last, refuses) && !p.lurks(q, last, inspects)
		if i == 0 {
			first = last
		}
	}
	q.host, q.won = q.names[0], first
	if settled || denials == len(q.names) {
		return p.decision(q, first)
	}
	d := look("the client's first bytes have to say which name it wants")
	if len(q.names) == 1 {
		d.Host = q.host
	}
	return d
}

// hello judges by what the client's first bytes claim.
func (p *Policy) hello(q *query, c Claim) Decision {
	d := p.connect(q)
	if d.Verdict != Inspect || d.NeedProgram {
		return d
	}
	q.host = ""
	switch {
	case c.Kind == ClaimBroken:
		return deny(q, Default, "the client's first bytes do not say reliably what it wants: "+c.Problem)
	case c.Kind != ClaimTLS && c.Kind != ClaimHTTP:
		return p.unnarrowed(q)
	case c.Name == "":
		return p.nameless(q, c.Kind)
	}
	name, err := lookupName(c.Name)
	switch {
	case errors.Is(err, ErrAddress):
		if a, err := netip.ParseAddr(c.Name); err == nil && plain(a) == q.addrs[0] {
			return p.nameless(q, c.Kind)
		}
		return deny(q, Default, fmt.Sprintf("the client asked for %s in its %s, but dialled %s", c.Name, c.Kind, q.dialled()))
	case err != nil:
		return deny(q, Default, fmt.Sprintf("the client's %s: %v", c.Kind, err))
	case slices.Contains(q.names, name), len(q.names) == 0 && c.Proven:
		if q.host = name; len(q.names) == 1 {
			return p.settle(q, q.won, c.Kind) // as judged at Connect
		}
		return p.settle(q, p.judge(q), c.Kind)
	case len(q.names) > 0:
		return deny(q, Default, contradiction(q, name, c.Kind))
	}
	// The flow has no name. Rules that deny the claimed one apply all the same.
	q.host, q.unproven = name, true
	d = p.settle(q, p.judge(q), c.Kind)
	if d.Rule == nil && d.Verdict == Deny && d.Layer == Default {
		d.Reason = fmt.Sprintf("the client asked for %s in its %s, but that name does not resolve to %s, and no rule allows the address itself", name, c.Kind, q.dialled())
	}
	return d
}

// unnarrowed judges a flow whose client claims nothing: it passes if it would
// under each of the names it can have.
func (p *Policy) unnarrowed(q *query) Decision {
	if len(q.names) == 0 {
		q.host = ""
		return p.settle(q, p.judge(q), ClaimNone)
	}
	var d Decision
	for _, name := range q.names {
		q.host = name
		if d = p.settle(q, p.judge(q), ClaimNone); d.Verdict != Allow {
			if len(q.names) > 1 && d.Verdict == Deny {
				d.Reason = fmt.Sprintf("%s stands for %d names, and nothing in the flow says which: %s", q.dialled(), len(q.names), d.Reason)
			}
			return d
		}
	}
	if len(q.names) > 1 {
		d.Host = ""
	}
	return d
}

// nameless judges a TLS or HTTP flow whose client names no host although the
// protocol has a place for it: rules that allow by name do not help it, rules
// for the address do.
func (p *Policy) nameless(q *query, kind ClaimKind) Decision {
	names := q.names
	if len(names) == 0 {
		names = []string{""}
	}
	var result Decision
	var won outcome
	for _, q.host = range names {
		o := p.judge(q)
		if !o.needProgram && o.finding == allowedByName {
			// A rule for the address may allow it all the same; rules that deny
			// the name still count.
			byName := o
			q.unproven = true
			o = p.judge(q)
			q.unproven = false
			if !o.needProgram && o.finding.denies() {
				o = byName
			}
		}
		if !o.needProgram && (o.finding == allowedByName || o.finding == inspected && o.entry.dest.named()) {
			return deny(q, Default, fmt.Sprintf("the client's %s names no host, and %s only by that name", kind, o.entry.reason))
		}
		d := p.settle(q, o, kind)
		if d.Verdict == Deny || d.NeedProgram {
			return d
		}
		if result.Verdict != Inspect { // to be looked into is the stricter
			result, won = d, o
		}
	}
	q.host, q.won = "", won
	result.Host = ""
	return result
}

// settle turns an outcome into the decision at Hello.
func (p *Policy) settle(q *query, o outcome, kind ClaimKind) Decision {
	q.won = o
	switch {
	case o.needProgram:
		return needProgram(q, o)
	case o.finding != inspected:
		return p.decision(q, o)
	}
	e := o.entry
	d := Decision{Verdict: Inspect, Layer: p.layers[o.layer].source, Rule: e.rule, Reason: e.reason, Host: q.host, Endpoint: e.rule.Endpoint}
	if kind == ClaimHTTP || kind == ClaimTLS && !e.rule.Endpoint.SkipTLS {
		return d
	}
	d.Verdict = Deny
	d.Reason = fmt.Sprintf("%s only after looking at each %s request, and the client sent %s", e.reason, e.rule.Endpoint.Protocol, kind)
	return d
}

// request judges one request of an inspected flow by the endpoints that the
// layer which let it in offers. It takes a copy of the request, because what
// looks into it keeps it on the heap.
func (p *Policy) request(q *query, r Request, trace func(Step)) Decision {
	d := p.hello(q, r.Claim)
	if d.Verdict != Inspect || d.NeedProgram {
		return d
	}
	l := p.layers[q.won.layer]
	var offered []*Rule
	ls := l.lists(nil, q, whole)
	for e := next(ls); e != nil; e = next(ls) {
		if e.rule.Endpoint == nil || slices.Contains(offered, e.rule) {
			continue
		}
		switch q.match(e) {
		case maybe:
			return needProgram(q, outcome{entry: e, layer: q.won.layer})
		case yes:
			if q.admits(e) {
				offered = append(offered, e.rule)
			}
		}
	}
	d = judgeRequest(offered, &r, trace)
	d.Host = q.host
	d.Layer = l.source
	if d.Would != nil {
		d.Would.Host, d.Would.Layer = q.host, l.source
	}
	return d
}
