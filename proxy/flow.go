package proxy

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/audit"
	"weir/rules"
)

// A Flow is a connection as it is at one moment.
type Flow struct {
	ID          uint64         // unique in its Server
	Started     time.Time      // when it was accepted
	Client      netip.AddrPort // in the container
	Destination netip.AddrPort // what is dialled
	// Live: connected to the outside. Otherwise it is still being judged or
	// dialled, and the fields below say what is known so far.
	Live      bool
	Inspected bool   // requests are judged one by one
	Host      string // the name that counted, or ""
	Layer     rules.Source
	Rule      *rules.Rule // nil: none; not to be changed
	Reason    string
	Binary    string // if it had to be found
	BytesIn   int64  // from the outside to the container
	BytesOut  int64  // from the container to the outside
}

// A flow is one accepted connection. It is registered from the moment it is
// accepted until its event is recorded.
type flow struct {
	id      uint64
	started time.Time // of the Server's clock
	since   time.Time // of the real clock, for the duration
	client  netip.AddrPort
	in, out pump // in: outside → container
	moved   struct{ in, out atomic.Int64 }

	// passing: learning mode, where looking must not hold anything up.
	passing sync.WaitGroup

	// For the goroutine that handles it only.
	unheard bool // allowed as a silent client; its first bytes are still to be judged
	waiting bool // counted by the gauge of unfinished first messages while passing on

	mu       sync.Mutex
	request  rules.Request  // the facts so far
	decision rules.Decision // the latest
	judged   uint64         // the generation it is of
	session  string         // current when it was made
	note     string         // what else the event's reason says
	final    bool           // cut: decision and note stay as they are
	relayed  bool
	live     bool
	c, up    *net.TCPConn
	release  context.CancelFunc // ends a relay; nil without one

	idle struct { // the sweeper's only
		moved int64
		since time.Time
	}
}

// register makes a flow of an accepted connection; false after Shutdown.
func (s *Server) register(c *net.TCPConn) (*flow, bool) {
	f := &flow{started: s.now(), since: time.Now(), client: addrPort(c.RemoteAddr()), c: c}
	f.request = rules.Request{Container: s.Container, Stage: rules.Connect, Transport: rules.TCP, Captured: true}
	f.decision = deny(rules.Default, "not judged yet")
	f.idle.since = f.since
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, false
	}
	s.lastID++
	f.id = s.lastID
	s.flows[f.id] = f
	s.handlers.Add(1)
	return f, true
}

// unregister forgets a flow whose event is recorded.
func (s *Server) unregister(f *flow) {
	s.mu.Lock()
	delete(s.flows, f.id)
	s.mu.Unlock()
	s.gauges.connections.leave()
	s.handlers.Done()
}

// Flows returns the connections that are open now, oldest first.
func (s *Server) Flows() []Flow {
	fs := s.all()
	list := make([]Flow, len(fs))
	for i, f := range fs {
		list[i] = f.snapshot()
	}
	return list
}

// Kill cuts a connection. It reports whether there was one with that id.
func (s *Server) Kill(id uint64) bool {
	s.mu.Lock()
	f := s.flows[id]
	s.mu.Unlock()
	if f == nil {
		return false
	}
	return f.cut(deny(rules.Default, "cut on request"))
}

// Rejudge judges every live connection again, by the current policy and clock
// and on the facts that it was allowed on; those now refused are reset and
// their events say so. A connection whose first bytes nobody had to look at
// counts as one that said nothing. Call it after each change of what Policy
// returns and when a rule or session has expired. It may take a while where a
// rule asks for the first time which program opened a connection.
func (s *Server) Rejudge() {
	s.generation.Add(1)
	for _, f := range s.all() {
		f.mu.Lock()
		live := f.live && !f.final
		f.mu.Unlock()
		if live {
			s.rejudge(context.Background(), f) // every wait has its own limit
		}
	}
}

// rejudge judges a live flow and cuts it if it may not go on.
func (s *Server) rejudge(ctx context.Context, f *flow) (goesOn bool) {
	d := s.judge(ctx, f)
	f.mu.Lock()
	relayed := f.relayed
	f.mu.Unlock()
	switch {
	case d.Verdict == rules.Deny:
		d.Reason = "allowed before, cut now: " + d.Reason
		f.cut(d)
	case d.Verdict == rules.Inspect && !relayed && d.Layer != rules.AllowAll: // learning only looks
		d.Verdict = rules.Deny
		d.Reason = "the policy changed and the connection would have to be inspected from its start: " + d.Reason
		f.cut(d)
	default:
		return true
	}
	return false
}

