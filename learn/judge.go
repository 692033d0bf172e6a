package learn

import (
	"time"

	"weir/audit"
	"weir/rules"
)

// judge asks what a policy makes of an observation. inspect says that it is a
// connection whose requests would be judged one by one.
//
// The program's ancestors and the query of a request are not recorded: a rule
// that needs them does not match.
func judge(p *rules.Policy, o *Observation, who rules.Container, now time.Time) (d rules.Decision, inspect bool) {
	r := rules.Request{
		Time: now, Container: who, Stage: rules.Hello, Transport: o.Transport,
		Addr: o.Address, Port: o.Port, Captured: true, ProgramFailed: true,
	}
	// What the client said first is not recorded: it named the host, if any.
	r.Claim = rules.Claim{Kind: rules.ClaimTLS, Name: o.Host}
	if o.Host != "" {
		r.Names = []string{o.Host}
	}
	if o.Binary != "" {
		r.Program, r.ProgramFailed = &rules.Program{Path: o.Binary}, false
	}
	switch o.Type {
	case audit.DNS:
		r.Stage, r.Captured = rules.Resolve, false
		return p.Decide(r), false
	case audit.Connect:
		d = p.Decide(r)
		return d, d.Verdict == rules.Inspect
	}
	r.Stage = rules.HTTP
	r.HTTP = &rules.HTTPRequest{Method: o.Method, Target: o.Path, Upgrade: o.Upgrade}
	d = p.Decide(r)
	if d.Verdict != rules.Inspect {
		return d, false
	}
	if len(o.Operations) == 0 {
		d.Verdict, d.Reason = rules.Deny, d.Reason+", and it was not seen to be GraphQL"
		return d, false
	}
	r.Stage, r.Operations = rules.GraphQL, o.Operations
	return p.Decide(r), false
}
