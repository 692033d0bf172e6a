package proxy

import (
	"encoding/json"
	"strconv"
	"strings"

	"weir/graphql"
	"weir/rules"
)

// An answer is a response that Weir gives by itself.
type answer struct {
	status int
	fields []field // without Content-Length
	body   []byte
}

// facts are what a refusal says about itself.
type refusalFacts struct {
	Error      string      `json:"error,omitempty"`
	Code       string      `json:"code,omitempty"`
	Reason     string      `json:"reason"`
	Layer      string      `json:"layer"`
	Rule       string      `json:"rule"`
	Container  string      `json:"container"`
	Host       string      `json:"host"`
	Port       uint16      `json:"port"`
	Method     string      `json:"method"`
	Path       string      `json:"path"`
	Operations []operation `json:"operations"`
	Event      int64       `json:"event"`
}

// operation is graphql.Operation with every key present.
type operation struct {
	Type      string   `json:"type"`
	Name      string   `json:"name"`
	Fields    []string `json:"fields"`
	Persisted string   `json:"persisted,omitempty"`
}

type graphQLError struct {
	Message    string       `json:"message"`
	Extensions refusalFacts `json:"extensions"`
}

// refusal records e and says to the client why it was refused: 403, or 400
// for what is malformed, in the form that its kind of client shows.
func (e *exchange) refusal(r ruling) answer {
	status := r.status
	switch {
	case status != 0:
	case r.Malformed:
		status = 400
	default:
		status = 403
	}
	return e.answer(status, r.grpc)
}

func (e *exchange) answer(status int, grpc bool) answer {
	id := e.record()
	e.mu.Lock()
	f := factsOf(e.c, e.facts, e.decision, id)
	if e.note != "" {
		f.Reason += "; " + e.note
	}
	graphQL := e.c.graphQL(e.decision)
	e.mu.Unlock()

	a := answer{status: status, fields: []field{{"X-Weir-Event", strconv.FormatInt(id, 10)}, {"Cache-Control", "no-store"}}}
	if grpc {
		// Trailers-only: clients show the message of an HTTP 200 alone.
		a.status = 200
		a.fields = append(a.fields, field{"Content-Type", "application/grpc"},
			field{"Grpc-Status", grpcStatus(status)}, field{"Grpc-Message", grpcMessage(f.Reason)})
		return a
	}
	a.fields = append(a.fields, field{"Content-Type", "application/json"})
	f.Error = errorCode(status)
	var err error
	if graphQL {
		f.Code, f.Error = "POLICY_DENIED", ""
		if status == 502 {
			f.Code = "UPSTREAM_FAILED"
		}
		a.body, err = json.Marshal(struct {
			Errors []graphQLError `json:"errors"`
		}{[]graphQLError{{"denied by policy: " + f.Reason, f}}})
	} else {
		a.body, err = json.Marshal(f)
	}
	if err != nil { // strings and numbers only
		a.body = []byte(`{"error":"policy_denied"}`)
	}
	a.body = append(a.body, '\n')
	return a
}

func factsOf(c *intercepted, facts rules.Request, d rules.Decision, id int64) refusalFacts {
	f := refusalFacts{
		Reason: d.Reason, Layer: string(d.Layer), Container: facts.Container.Name,
		Host: c.host, Port: facts.Port, Path: pathOf(d, facts), Operations: operationsOf(facts.Operations), Event: id,
	}
	if d.Rule != nil {
		f.Rule = d.Rule.ID
	}
	if facts.HTTP != nil {
		f.Method = facts.HTTP.Method
	}
	return f
}

func operationsOf(ops []graphql.Operation) []operation {
	out := make([]operation, len(ops))
	for i, o := range ops {
		out[i] = operation{o.Type, o.Name, o.Fields, o.Persisted}
		if o.Fields == nil {
			out[i].Fields = []string{}
		}
	}
	return out
}

func errorCode(status int) string {
	switch status {
	case 400:
		return "malformed_request"
	case 421:
		return "misdirected_request"
	case 502:
		return "upstream_failed"
	case 503:
		return "limit_reached"
	}
	return "policy_denied"
}

// grpcStatus: the codes of gRPC's own mapping for what is not in the server.
func grpcStatus(status int) string {
	switch status {
	case 400:
		return "3" // INVALID_ARGUMENT
	case 502:
		return "14" // UNAVAILABLE
	case 503:
		return "8" // RESOURCE_EXHAUSTED
	}
	return "7" // PERMISSION_DENIED
}

// grpcMessage percent-encodes what a status message may not hold (gRPC over
// HTTP2, "Responses").
func grpcMessage(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= 0x20 && c < 0x7f && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}