// sweepIdle closes the flows that moved nothing for Limits.Idle.
func (s *Server) sweepIdle(now time.Time) {
	for _, f := range s.all() {
		if moved := f.moved.in.Load() + f.moved.out.Load(); moved != f.idle.moved {
			f.idle.moved, f.idle.since = moved, now
		} else if now.Sub(f.idle.since) >= s.limits.Idle {
			f.stop("closed after " + s.limits.Idle.String() + " without traffic")
		}
	}
}

func (s *Server) cutAll(note string) {
	for _, f := range s.all() {
		f.stop(note)
	}
}

// all returns the registered flows, oldest first.
func (s *Server) all() []*flow {
	s.init()
	s.mu.Lock()
	fs := make([]*flow, 0, len(s.flows))
	for _, f := range s.flows {
		fs = append(fs, f)
	}
	s.mu.Unlock()
	slices.SortFunc(fs, func(a, b *flow) int { return cmp.Compare(a.id, b.id) })
	return fs
}

// cut resets both sides, for the reason of a decision; false if it was cut before.
func (f *flow) cut(d rules.Decision) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.final {
		return false
	}
	f.final, f.decision = true, d
	f.reset()
	return true
}

// stop resets both sides for a reason that is no verdict.
func (f *flow) stop(note string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.final {
		return
	}
	f.final, f.note = true, note
	if f.decision.Verdict == rules.Inspect && !f.live {
		f.decision.Verdict = rules.Deny
	}
	f.reset()
}

// fail resets both sides for something that went wrong, which is no verdict.
func (f *flow) fail(note string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.final {
		f.note = note
	}
	f.reset()
}

// hangUp resets both sides after one of them failed.
func (f *flow) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset()
}

// reset is for holders of mu.
func (f *flow) reset() {
	abort(f.c)
	abort(f.up)
	if f.release != nil {
		f.release()
	}
}

// close ends what ended well; anything else was reset before.
func (f *flow) close() {
	f.out.drop()
	f.in.drop()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.c.Close()
	if f.up != nil {
		f.up.Close()
	}
}

// facts returns what is known, as of now.
func (f *flow) facts(now time.Time) rules.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.request
	r.Time = now
	return r
}

// learn adds a fact.
func (f *flow) learn(add func(r *rules.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add(&f.request)
}

// setDecision keeps the latest decision unless the flow was cut with another.
func (f *flow) setDecision(d rules.Decision, session string, generation uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.final {
		f.decision, f.session, f.judged = d, session, generation
	}
}

// goLive says that bytes may move from now on; false if it was cut meanwhile.
// From here on Rejudge sees the flow, and its evidence is what it is: nothing
// more will be looked at but what unheard says.
func (f *flow) goLive(up *net.TCPConn, relayed bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.final {
		abort(up)
		return false
	}
	f.up, f.live, f.relayed = up, true, relayed
	f.request.Stage = rules.Hello
	return true
}

// verdict is the latest decision.
func (f *flow) verdict() rules.Decision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.decision
}

func (f *flow) judgedAt() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.judged
}

func (f *flow) snapshot() Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := Flow{
		ID: f.id, Started: f.started, Client: f.client,
		Destination: netip.AddrPortFrom(f.request.Addr, f.request.Port),
		Live:        f.live, Inspected: f.relayed,
		Host: hostOf(f.decision, f.request), Layer: f.decision.Layer, Rule: f.decision.Rule, Reason: f.decision.Reason,
		BytesIn: f.moved.in.Load(), BytesOut: f.moved.out.Load(),
	}
	if f.request.Program != nil {
		out.Binary = f.request.Program.Path
	}
	return out
}

// event is the flow's one event.
func (f *flow) event(now time.Time) audit.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, r := f.decision, f.request
	e := audit.Event{
		Time:          now,
		Type:          audit.Connect,
		ContainerID:   r.Container.ID,
		ContainerName: r.Container.Name,
		SessionID:     f.session,
		Verdict:       verdict(d.Verdict),
		Layer:         string(d.Layer),
		Reason:        d.Reason,
		Host:          hostOf(d, r),
		Port:          r.Port,
		Transport:     string(r.Transport),
		BytesIn:       f.moved.in.Load(),
		BytesOut:      f.moved.out.Load(),
		DurationMS:    time.Since(f.since).Milliseconds(),
	}
	if e.Verdict == "inspect" {
		e.Verdict = "allow" // its requests have their own events
	}
	if f.note != "" {
		e.Reason += "; " + f.note
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

// addrPort is the address of a TCP connection's end, IPv4 in its plain form.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
