package rules

import (
	"fmt"
	"net/netip"
	"strings"
)

// String names the kind as it stands in reasons.
func (k ClaimKind) String() string {
	switch k {
	case ClaimNone:
		return "nothing that names a host"
	case ClaimTLS:
		return "TLS hello"
	case ClaimHTTP:
		return "HTTP request"
	case ClaimOther:
		return "something other than TLS or HTTP"
	default:
		return "broken first bytes"
	}
}

// String returns "deny", "allow" or "inspect".
func (v Verdict) String() string {
	switch v {
	case Allow:
		return "allow"
	case Inspect:
		return "inspect"
	default:
		return "deny"
	}
}

// name is how messages call a rule.
func (r *Rule) name() string {
	if r.ID != "" {
		return r.ID
	}
	return fmt.Sprintf("for %q", r.Destination)
}

// reasonOf is the reason of a decision that a rule makes. It is made once,
// when the rule is indexed, so that decisions need not build it.
func reasonOf(s Source, p *entry) string {
	r := p.rule
	to := r.Destination
	if r.Destination == "" {
		to = "the addresses in allowed_ips"
	}
	verb := " allows "
	if p.effect == refuses {
		verb = " denies "
	}
	if r.ID == "" {
		return "a " + string(s) + " rule" + verb + to + portSuffix(p)
	}
	return string(s) + " rule " + r.ID + verb + to + portSuffix(p)
}

func portSuffix(p *entry) string {
	if p.ports.all() {
		return ""
	}
	if strings.ContainsAny(p.rule.Ports, ",-") {
		return " on ports " + p.rule.Ports
	}
	return " on port " + p.rule.Ports
}

// text is a rule as a user would write it.
func (r *Rule) text() string {
	var b strings.Builder
	b.WriteString(string(r.Action))
	b.WriteByte(' ')
	if r.Destination == "" && r.Endpoint != nil {
		fmt.Fprint(&b, r.Endpoint.AllowedIPs)
	} else {
		b.WriteString(r.Destination)
	}
	if r.Ports != "" && r.Ports != "*" {
		b.WriteString(" ports " + r.Ports)
	}
	if r.Transport != "" && r.Transport != Any {
		b.WriteString(" over " + string(r.Transport))
	}
	if r.Container != "" && r.Container != "*" {
		b.WriteString(" for container " + r.Container)
	}
	if len(r.Binaries) > 0 {
		b.WriteString(" for programs " + strings.Join(r.Binaries, " "))
	}
	if r.Endpoint != nil && r.Endpoint.Inspected() {
		b.WriteString(" inspecting " + string(r.Endpoint.Protocol))
	}
	return b.String()
}

func deny(q *query, layer Source, reason string) Decision {
	return Decision{Verdict: Deny, Layer: layer, Reason: reason, Host: q.host}
}

func look(reason string) Decision {
	return Decision{Verdict: Inspect, Layer: Default, Reason: reason}
}

func needProgram(q *query, o outcome) Decision {
	return Decision{Verdict: Inspect, Layer: Default, Host: q.host, NeedProgram: true,
		Reason: "a rule lists programs, so the one that connects has to be found"}
}

// decision puts an outcome that settles the matter into words.
func (p *Policy) decision(q *query, o outcome) Decision {
	switch {
	case o.entry == nil:
		return deny(q, Default, p.unmatched(q))
	case o.finding == refused:
		return deny(q, AddressGuard, p.refusal(q, o.entry))
	}
	d := Decision{Verdict: Allow, Layer: p.layers[o.layer].source, Rule: o.entry.rule, Reason: o.entry.reason, Host: q.host}
	switch o.finding {
	case denied:
		d.Verdict = Deny
	case unconfirmed:
		d.Verdict = Deny
		d.Reason = fmt.Sprintf("%s only after looking at each request, and nothing confirms that %s is %s", o.entry.reason, q.dialled(), q.host)
	}
	return d
}

func (p *Policy) unmatched(q *query) string {
	why := "no rule of any layer allows " + q.target()
	if q.host == "" && q.captured {
		why += ", an address to which this container resolved no name"
	}
	if q.relayed && q.transport == overUDP {
		why += "; UDP needs a rule that names udp"
	}
	return why + "; default deny"
}

// target is where a flow wants to go, as a person would write it.
func (q *query) target() string {
	s := q.host
	switch {
	case s != "" && q.port == 0:
	case s != "":
		s = fmt.Sprintf("%s:%d", s, q.port)
	case q.addrCount > 0:
		s = netip.AddrPortFrom(q.addrs[0], q.port).String()
	default:
		s = fmt.Sprintf("port %d", q.port)
	}
	if q.transport == overUDP {
		s += " over udp"
	}
	return s
}

func (q *query) dialled() string {
	if q.addrCount == 0 {
		return "its address"
	}
	return q.addrs[0].String()
}

func contradiction(q *query, name string, kind ClaimKind) string {
	return fmt.Sprintf("the client asked for %s in its %s, but this container resolved %s only as %s",
		name, kind, q.dialled(), strings.Join(q.names, ", "))
}
