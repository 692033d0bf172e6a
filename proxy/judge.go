package proxy

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"weir/graphql"
	"weir/rules"
)

// asked is what is judged of a request, whichever version of HTTP brought it.
type asked struct {
	method    string // upper case
	target    string // as sent, in origin form
	authority string // Host or :authority, "" if there was none
	upgrade   string // lower case

	// each calls its argument with every header field, until it returns false.
	each func(yield func(name, value string) bool)
	// body is what of the body can be read; nil: there is none. Reading it is
	// what makes a client go on that waits for 100 Continue.
	body io.Reader
}

// A ruling is a decision with what to send in the place of what was asked.
type ruling struct {
	rules.Decision
	target string
	// rewritten: body is what to send instead of the request's own.
	rewritten bool
	body      []byte
	held      []byte // of the request's body, read and still to be sent ahead of the rest
	taken     int64  // of the budget for buffered bytes; to be given back
	grpc      bool   // the client expects gRPC's form of a refusal
	status    int    // of the refusal; 0: what the decision says
}

// rule judges a request. It reads the body only if a rule needs it.
func (e *exchange) rule(ctx context.Context, a asked) ruling {
	var types, encodings, overrides []string
	for name, value := range a.each {
		switch len(name) {
		case len("content-type"):
			if strings.EqualFold(name, "Content-Type") {
				types = append(types, value)
			}
		case len("content-encoding"):
			if strings.EqualFold(name, "Content-Encoding") {
				encodings = append(encodings, value)
			}
		}
		if overridesMethod(name) && !strings.EqualFold(value, a.method) {
			overrides = append(overrides, strings.ToUpper(value))
		}
	}
	r := ruling{target: a.target}
	r.grpc = len(types) == 1 && (types[0] == "application/grpc" || strings.HasPrefix(types[0], "application/grpc+"))

	facts := e.c.in.Request
	facts.Stage = rules.HTTP
	facts.HTTP = &rules.HTTPRequest{Method: a.method, Target: a.target, Upgrade: a.upgrade}
	e.mu.Lock()
	e.facts = facts // for the event, if it comes to no judgement
	e.mu.Unlock()

	switch why := e.c.misdirected(a.authority); {
	case why != "":
		r.status = 421
		return r.refuse(e, deny(rules.Default, "%s", why))
	case a.method == "CONNECT":
		return r.refuse(e, deny(rules.Default, "CONNECT asks the server to be a proxy, and what would go through it cannot be judged"))
	case messageMethod(a.method):
		return r.refuse(e, malformed("the method "+a.method+" is kept for messages on a WebSocket"))
	}
	// What a framework would make of the request is judged as well.
	for _, method := range overrides {
		if !overridingMethod(method) {
			return r.refuse(e, malformed(noOverride))
		}
		other := facts
		other.HTTP = &rules.HTTPRequest{Method: method, Target: a.target, Upgrade: a.upgrade}
		d := e.judge(ctx, other)
		e.mu.Lock()
		e.facts = facts
		e.mu.Unlock()
		switch {
		case d.Malformed:
			return r.refuse(e, malformed("a header field overrides the method, and "+strings.TrimPrefix(d.Reason, "malformed request: ")))
		case d.Verdict == rules.Inspect:
			d.Reason = "a header field overrides the method " + a.method + " with " + method + ", and the body is read as one or the other"
			return r.refuse(e, d)
		case d.Verdict != rules.Allow:
			d.Reason = "a header field overrides the method " + a.method + ": " + d.Reason
			return r.refuse(e, d)
		}
	}
	r.Decision = e.judge(ctx, facts)
	if r.Path != "" {
		r.target = r.Path
	}
	if r.Verdict == rules.Inspect {
		return e.classify(ctx, a, r, strings.Join(types, ", "), strings.Join(encodings, ", "))
	}
	if r.Verdict == rules.Allow && a.upgrade != "" && a.upgrade != "websocket" {
		return r.refuse(e, deny(rules.Default, "an upgrade to %s cannot be inspected and is never relayed", rules.UpgradeName(a.upgrade)))
	}
	if learns(r.Decision) {
		return e.observe(ctx, a, r, strings.Join(types, ", "), strings.Join(encodings, ", "))
	}
	return r
}

