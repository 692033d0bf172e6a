package proxy

import (
	"context"
	"net/netip"

	"weir/rules"
)

// findProgram learns who opened f.
func (s *Server) findProgram(ctx context.Context, f *record) {
	var found *rules.Program
	if s.Program != nil {
		ctx, cancel := context.WithTimeout(ctx, s.limits.Lookup)
		defer cancel()
		if p, err := s.Program(ctx, f.transport, f.client, f.towards); err == nil {
			found = p
		}
	}
	f.learn(func(r *rules.Request) { r.Program, r.ProgramFailed = found, found == nil })
}

// learnClaim learns what the client's first message says. A name that no
// lookup of the container explains is resolved, but only if a yes could lead
// to more than a refusal: otherwise anybody could send bits to the name
// servers of a denied name.
func (s *Server) learnClaim(ctx context.Context, f *record, claim rules.Claim) {
	r := f.facts(s.now())
	r.Stage, r.Claim = rules.Hello, claim
	if claim.Name != "" && len(r.Names) == 0 && s.Prove != nil {
		r.Claim.Proven = true
		if d := Decide(s.Meter, s.Policy(), r); d.Verdict != rules.Deny {
			ctx, cancel := context.WithTimeout(ctx, s.limits.Lookup)
			defer cancel()
			claim.Proven = s.Prove(ctx, claim.Name, r.Addr)
		}
	}
	f.learn(func(r *rules.Request) { r.Stage, r.Claim = rules.Hello, claim })
}

// wantsName says whether f is let through by learning mode: its first message
// says which name it wants, which the layered rules and whoever learns a policy
// from its event have to know.
func (f *flow) wantsName() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.unheard && f.decision.Verdict == rules.Allow && f.decision.Would != nil
}

// watch returns what looks at a client's first message while it passes. It
// holds nothing up: what takes time is done beside the connection.
func (s *Server) watch(ctx context.Context, f *flow, dst netip.AddrPort) func([]byte) bool {
	return func(b []byte) (more bool) {
		claim, need := classify(b, dst, s.limits.PeekBytes, false)
		if need > 0 {
			if !f.waiting {
				f.waiting = s.gauges.peeking.enter()
			}
			return f.waiting // no place: it stays without a name
		}
		unproven := claim.Name != "" && len(f.facts(s.now()).Names) == 0
		if !unproven {
			s.learnClaim(ctx, &f.record, claim) // at once, so that a change of the policy finds it
		}
		f.passing.Go(func() {
			defer s.caught(f)
			if unproven {
				s.learnClaim(ctx, &f.record, claim)
			}
			s.learnWould(ctx, &f.record)
		})
		return false
	}
}

// learnWould asks again what the layered rules would say to f.
func (s *Server) learnWould(ctx context.Context, f *record) {
	for {
		d := Decide(s.Meter, s.Policy(), f.facts(s.now()))
		if d.Would == nil {
			return // learning has ended; Rejudge sees to f
		}
		if r := f.facts(s.now()); d.Would.NeedProgram && r.Program == nil && !r.ProgramFailed {
			s.findProgram(ctx, f)
			continue
		}
		f.mu.Lock()
		if !f.final && f.decision.Would != nil {
			f.decision.Would = d.Would
		}
		f.mu.Unlock()
		return
	}
}

// learnRest settles what the event says of a flow that learning mode let
// through and that ended before its first message was complete.
func (s *Server) learnRest(ctx context.Context, f *flow) {
	if f.waiting {
		s.gauges.peeking.leave()
		f.waiting = false
	}
	f.passing.Wait()
	if f.wantsName() && f.facts(s.now()).Claim.Kind == rules.ClaimNone {
		f.learn(func(r *rules.Request) { r.Stage = rules.Hello })
		s.learnWould(ctx, &f.record)
	}
}
