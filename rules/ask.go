package rules

import (
	"fmt"
	"net/netip"
	"slices"
)

// OnceLayer is a layer with the one rule that a person's answer for one flow
// amounts to: host, or a without a host, may be reached on a port. It comes
// after all others, so that a rule which denies still does, and what it allows
// is held against the guard like everything. reason is that of its decisions.
func OnceLayer(host string, a netip.Addr, port uint16, reason string) (*Layer, error) {
	r := Rule{Source: Asked, Destination: host, Ports: "*", Transport: Any, Action: ActionAllow}
	if host == "" {
		r.Destination = plain(a).String()
	}
	if port != 0 {
		r.Ports = fmt.Sprint(port)
	}
	l, err := NewLayer(Asked, []Rule{r})
	if err != nil {
		return nil, err
	}
	l.parts[0].entries[0].reason = reason
	return l, nil
}

// With returns a policy that has l, from OnceLayer, as well, and does not ask
// again. A nil layer changes nothing.
func (p *Policy) With(l *Layer) *Policy {
	if p == nil || l == nil {
		return p
	}
	with := *p
	with.layers, with.asks = append(slices.Clip(p.layers), l), false
	return &with
}

// ask says of a flow that the default refuses whether a person could allow it:
// whether the rule that the answer amounts to would let it pass. At Connect
// that depends on the name that the client will claim, so it has to be heard.
func (p *Policy) ask(q *query, r *Request, d Decision) Decision {
	known := r.Stage != Resolve
	switch {
	case r.Stage > Hello, known && r.Transport != TCP, r.Claim.Kind == ClaimBroken,
		known && q.worst > private: // takes a rule that somebody has thought about
		return d
	case r.Stage == Connect:
		candidates := q.names
		if len(candidates) == 0 {
			candidates = []string{""}
		}
		if slices.ContainsFunc(candidates, func(host string) bool { return p.allowing(q, r, host).Verdict != Deny }) {
			host := d.Host
			if d = look(d.Reason + "; a person can be asked once the client has said what it wants"); len(q.names) == 1 {
				d.Host = host
			}
		}
		return d
	}
	host, ok := q.narrowed(r.Claim)
	if !ok {
		return d
	}
	switch with := p.allowing(q, r, host); {
	case with.NeedProgram: // a rule that denies some programs would come first
		return with
	case with.Verdict != Deny:
		if q.host = host; host != "" && host != d.Host {
			d.Reason = p.unmatched(q)
		}
		d.Askable, d.Host = true, host
	}
	return d
}

// narrowed is the name that a person is asked about, "" for the address; false
// if the flow can have several and nothing says which.
func (q *query) narrowed(c Claim) (host string, ok bool) {
	if c.Kind == ClaimTLS || c.Kind == ClaimHTTP {
		if name, err := lookupName(c.Name); err == nil && (slices.Contains(q.names, name) || len(q.names) == 0 && c.Proven) {
			return name, true
		}
	}
	switch len(q.names) {
	case 0:
		return "", true
	case 1:
		return q.names[0], true
	}
	return "", false
}

// allowing is the decision on r if host, or the address without a host, were
// allowed.
func (p *Policy) allowing(q *query, r *Request, host string) Decision {
	if host == "" && q.addrCount == 0 {
		return deny(q, Default, noAddress)
	}
	l, err := OnceLayer(host, q.addrs[0], r.Port, "")
	if err != nil {
		return deny(q, Default, err.Error())
	}
	return p.With(l).Decide(*r)
}
