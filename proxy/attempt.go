package proxy

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"weir/graphql"
	"weir/rules"
)

// JudgeAttempt says how a request would fare on a connection: as
// (*rules.Policy).Judge does, and with what the relay refuses by itself. a has
// the facts of the connection; of what it says of a request only Subprotocol
// counts. r nil asks about the connection alone.
func JudgeAttempt(p *rules.Policy, a rules.Attempt, r *RawRequest) (rules.Decision, []graphql.Operation) {
	a.HTTP, a.Body = nil, nil
	conn, _ := p.Judge(a)
	if r == nil || conn.Verdict != rules.Inspect && (conn.Would == nil || conn.Would.Verdict != rules.Inspect) {
		return conn, nil
	}
	method := strings.ToUpper(r.Method)
	if why := refused(a, conn, method, r); why != "" {
		return Refused(conn, why), nil
	}
	a.ContentType = strings.Join(r.Header.Values("Content-Type"), ", ")
	a.ContentEncoding = strings.Join(r.Header.Values("Content-Encoding"), ", ")
	a.Subprotocol = cmp.Or(r.Header.Get("Sec-WebSocket-Protocol"), a.Subprotocol, "graphql-transport-ws")
	a.Body = r.Body
	judge := func(method string) (rules.Decision, []graphql.Operation) {
		a.HTTP = &rules.HTTPRequest{Method: method, Target: r.Target, Upgrade: r.Upgrade}
		d, operations := p.Judge(a)
		if d.Verdict == rules.Inspect {
			d.Verdict = rules.Deny // nothing is left to look at
		}
		return d, operations
	}
	for _, other := range methodOverrides(method, r.Header) {
		if !overridingMethod(other) {
			return Refused(conn, "malformed request: "+noOverride), nil
		}
		d, operations := judge(other)
		if d.Verdict == rules.Deny {
			d.Reason = "a header field overrides the method " + method + ": " + d.Reason
			return d, operations
		}
	}
	return judge(method)
}

// Refused is the decision on a request that the relay refuses by itself, on a
// connection that was let in by conn. In learning mode nothing is refused.
func Refused(conn rules.Decision, why string) rules.Decision {
	d := rules.Decision{Layer: rules.Default, Reason: why, Host: conn.Host}
	if conn.Verdict == rules.Allow {
		conn.Would = &d
		return conn
	}
	d.Trace = append(conn.Trace, rules.Step{Layer: rules.Default, Text: "the relay", Matched: true, Won: true, Why: why})
	return d
}

// refused says why the relay does not take a request, or "".
func refused(a rules.Attempt, conn rules.Decision, method string, r *RawRequest) string {
	host := conn.Host
	if conn.Would != nil {
		host = cmp.Or(host, conn.Would.Host)
	}
	c := intercepted{host: cmp.Or(host, a.Addr.Unmap().String())}
	c.in.Request.Port = a.Port
	c.nameAndPort = net.JoinHostPort(c.host, strconv.Itoa(int(a.Port)))
	switch why := c.misdirected(r.Authority); {
	case why != "":
		return why
	case method == http.MethodConnect:
		return "CONNECT asks the server to be a proxy, and what would go through it cannot be judged"
	case r.Upgrade != "" && r.Upgrade != "websocket":
		return fmt.Sprintf("an upgrade to %s cannot be inspected and is never relayed", rules.UpgradeName(r.Upgrade))
	}
	return ""
}

// methodOverrides returns the methods, in upper case, that header fields ask
// servers to take in the place of method.
func methodOverrides(method string, h http.Header) (others []string) {
	for name, values := range h {
		for _, value := range values {
			if overridesMethod(name) && !strings.EqualFold(value, method) {
				others = append(others, strings.ToUpper(value))
			}
		}
	}
	return others
}
