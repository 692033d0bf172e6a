package proxy

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/audit"
	"weir/rules"
)

// A party is what its container has open to the outside: a connection or a
// UDP association.
type party interface {
	base() *record
	snapshot() Flow
	// cut ends it for the reason of a decision; false if it was cut before.
	cut(d rules.Decision) bool
	// stop ends it for a reason that is no verdict.
	stop(note string)
	// hangUp ends it after one of its sides failed.
	hangUp()
	// rejudge judges it anew and cuts it if it may not go on.
	rejudge(ctx context.Context, s *Server) (goesOn bool)
}

// A record is what is known of a party, what was decided about it, and what it
// has moved.
type record struct {
	id        uint64
	transport rules.Transport
	started   time.Time // of the Server's clock
	since     time.Time // of the real clock, for the duration
	client    netip.AddrPort
	towards   netip.AddrPort                 // where the client's own socket goes
	moved     struct{ in, out atomic.Int64 } // bytes
	datagrams struct{ in, out atomic.Int64 } // over UDP

	// passing: learning mode, where looking must not hold anything up.
	passing sync.WaitGroup

	mu       sync.Mutex
	request  rules.Request  // the facts so far
	decision rules.Decision // the latest
	judged   uint64         // the generation it is of
	once     *rules.Layer   // what a person allowed for it alone; nil: nothing
	session  string         // current when it was made
	note     string         // what else the event's reason says
	final    bool           // cut: decision and note stay as they are
	live     bool

	idle struct { // the sweeper's only
		moved int64
		since time.Time
	}
}

// start fills in what is known of a record from the first.
func (s *Server) start(f *record, transport rules.Transport, client netip.AddrPort) {
	f.transport, f.started, f.since, f.client = transport, s.now(), time.Now(), client
	f.request = rules.Request{Container: s.Container, Stage: rules.Connect, Transport: transport, Captured: true}
	f.decision = deny(rules.Default, "not judged yet")
	f.idle.since = f.since
}

func (f *record) base() *record { return f }

// sweepIdle closes what moved nothing for long over a transport.
func (s *Server) sweepIdle(transport rules.Transport, limit time.Duration, now time.Time) {
	for _, p := range s.all() {
		f := p.base()
		if f.transport != transport {
			continue
		}
		if moved := f.moved.in.Load() + f.moved.out.Load() + f.datagrams.in.Load() + f.datagrams.out.Load(); moved != f.idle.moved {
			f.idle.moved, f.idle.since = moved, now
		} else if now.Sub(f.idle.since) >= limit {
			p.stop("closed after " + limit.String() + " without traffic")
		}
	}
}

func (s *Server) cutAll(transport rules.Transport, note string) {
	for _, p := range s.all() {
		if p.base().transport == transport {
			p.stop(note)
		}
	}
}

// all returns what is registered, oldest first.
func (s *Server) all() []party {
	s.init()
	s.mu.Lock()
	fs := make([]party, 0, len(s.flows))
	for _, f := range s.flows {
		fs = append(fs, f)
	}
	s.mu.Unlock()
	slices.SortFunc(fs, func(a, b party) int { return cmp.Compare(a.base().id, b.base().id) })
	return fs
}

func (f *record) isLive() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live && !f.final
}

// facts returns what is known, as of now.
func (f *record) facts(now time.Time) rules.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.request
	r.Time = now
	return r
}

// learn adds a fact.
func (f *record) learn(add func(r *rules.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add(&f.request)
}

// setDecision keeps the latest decision unless the flow was cut with another.
func (f *record) setDecision(d rules.Decision, session string, generation uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.final {
		f.decision, f.session, f.judged = d, session, generation
	}
}

// verdict is the latest decision.
func (f *record) verdict() rules.Decision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.decision
}

func (f *record) allowedOnce() *rules.Layer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.once
}

// judgedFor is the session that was current when f was judged last.
func (f *record) judgedFor() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.session
}

func (f *record) judgedAt() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.judged
}

// snapshot is for holders of mu.
func (f *record) snapshot() Flow {
	now := Flow{
		ID: f.id, Transport: f.transport, Started: f.started, Client: f.client,
		Destination: netip.AddrPortFrom(f.request.Addr, f.request.Port),
		Live:        f.live,
		Host:        hostOf(f.decision, f.request), Layer: f.decision.Layer, Rule: f.decision.Rule, Reason: f.decision.Reason,
		BytesIn: f.moved.in.Load(), BytesOut: f.moved.out.Load(),
		DatagramsIn: f.datagrams.in.Load(), DatagramsOut: f.datagrams.out.Load(),
	}
	if f.request.Program != nil {
		now.Binary = f.request.Program.Path
	}
	return now
}

// event is the flow's one event.
func (f *record) event(now time.Time) audit.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, r := f.decision, f.request
	e := decided(audit.Connect, now, &r, &d, f.session)
	e.Host = hostOf(d, r)
	e.BytesIn, e.BytesOut = f.moved.in.Load(), f.moved.out.Load()
	e.DurationMS = time.Since(f.since).Milliseconds()
	if e.Verdict == "inspect" {
		e.Verdict = "allow" // its requests have their own events
	}
	if f.note != "" {
		e.Reason += "; " + f.note
	}
	return e
}

// decided is an event of what was decided on a flow, or on something in it.
func decided(kind audit.Type, now time.Time, r *rules.Request, d *rules.Decision, session string) audit.Event {
	e := audit.Event{
		Time:          now,
		Type:          kind,
		ContainerID:   r.Container.ID,
		ContainerName: r.Container.Name,
		SessionID:     session,
		Verdict:       verdict(d.Verdict),
		Layer:         string(d.Layer),
		Reason:        d.Reason,
		Port:          r.Port,
		Transport:     string(r.Transport),
	}
	if r.Addr.IsValid() {
		e.Address = r.Addr.String()
	}
	if d.Rule != nil {
		e.RuleID = d.Rule.ID
	}
	if r.Program != nil {
		e.Binary = r.Program.Path
	}
	if w := d.Would; w != nil {
		e.Would = &audit.Would{Verdict: verdict(w.Verdict), Reason: w.Reason}
		if w.Rule != nil {
			e.Would.RuleID = w.Rule.ID
		}
	}
	return e
}

// hostOf is the name that counted. In learning mode the layered rules know
// it; only a name that is certain is told, because policies are learned from
// it, and what a client merely claims must not get into them.
func hostOf(d rules.Decision, r rules.Request) string {
	if d.Would == nil {
		return d.Host
	}
	switch claimed := r.Claim.Name; {
	case claimed != "" && (r.Claim.Proven || slices.Contains(r.Names, claimed)):
		return claimed
	case claimed == "" && len(r.Names) == 1 && r.Claim.Kind != rules.ClaimTLS && r.Claim.Kind != rules.ClaimHTTP:
		// Where TLS or HTTP has a place for the name and says none, a rule
		// for the name would not let it pass.
		return r.Names[0]
	}
	return ""
}

func verdict(v rules.Verdict) string {
	switch v {
	case rules.Allow:
		return "allow"
	case rules.Inspect:
		return "inspect"
	}
	return "deny"
}