// classify reads which operations the request asks for and judges again. What
// cannot be read is refused whatever the endpoint's mode.
func (e *exchange) classify(ctx context.Context, a asked, r ruling, contentType, contentEncoding string) ruling {
	most := rules.DefaultMaxBody
	if r.Endpoint != nil && r.Endpoint.MaxBody > 0 {
		most = r.Endpoint.MaxBody
	}
	var text []byte
	if a.body != nil {
		var err error
		text, r.taken, err = e.c.relay.buffered.readAll(a.body, most+1)
		e.out.Add(int64(len(text)))
		bad, isProblem := errors.AsType[problem](err)
		switch {
		case errors.Is(err, errOverBudget):
			r.status = 503
			return r.refuse(e, deny(rules.Default, "%s", e.c.relay.buffered.full()))
		case isProblem:
			return r.refuse(e, malformed(string(bad)))
		case err != nil:
			return r.refuse(e, malformed("the body did not come in full: "+err.Error()))
		}
	}
	path, query, _ := strings.Cut(r.target, "?")
	res, err := e.c.relay.documents.Parse(graphql.Input{
		Method: a.method, RawQuery: query, ContentType: contentType, ContentEncoding: contentEncoding,
		Body: text, MaxBody: most,
	})
	if err != nil {
		return r.refuse(e, unreadable(r.Decision, a.method+" "+path, err))
	}
	facts := e.facts
	facts.Stage, facts.Operations = rules.GraphQL, res.Operations
	r.Decision = e.judge(ctx, facts)
	if r.Path != "" {
		path, _, _ = strings.Cut(r.Path, "?")
	}
	r.target, r.body, r.rewritten = path, res.Body, true
	if res.RawQuery != "" {
		r.target += "?" + res.RawQuery
	}
	if r.Verdict == rules.Inspect {
		r.Decision = e.refuse(r.Decision)
	}
	return r
}

// unreadable is the refusal of what graphql could not read with certainty.
func unreadable(d rules.Decision, what string, err error) rules.Decision {
	d.Verdict, d.NeedBody = rules.Deny, false
	d.Reason = what + ": " + err.Error()
	if g, ok := errors.AsType[*graphql.Error](err); ok && g.Malformed() {
		d.Malformed = true
		d.Reason = "malformed request: " + d.Reason
	}
	return d
}

func (r ruling) refuse(e *exchange, d rules.Decision) ruling {
	r.Decision = e.refuse(d)
	return r
}

// giveBack ends the hold on a body that was sent on, or will not be.
func (r *Relay) giveBack(held *ruling) {
	r.buffered.give(held.taken)
	held.taken, held.body = 0, nil
}

func malformed(why string) rules.Decision {
	d := deny(rules.Default, "malformed request: %s", why)
	d.Malformed = true
	return d
}

// messageMethod: the names under which messages on a WebSocket are judged.
func messageMethod(method string) bool {
	return strings.EqualFold(method, rules.MethodWebSocketText) || strings.EqualFold(method, rules.MethodWebSocketBinary)
}

// overridesMethod: header fields by which frameworks let a client replace the
// method. "_" is read as "-" by servers that hand fields on as variables.
func overridesMethod(name string) bool {
	if len(name) != len("X-HTTP-Method") && len(name) != len("X-Method-Override") && len(name) != len("X-HTTP-Method-Override") {
		return false
	}
	return oneOf(strings.ReplaceAll(name, "_", "-"), "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
}

// noOverride is the reason where overridingMethod says no.
const noOverride = "a header field overrides the method with something that is none"

// overridingMethod: what a header field can put in the place of the method, in
// upper case: the methods of RFC 9110, 5789 and 4918. It is told in reasons, and
// anything else may be a secret.
func overridingMethod(method string) bool {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH",
		"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK":
		return true
	}
	return false
}

// misdirected says why a request is not for where its connection goes, or "".
func (c *intercepted) misdirected(authority string) string {
	if authority == "" || authority == c.name || authority == c.nameAndPort {
		return "" // without one (HTTP/1.0) it is sent on with the connection's own
	}
	host, port, err := splitAuthority(authority)
	if err == nil && (port == 0 || port == c.in.Request.Port) {
		if a, aerr := netip.ParseAddr(host); aerr == nil {
			if a.Unmap().String() == c.host {
				return ""
			}
		} else if name, nerr := rules.CanonicalName(host); nerr == nil && name == c.host {
			return ""
		}
	}
	return "the request is for " + spoken(authority) + ", and its connection was judged for " + strconv.Quote(c.nameAndPort)
}

// authority is what to send as Host or :authority: the judged name, with the
// port where the client wrote one.
func (c *intercepted) authority(asked string) string {
	if asked == c.name || asked == c.nameAndPort {
		return asked
	}
	if _, port, err := splitAuthority(asked); err == nil && port != 0 {
		return c.nameAndPort
	}
	return c.name
}

// pathOf is the path without the query and the fragment, which may hold
// anything, as may a target that has no path.
func pathOf(d rules.Decision, facts rules.Request) string {
	target := d.Path
	if target == "" && facts.HTTP != nil {
		target = facts.HTTP.Target
	}
	if target != "*" && !strings.HasPrefix(target, "/") {
		return ""
	}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	return target
}
