package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"

	"weir/rules"
)

// A Flow is a connection or UDP association as it is at one moment.
type Flow struct {
	ID          uint64 // unique in its Server
	Transport   rules.Transport
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
	// DatagramsIn and DatagramsOut are counted over UDP.
	DatagramsIn, DatagramsOut int64
}

// A flow is one accepted connection. It is registered from the moment it is
// accepted until its event is recorded.
type flow struct {
	record
	in, out pump // in: outside → container

	// For the goroutine that handles it only.
	nameOnly bool // its address stood for a name, which it was judged by first
	unheard  bool // allowed as a silent client; its first bytes are still to be judged
	waiting  bool // counted by the gauge of unfinished first messages while passing on

	// Guarded by mu.
	relayed bool
	c       *net.TCPConn
	up      socket             // nil until it is connected, and if it is relayed
	release context.CancelFunc // ends a relay; nil without one
}

// register makes a flow of an accepted connection.
func (s *Server) register(c *net.TCPConn) *flow {
	f := &flow{c: c}
	s.start(&f.record, rules.TCP, addrPort(c.RemoteAddr()))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	f.id = s.lastID
	s.flows[f.id] = f
	s.handlers.Add(1)
	return f
}

// unregister forgets a flow whose event is recorded.
func (s *Server) unregister(f *flow) {
	s.mu.Lock()
	delete(s.flows, f.id)
	s.mu.Unlock()
	s.gauges.connections.leave()
	s.handlers.Done()
}

// Flows returns the connections and associations that are open now, oldest
// first.
func (s *Server) Flows() []Flow {
	var list []Flow
	for _, f := range s.all() {
		list = append(list, f.snapshot())
	}
	return list
}

// Kill cuts a connection or association. It reports whether there was one with
// that id.
func (s *Server) Kill(id uint64) bool {
	s.mu.Lock()
	f := s.flows[id]
	s.mu.Unlock()
	if f == nil {
		return false
	}
	return f.cut(deny(rules.Default, "cut on request"))
}

// Rejudge judges every live connection and association again, by the current
// policy and clock and on the facts that it was allowed on; those now refused
// are reset and their events say so. A connection whose first bytes nobody had
// to look at counts as one that said nothing. Call it after each change of what
// Policy returns and when a rule or session has expired. It may take a while
// where a rule asks for the first time which program opened a connection.
func (s *Server) Rejudge() {
	s.generation.Add(1)
	s.wakeHeld()
	for _, f := range s.all() {
		if f.base().isLive() {
			f.rejudge(context.Background(), s) // every wait has its own limit
		}
	}
}

// rejudge judges a live flow and cuts it if it may not go on.
func (f *flow) rejudge(ctx context.Context, s *Server) (goesOn bool) {
	d := s.judge(ctx, &f.record)
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
	if f.up != nil {
		abort(f.up)
	}
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

// goLive says that bytes may move from now on; false if it was cut meanwhile.
// From here on Rejudge sees the flow, and its evidence is what it is: nothing
// more will be looked at but what unheard says.
func (f *flow) goLive(up socket, relayed bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.final {
		if up != nil {
			abort(up)
		}
		return false
	}
	f.up, f.live, f.relayed = up, true, relayed
	f.request.Stage = rules.Hello
	return true
}

func (f *flow) snapshot() Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.record.snapshot()
	now.Inspected = f.relayed
	return now
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
