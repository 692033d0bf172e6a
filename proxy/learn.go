package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

// learnPatience is how long learning mode holds a connection up to find out
// which program opened it. A program that is not found by then is still
// looked for while the connection lasts.
const learnPatience = 100 * time.Millisecond

// learnLookups is how many programs are looked for at once, in learning mode:
// each look is a walk over /proc.
const learnLookups = 4

// learnProgram finds the program behind a flow that learning mode lets pass,
// so that the policy learned can name it. The returned function waits for the
// answer, though not long.
func (s *Server) learnProgram(ctx context.Context, p party) (wait func()) {
	f := p.base()
	r := f.facts(s.now())
	if f.verdict().Layer != rules.AllowAll || s.Program == nil || r.Program != nil || r.ProgramFailed {
		return func() {}
	}
	found := make(chan struct{})
	f.passing.Go(func() {
		defer close(found)
		defer s.caught(p)
		select {
		case s.lookups <- struct{}{}:
			defer func() { <-s.lookups }()
			s.findProgram(ctx, f)
		case <-ctx.Done():
		}
	})
	return func() {
		timer := time.NewTimer(learnPatience)
		defer timer.Stop()
		select {
		case <-found:
		case <-timer.C:
		}
	}
}

// learns: learning mode lets the request pass, and looks at it.
func learns(d rules.Decision) bool {
	return d.Verdict == rules.Allow && d.Layer == rules.AllowAll && d.Endpoint != nil
}

// observe finds out which GraphQL operations a request asks for that learning
// mode lets pass. The request is sent on as it came, whatever is found.
func (e *exchange) observe(ctx context.Context, a asked, r ruling, contentType, contentEncoding string) ruling {
	path, query, _ := strings.Cut(r.target, "?")
	mediaType, _, _ := strings.Cut(contentType, ";")
	var text []byte
	switch {
	case a.upgrade != "":
		return r
	case a.method == "GET" && query != "":
	case a.method == "POST" && a.body != nil && strings.EqualFold(strings.TrimSpace(mediaType), "application/json"):
		var err error
		text, r.taken, err = e.c.relay.buffered.readAll(a.body, rules.LearnMaxBody+1)
		r.held = text
		bad, isProblem := errors.AsType[problem](err)
		switch {
		case errors.Is(err, errOverBudget), err == nil && len(text) > rules.LearnMaxBody:
			e.fail("too long to be looked at")
			return r
		case isProblem: // it could not be sent on either
			return r.refuse(e, malformed(string(bad)))
		case err != nil:
			return r.refuse(e, malformed("the body did not come in full: "+err.Error()))
		}
	default:
		return r
	}
	res, err := e.c.relay.documents.Parse(graphql.Input{
		Method: a.method, RawQuery: query, ContentType: contentType, ContentEncoding: contentEncoding,
		Body: text, MaxBody: rules.LearnMaxBody,
	})
	if err != nil {
		if strings.HasSuffix(path, "graphql") {
			e.fail("not readable as GraphQL: " + err.Error())
		}
		e.learnDenial(err)
		return r
	}
	if !likelyGraphQL(path, res.Operations) {
		return r
	}
	facts := e.facts
	facts.Stage, facts.Operations = rules.GraphQL, res.Operations
	target, held, taken := r.target, r.held, r.taken
	r.Decision = e.judge(ctx, facts)
	r.target, r.held, r.taken = target, held, taken
	if r.Verdict != rules.Allow { // learning has ended meanwhile
		return r.refuse(e, r.Decision)
	}
	return r
}

// likelyGraphQL tells operations from JSON and queries that merely have an id.
func likelyGraphQL(path string, operations []graphql.Operation) bool {
	return len(operations) > 0 && (strings.HasSuffix(path, "graphql") || !slices.ContainsFunc(operations, func(op graphql.Operation) bool {
		return op.Type == "" && (len(op.Persisted) != 64 || !hexadecimal(op.Persisted))
	}))
}

// learnDenial says what enforcement would have made of a request whose body
// it would have had to read, and which cannot be read.
func (e *exchange) learnDenial(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.decision.Would; !e.final && w != nil && w.NeedBody {
		would := unreadable(*w, "its body", err)
		e.decision.Would = &would
	}
}

// learn sends on a message that learning mode lets pass, as it came. What is
// recorded are its operations, or else the first message of each kind.
func (ws *webSocket) learn(ctx context.Context, m *exchange, facts rules.Request, kind websocket.MessageType, message io.Reader) error {
	ws.messages++
	if method := facts.HTTP.Method; kind != websocket.MessageText || !speaksGraphQL(ws.server.Subprotocol()) {
		if !slices.Contains(ws.seen, method) {
			ws.seen = append(ws.seen, method)
			m.record()
		}
		return copyMessage(ctx, ws.server, kind, message)
	}
	text, taken, err := ws.e.c.relay.buffered.readAll(message, rules.LearnMaxBody+1)
	defer ws.e.c.relay.buffered.give(taken)
	m.out.Add(int64(len(text)))
	switch {
	case errors.Is(err, errOverBudget), err == nil && len(text) > rules.LearnMaxBody:
		m.fail("too long to be looked at")
		m.record()
		return copyMessage(ctx, ws.server, kind, io.MultiReader(bytes.NewReader(text), message))
	case err != nil:
		return err
	}
	parsed, err := ws.e.c.relay.documents.ParseMessage(ws.server.Subprotocol(), text)
	switch {
	case err != nil:
		m.fail("not readable as GraphQL: " + err.Error())
		m.learnDenial(err)
		m.record()
	case len(parsed.Operations) > 0:
		facts.Stage, facts.Operations = rules.GraphQL, parsed.Operations
		if d := m.judge(ctx, facts); d.Verdict != rules.Allow { // learning has ended meanwhile
			m.refuse(d)
			return ws.deny(m)
		}
		m.record()
	}
	return copyMessage(ctx, ws.server, kind, bytes.NewReader(text))
}

// speaksGraphQL: the subprotocols that graphql.ParseMessage reads.
func speaksGraphQL(subprotocol string) bool {
	return subprotocol == "graphql-transport-ws" || subprotocol == "graphql-ws"
}

// Live returns the events of the connections that are open now, as they would
// be if these ended: of what is allowed and still going on.
func (s *Server) Live() []audit.Event {
	var list []audit.Event
	for _, p := range s.all() {
		if f := p.base(); f.isLive() {
			list = append(list, f.event(s.now()))
		}
	}
	return list
}

// Live returns the events of the requests and WebSockets that are under way
// and allowed; see Server.Live.
func (r *Relay) Live() []audit.Event {
	r.init()
	var list []audit.Event
	for _, e := range r.exchanges() {
		e.mu.Lock()
		message := e.facts.HTTP != nil && messageMethod(e.facts.HTTP.Method) // part of its WebSocket
		if e.judged && !e.final && !message && e.decision.Verdict == rules.Allow {
			list = append(list, e.toEvent())
		}
		e.mu.Unlock()
	}
	return list
}
