package rules

import (
	"strings"

	"weir/graphql"
)

// Attempt is something that a container might send, with everything there is
// to know about it: what an explanation or a policy test asks about.
type Attempt struct {
	// Request holds the facts. Its Stage is not looked at, and HTTP may be nil:
	// then the question is about the connection. Program nil means that it
	// could not be found. Operations are read from the body.
	Request
	ContentType     string
	ContentEncoding string
	Body            []byte // of the request, or one WebSocket message
	// Subprotocol of the WebSocket that Body is a message of.
	Subprotocol string
}

// Judge says how an attempt would fare in the end: it asks stage by stage, as
// the data path does, each time for what the answer before wanted to know.
// The verdict is Inspect only when the attempt says nothing of what an
// inspected connection would carry. The operations are those of the body, if
// it had to be read. Trace is filled.
func (p *Policy) Judge(a Attempt) (Decision, []graphql.Operation) {
	r := a.Request
	r.ProgramFailed = r.Program == nil
	r.Operations = nil
	r.Stage = Connect
	d := p.Explain(r)
	if d.Verdict == Inspect || d.Would != nil && d.Would.Verdict == Inspect {
		r.Stage = Hello
		d = p.Explain(r)
	}
	if r.HTTP == nil || d.Verdict != Inspect && (d.Would == nil || d.Would.Verdict != Inspect) {
		return d, nil
	}
	r.Stage = HTTP
	d = p.Explain(r)
	needs := d
	if d.Would != nil && d.Would.NeedBody {
		needs = *d.Would
	}
	if !needs.NeedBody {
		return d, nil
	}
	operations, err := a.classify(needs.Endpoint)
	if err != nil {
		needs.Verdict, needs.NeedBody, needs.Audit, needs.Would = Deny, false, false, nil
		needs.Reason = err.Error()
		if d.Verdict == Allow { // learning mode, which lets through what it cannot read
			d.Would = &needs
			return d, nil
		}
		needs.Trace = d.Trace
		return needs, nil
	}
	r.Stage, r.Operations = GraphQL, operations
	return p.Explain(r), operations
}

// classify reads the operations of the body.
func (a *Attempt) classify(e *Endpoint) ([]graphql.Operation, error) {
	if a.HTTP.Method == MethodWebSocketText {
		m, err := graphql.ParseMessage(a.Subprotocol, a.Body)
		return m.Operations, err
	}
	in := graphql.Input{
		Method: a.HTTP.Method, ContentType: a.ContentType, ContentEncoding: a.ContentEncoding, Body: a.Body,
	}
	if e != nil {
		in.MaxBody = e.MaxBody
	}
	if _, query, ok := strings.Cut(a.HTTP.Target, "?"); ok {
		in.RawQuery = query
	}
	result, err := graphql.Parse(in)
	return result.Operations, err
}
