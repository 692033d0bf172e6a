package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"time"

	"weir/rules"
)

// handle is one connection, from top to bottom.
func (s *Server) handle(ctx context.Context, f *flow) {
	defer s.done(ctx, f)
	defer s.caught(f)

	client, dst, err := s.begin(f)
	if err != nil {
		f.cut(deny(rules.AddressGuard, "%v", err))
		return
	}
	dst, verdict := s.settle(ctx, f, dst)
	switch verdict {
	case rules.Allow:
		s.pass(ctx, f, client, dst)
	case rules.Inspect:
		s.inspect(ctx, f, dst)
	}
}

// begin learns what is known of f before it said anything.
func (s *Server) begin(f *flow) (client side, dst netip.AddrPort, err error) {
	if dst, err = s.destination(f); err != nil {
		return client, dst, err
	}
	f.towards = dst
	if name, ok := s.standsFor(dst.Addr()); ok {
		f.nameOnly = true
		f.learn(func(r *rules.Request) {
			r.Names, r.Port, r.Captured, r.Relayed = []string{name}, dst.Port(), false, true
		})
	} else {
		var names []string
		if s.Names != nil {
			names = s.Names(dst.Addr(), f.started)
		}
		f.learn(func(r *rules.Request) { r.Addr, r.Port, r.Names = dst.Addr(), dst.Port(), names })
	}
	if client, err = sideOf(f.c); err != nil {
		return client, dst, fmt.Errorf("the client is gone: %w", err)
	}
	f.out.init(client, side{}, &f.moved.out, &s.stores)
	return client, dst, nil
}

// settle decides on f, listening to it and asking a person if that is needed,
// and cuts it unless the answer is Allow or an Inspect that can be served. dst
// is where f really goes, then. It is apart from
// handle because what it needs of the stack would otherwise stay with the
// goroutine for as long as the connection lasts.
func (s *Server) settle(ctx context.Context, f *flow, dst netip.AddrPort) (netip.AddrPort, rules.Verdict) {
	d := s.judge(ctx, &f.record)
	if d.Verdict == rules.Inspect {
		d = s.hear(ctx, f, dst)
	}
	if d.Askable {
		d = s.ask(ctx, f)
	}
	if f.nameOnly && d.Verdict != rules.Deny {
		var err error
		if dst, err = s.find(ctx, f); err != nil {
			f.fail("could not resolve the name: " + err.Error())
			return dst, rules.Deny
		}
		if d = s.judge(ctx, &f.record); d.Askable {
			d = s.ask(ctx, f) // what may be known by its address is not what was allowed
		}
	}
	switch {
	case d.Verdict == rules.Inspect && d.Endpoint == nil:
		d = deny(rules.Default, "the policy leaves it open: %s", d.Reason)
	case d.Verdict == rules.Inspect && s.Relay == nil:
		d.Verdict, d.Reason = rules.Deny, d.Reason+"; inspected connections are not served here"
	}
	if d.Verdict == rules.Deny {
		f.cut(d)
	}
	return dst, d.Verdict
}

// standsFor returns the name that an address was given out for in the place of
// its own.
func (s *Server) standsFor(a netip.Addr) (name string, ok bool) {
	if s.StandsFor == nil {
		return "", false
	}
	return s.StandsFor(a)
}

// destination asks the kernel where the client wanted to go.
func (s *Server) destination(f *flow) (netip.AddrPort, error) {
	dst, err := s.OriginalDst(f.c)
	if err != nil {
		return dst, fmt.Errorf("made to Weir's listener itself, or its destination is not known: %w", err)
	}
	dst = netip.AddrPortFrom(dst.Addr().Unmap().WithZone(""), dst.Port())
	if !dst.IsValid() || dst == addrPort(f.c.LocalAddr()) {
		return dst, errors.New("made to Weir's listener itself; nothing is proxied on request")
	}
	return dst, nil
}

// judge asks the policy about f as it is known, finding the program first if
// that is what is missing.
func (s *Server) judge(ctx context.Context, f *record) rules.Decision {
	for {
		generation := s.generation.Load()
		p := s.Policy()
		r := f.facts(s.now())
		d := Decide(s.Meter, p.With(f.allowedOnce()), r)
		if d.Verdict == rules.Inspect && d.NeedProgram && r.Program == nil && !r.ProgramFailed {
			s.findProgram(ctx, f)
			continue
		}
		session := ""
		if p != nil {
			session = p.Session()
		}
		f.setDecision(d, session, generation)
		if generation == s.generation.Load() {
			return d
		}
	}
}

