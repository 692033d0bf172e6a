package proxy

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/audit"
	"weir/rules"
)

// An exchange is one request with its response, or one WebSocket from upgrade
// to close. It yields one event.
type exchange struct {
	c       *intercepted
	began   time.Time
	in, out atomic.Int64 // bytes of the response, of the request

	mu       sync.Mutex
	facts    rules.Request
	decision rules.Decision
	session  string
	judged   bool   // decision is the policy's
	final    bool   // nothing changes it any more
	note     string // what else the event's reason says
	abort    func() // cuts what is under way; nil: nothing is
	event    int64  // its id, 0 until recorded
}

// begin registers an exchange; every one ends with finish.
func (c *intercepted) begin() *exchange {
	e := &exchange{c: c, began: time.Now(), facts: c.in.Request}
	e.facts.Stage = rules.HTTP
	e.decision = deny(rules.Default, "not judged yet")
	c.mu.Lock()
	c.live[e] = struct{}{}
	c.mu.Unlock()
	return e
}

// finish ends e and records it unless its refusal was recorded before.
func (e *exchange) finish() {
	e.c.mu.Lock()
	delete(e.c.live, e)
	e.c.mu.Unlock()
	e.record()
}

// judge asks the policy about facts and keeps both.
func (e *exchange) judge(ctx context.Context, facts rules.Request) rules.Decision {
	r := e.c.relay
	for {
		generation := r.generation.Load()
		p := r.Policy()
		facts.Time = r.now()
		d := Decide(r.Meter, p, facts)
		if d.Verdict == rules.Inspect && d.NeedProgram && facts.Program == nil && !facts.ProgramFailed {
			facts.Program, facts.ProgramFailed = e.c.whoConnects(ctx)
			continue
		}
		if d.Verdict == rules.Inspect && !d.NeedBody {
			d.Verdict, d.Reason = rules.Deny, "the policy leaves it open: "+d.Reason
		}
		session := ""
		if p != nil {
			session = p.Session()
		}
		e.settle(facts, d, session)
		if generation == r.generation.Load() {
			return d
		}
	}
}

func (e *exchange) settle(facts rules.Request, d rules.Decision, session string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.final {
		e.facts, e.decision, e.session, e.judged = facts, d, session, true
	}
}

// refuse settles e for a reason that the policy did not give.
func (e *exchange) refuse(d rules.Decision) rules.Decision {
	e.mu.Lock()
	defer e.mu.Unlock()
	d.Verdict = rules.Deny
	if !e.final {
		e.decision, e.final = d, true
	}
	return e.decision
}

// fail notes what went wrong, which is no verdict.
func (e *exchange) fail(note string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.note == "" {
		e.note = note
	}
}

// goLive says how to cut e from now on; false if that has happened already.
func (e *exchange) goLive(abort func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.final {
		return false
	}
	e.abort = abort
	return true
}

// cut ends e for the reason of a decision.
func (e *exchange) cut(d rules.Decision) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.final {
		return
	}
	e.final, e.decision = true, d
	if e.abort != nil {
		e.abort()
	}
}

// Rejudge judges the requests and WebSockets that are under way again, by the
// current policy and on the facts that they were allowed on; those now refused
// are cut and their events say so. Call it, beside Server.Rejudge, after each
// change of what Policy returns and when a rule or session has expired.
func (r *Relay) Rejudge() {
	r.init()
	r.generation.Add(1)
	for _, e := range r.exchanges() {
		e.rejudge()
	}
}

// exchanges returns what is under way.
func (r *Relay) exchanges() (live []*exchange) {
	r.mu.Lock()
	conns := slices.Collect(maps.Keys(r.conns))
	r.mu.Unlock()
	for _, c := range conns {
		c.mu.Lock()
		live = slices.AppendSeq(live, maps.Keys(c.live))
		c.mu.Unlock()
	}
	return live
}

func (e *exchange) rejudge() {
	e.mu.Lock()
	facts, judged := e.facts, e.judged && !e.final && e.decision.Verdict == rules.Allow
	e.mu.Unlock()
	if !judged {
		return // whoever judges it sees the new generation
	}
	r := e.c.relay
	facts.Time = r.now()
	d := Decide(r.Meter, r.Policy(), facts)
	if d.Verdict == rules.Inspect && d.NeedProgram {
		facts.Program, facts.ProgramFailed = e.c.whoConnects(context.Background())
		d = Decide(r.Meter, r.Policy(), facts)
	}
	switch d.Verdict {
	case rules.Inspect:
		d.Reason = "the policy changed and the request would have to be inspected from its start: " + d.Reason
		fallthrough
	case rules.Deny:
		d.Verdict = rules.Deny
		e.cut(d)
	}
}

// record records e once and returns the event's id.
func (e *exchange) record() int64 {
	e.mu.Lock()
	if e.event != 0 {
		defer e.mu.Unlock()
		return e.event
	}
	e.final = true
	ev := e.toEvent()
	e.mu.Unlock()
	id := e.c.relay.Record(ev)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.event = max(id, 1) // recorded, whatever the recorder says
	return id
}

// toEvent is for holders of mu.
func (e *exchange) toEvent() audit.Event {
	ev := eventOf(e.c, e.facts, e.decision, e.session)
	if e.note != "" {
		ev.Reason += "; " + e.note
	}
	ev.BytesIn, ev.BytesOut = e.in.Load(), e.out.Load()
	ev.DurationMS = time.Since(e.began).Milliseconds()
	return ev
}

// eventOf says what was decided about a request or message.
func eventOf(c *intercepted, facts rules.Request, d rules.Decision, session string) audit.Event {
	ev := decided(audit.HTTP, c.relay.now(), &facts, &d, session)
	ev.Host, ev.Operations = c.in.Decision.Host, facts.Operations
	if c.graphQL(d) || len(facts.Operations) > 0 {
		ev.Type = audit.GraphQL
	}
	if facts.HTTP != nil {
		ev.Method = facts.HTTP.Method
		ev.Path = pathOf(d, facts)
		if facts.HTTP.Upgrade != "" {
			ev.Upgrade = rules.UpgradeName(facts.HTTP.Upgrade)
		}
	}
	return ev
}

// graphQL: the endpoint that judged speaks GraphQL, or if none has judged, the
// one that the connection is inspected for.
func (c *intercepted) graphQL(d rules.Decision) bool {
	endpoint := d.Endpoint
	if endpoint == nil {
		endpoint = c.in.Decision.Endpoint
	}
	return endpoint != nil && endpoint.Protocol == rules.ProtocolGraphQL
}