// hear waits for the client's first message and judges by what it says.
func (s *Server) hear(ctx context.Context, f *flow, dst netip.AddrPort) rules.Decision {
	claim, err := s.look(&f.out, time.Now().Add(s.limits.Silence), dst)
	if err == nil && claim.Kind == rules.ClaimNone {
		d := s.judgeClaim(ctx, f, claim)
		if d.Verdict == rules.Allow || d.Askable {
			f.unheard = true
			return d
		}
		// Silence is not enough. The client may only be slow to speak.
		claim, err = s.look(&f.out, f.since.Add(s.limits.Hello), dst)
	}
	switch {
	case errors.Is(err, errPeekFull):
		return deny(rules.Default, "%s", s.gauges.peeking.full())
	case err != nil && err != io.EOF:
		return deny(rules.Default, "ended before it said whom it wants to reach: %v", plainError(err))
	}
	return s.judgeClaim(ctx, f, claim)
}

// judgeClaim judges f by its first message.
func (s *Server) judgeClaim(ctx context.Context, f *flow, claim rules.Claim) rules.Decision {
	s.learnClaim(ctx, &f.record, claim)
	return s.judge(ctx, &f.record)
}

// pass connects f to its destination and moves bytes until both sides ended.
func (s *Server) pass(ctx context.Context, f *flow, client side, dst netip.AddrPort) {
	found := s.learnProgram(ctx, f)
	up, err := s.open(ctx, dst)
	found()
	if err != nil {
		f.fail("could not connect: " + err.Error())
		return
	}
	outside, err := sideOf(up)
	if err != nil || !f.goLive(up, false) {
		abort(up)
		return
	}
	defer s.hold(&f.record, dst)()
	if f.judgedAt() != s.generation.Load() {
		f.rejudge(ctx, s) // the policy changed while this was dialled
	}
	f.out.dst = outside
	f.in.init(outside, client, &f.moved.in, &s.stores)
	if f.wantsName() {
		f.out.seen = s.watch(ctx, f, dst)
	}
	back := make(chan struct{})
	go s.passBack(f, back)
	s.passOut(ctx, f, dst)
	<-back
}

// hold has the name that counted for f go on to count while f lives, so that
// a client that keeps a connection and its resolver's answer can open another.
func (s *Server) hold(f *record, dst netip.AddrPort) (release func()) {
	if host := f.verdict().Host; s.Hold != nil && host != "" {
		release, _ = s.Hold(host, dst.Addr())
		return release
	}
	return func() {}
}

// passOut moves bytes from the container to the outside.
func (s *Server) passOut(ctx context.Context, f *flow, dst netip.AddrPort) {
	defer s.caught(f)
	if f.unheard && !s.hearLate(ctx, f, dst) {
		return
	}
	if err := f.out.run(); err != nil {
		f.hangUp()
	}
}

// hearLate judges what a client says first that was allowed as a silent one,
// before any of it goes out.
func (s *Server) hearLate(ctx context.Context, f *flow, dst netip.AddrPort) (goesOn bool) {
	claim, err := s.look(&f.out, time.Time{}, dst)
	switch {
	case errors.Is(err, errPeekFull):
		f.cut(deny(rules.Default, "%s", s.gauges.peeking.full()))
		return false
	case err != nil && err != io.EOF:
		f.hangUp()
		return false
	case claim.Kind == rules.ClaimNone:
		return true // it ended without a word
	}
	s.learnClaim(ctx, &f.record, claim)
	return f.rejudge(ctx, s)
}

// passBack moves bytes from the outside to the container.
func (s *Server) passBack(f *flow, ended chan<- struct{}) {
	defer close(ended)
	defer s.caught(f)
	if err := f.in.run(); err != nil {
		f.hangUp()
	}
}

// done ends f: both sides closed, one event, its place given back.
func (s *Server) done(ctx context.Context, f *flow) {
	s.learnRest(ctx, f)
	f.close()
	s.Record(f.event(s.now()))
	s.unregister(f)
}

// caught turns a panic in the handling of one party into its refusal.
func (s *Server) caught(f party) {
	if p := recover(); p != nil {
		s.log.Error("panic in a connection", "container", s.Container.Name, "panic", p, "stack", string(debug.Stack()))
		f.cut(deny(rules.Default, "internal error: %v", p))
		f.hangUp()
	}
}
