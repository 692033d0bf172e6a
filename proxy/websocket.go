package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/coder/websocket"

	"weir/rules"
)

// A webSocket is an upgraded connection. What the client sends is judged
// message by message, what the server sends passes.
//
// Both sides are WebSockets of their own: messages come whole or in parts as
// they come, without compression; pings are answered on either side and are
// not passed on.
type webSocket struct {
	e              *exchange
	client, server *websocket.Conn
	target         string
	messages       int64    // from the client, sent on
	seen           []string // kinds of messages that learning mode has recorded
}

// webSocket relays an allowed upgrade and what follows.
func (h *http1) webSocket(ctx context.Context, e *exchange, head *requestHead, r ruling) (goesOn bool) {
	if why := upgradeProblem(head); why != "" {
		e.refuse(malformed(why))
		head.persists = false
		return h.answer(e.refusal(ruling{Decision: e.decision}), head, false)
	}
	u, err := h.connection(ctx)
	if err != nil {
		return h.unreachable(e, head, &body{br: h.br}, err)
	}
	u.used = true
	shake := &handshake{h: h, e: e, head: head, r: r, u: u}
	server, _, err := websocket.Dial(ctx, "http://websocket.invalid/", &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: shake, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		Subprotocols: subprotocols(head),
	})
	if err != nil {
		return h.noUpgrade(e, head, u, shake)
	}
	defer server.CloseNow()
	client, err := websocket.Accept(&upgrader{h: h, res: shake.res, header: make(http.Header)}, upgradeRequest(head), &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the Origin is the server's to judge
		Subprotocols:       []string{server.Subprotocol()},
	})
	if err != nil {
		e.fail("the upgrade failed on the client's side") // the error repeats header fields
		return false
	}
	defer client.CloseNow()
	ws := &webSocket{e: e, client: client, server: server, target: head.target}
	ws.serve(ctx)
	return false
}

// upgradeProblem: RFC 6455, 4.2.1.
func upgradeProblem(head *requestHead) string {
	keys := values(head.fields, "Sec-WebSocket-Key")
	switch {
	case !head.upgrades || head.minor == 0:
		return "an Upgrade field without Connection: upgrade"
	case head.hasBody():
		return "an upgrade with a body"
	case len(keys) != 1 || len(keys[0]) != 24:
		return "an upgrade to WebSocket without one Sec-WebSocket-Key"
	case !slices.Equal(values(head.fields, "Sec-WebSocket-Version"), []string{"13"}):
		return "an upgrade to another WebSocket version than 13"
	}
	return ""
}

func subprotocols(head *requestHead) (offered []string) {
	for _, v := range values(head.fields, "Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(v, ",") {
			if p = strings.Trim(p, " \t"); isToken([]byte(p)) {
				offered = append(offered, p)
			}
		}
	}
	return offered
}

// upgradeRequest is the client's side of the handshake, without extensions:
// what is compressed cannot be judged as it comes.
func upgradeRequest(head *requestHead) *http.Request {
	r := &http.Request{Method: "GET", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: head.authority, Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": values(head.fields, "Sec-WebSocket-Key"),
	}}
	if offered := subprotocols(head); len(offered) > 0 {
		r.Header["Sec-Websocket-Protocol"] = []string{strings.Join(offered, ", ")}
	}
	return r
}

// A handshake sends the upgrade as it was judged, on the connection that
// belongs to this client.
type handshake struct {
	h    *http1
	e    *exchange
	head *requestHead
	r    ruling
	u    *upstream
	res  *responseHead
	err  error // why there is no res
}

func (s *handshake) RoundTrip(req *http.Request) (*http.Response, error) {
	own := []field{{"Connection", "Upgrade"}, {"Upgrade", "websocket"}}
	for _, name := range []string{"Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol"} {
		if v := req.Header.Get(name); v != "" {
			own = append(own, field{strings.Replace(name, "socket", "Socket", 1), v})
		}
	}
	head := *s.head
	head.trailers = false
	head.fields = slices.DeleteFunc(slices.Clone(head.fields), func(f field) bool { return strings.HasPrefix(strings.ToLower(f.name), "sec-websocket-") })
	s.h.writeRequest(s.u.bw, &head, s.r, own)
	var res *responseHead
	if s.err = s.u.bw.Flush(); s.err == nil {
		res, s.err = s.h.c.readResponse(s.e, s.u)
	}
	if s.err != nil {
		return nil, s.err
	}
	s.res = res
	out := &http.Response{StatusCode: res.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header), Body: http.NoBody, Request: req}
	if res.status != http.StatusSwitchingProtocols {
		return out, nil // its body is read by whoever passes it on
	}
	for _, f := range res.fields {
		out.Header.Add(f.name, f.value)
	}
	out.Header.Set("Connection", strings.Join(res.options, ", "))
	out.Header.Set("Upgrade", res.upgrade)
	out.Body = &upgraded{s.u.br, s.u.Conn, &s.e.in, &s.e.out}
	return out, nil
}

// noUpgrade passes on what the server said instead of 101.
func (h *http1) noUpgrade(e *exchange, head *requestHead, u *upstream, shake *handshake) bool {
	h.up = nil
	res, err := shake.res, shake.err
	if res == nil || res.status < 200 {
		h.c.release(u, false)
		if err == nil { // what the library says repeats header fields
			err = serverProblem{problem("its answer to the upgrade is not one of RFC 6455")}
		}
		return h.broken(e, head, err, false)
	}
	res.closes = true // one answer, then a new connection
	err = h.writeResponse(e, head, u, res)
	h.c.release(u, false)
	if err != nil {
		return h.broken(e, head, err, true)
	}
	h.farewell()
	return false
}

// An upgraded is one side's connection after the upgrade, with what was read
// of it in front.
type upgraded struct {
	br *bufio.Reader
	net.Conn
	read, written interface{ Add(int64) int64 }
}

func (u *upgraded) Read(b []byte) (int, error) {
	n, err := u.br.Read(b)
	u.read.Add(int64(n))
	return n, err
}

func (u *upgraded) Write(b []byte) (int, error) {
	n, err := u.Conn.Write(b)
	u.written.Add(int64(n))
	return n, err
}

// An upgrader writes the 101 response and hands the connection over.
type upgrader struct {
	h      *http1
	res    *responseHead // the server's
	header http.Header
}

func (u *upgrader) Header() http.Header         { return u.header }
func (u *upgrader) Write(b []byte) (int, error) { return u.h.bw.Write(b) }

func (u *upgrader) WriteHeader(status int) {
	res := &responseHead{status: status, reason: statusText(status)}
	for _, f := range u.res.fields {
		if !strings.HasPrefix(strings.ToLower(f.name), "sec-websocket-") {
			res.fields = append(res.fields, f)
		}
	}
	var own []field
	for name, vs := range u.header {
		for _, v := range vs {
			own = append(own, field{name, v})
		}
	}
	res.write(u.h.bw, own)
}

func (u *upgrader) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if err := u.h.bw.Flush(); err != nil {
		return nil, nil, err
	}
	return u.h.client, bufio.NewReadWriter(u.h.br, u.h.bw), nil
}

// serve passes messages in both directions until one side closes.
func (ws *webSocket) serve(ctx context.Context) {
	ws.client.SetReadLimit(-1) // limited where they are held
	ws.server.SetReadLimit(-1)
	back := make(chan struct{})
	go func() {
		defer close(back)
		defer func() {
			if p := recover(); p != nil {
				ws.e.fail(fmt.Sprintf("internal error: %v", p))
				ws.client.CloseNow()
			}
		}()
		err := ws.passBack(ctx)
		mirrorClose(ws.client, err)
	}()
	err := ws.passOut(ctx)
	switch {
	case errors.Is(err, errMessageDenied):
		ws.server.CloseNow()
	default:
		mirrorClose(ws.server, err)
	}
	<-back
	ws.e.fail(strconv.FormatInt(ws.messages, 10) + " messages from the client")
}

// mirrorClose ends to as the other side has ended, which err says.
func mirrorClose(to *websocket.Conn, err error) {
	if closed, ok := errors.AsType[websocket.CloseError](err); ok {
		to.Close(closed.Code, closed.Reason)
		return
	}
	to.CloseNow()
}

// passBack streams the server's messages to the client.
func (ws *webSocket) passBack(ctx context.Context) error {
	for {
		kind, message, err := ws.server.Reader(ctx)
		if err != nil {
			return err
		}
		if err := copyMessage(ctx, ws.client, kind, message); err != nil {
			return err
		}
	}
}

func copyMessage(ctx context.Context, to *websocket.Conn, kind websocket.MessageType, message io.Reader) error {
	w, err := to.Writer(ctx, kind)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, message); err != nil {
		return err
	}
	return w.Close()
}

// errMessageDenied ends a WebSocket whose client was told so.
var errMessageDenied = errors.New("message denied")

// passOut judges the client's messages and sends on those that are allowed.
func (ws *webSocket) passOut(ctx context.Context) error {
	for {
		kind, message, err := ws.client.Reader(ctx)
		if err != nil {
			return err
		}
		if err := ws.message(ctx, kind, message); err != nil {
			return err
		}
	}
}

// message judges one message.
func (ws *webSocket) message(ctx context.Context, kind websocket.MessageType, message io.Reader) error {
	method := rules.MethodWebSocketText
	if kind == websocket.MessageBinary {
		method = rules.MethodWebSocketBinary
	}
	c := ws.e.c
	m := c.begin()
	defer m.forget()
	facts := c.in.Request
	facts.Stage = rules.HTTP
	facts.HTTP = &rules.HTTPRequest{Method: method, Target: ws.target}
	d := m.judge(ctx, facts)
	switch d.Verdict {
	case rules.Deny:
		return ws.deny(m)
	case rules.Allow:
		if learns(d) {
			return ws.learn(ctx, m, facts, kind, message)
		}
		if d.Audit {
			m.record()
		}
		ws.messages++
		return copyMessage(ctx, ws.server, kind, message)
	}
	most := rules.DefaultMaxBody
	if d.Endpoint != nil && d.Endpoint.MaxBody > 0 {
		most = d.Endpoint.MaxBody
	}
	text, taken, err := c.relay.buffered.readAll(message, most+1)
	defer c.relay.buffered.give(taken)
	m.out.Add(int64(len(text)))
	switch {
	case errors.Is(err, errOverBudget):
		m.refuse(deny(rules.Default, "%s", c.relay.buffered.full()))
		return ws.deny(m)
	case err != nil:
		return err
	case len(text) > most:
		d.Reason = "a message is longer than the limit of the endpoint"
		m.refuse(d)
		return ws.deny(m)
	}
	parsed, err := c.relay.documents.ParseMessage(ws.server.Subprotocol(), text)
	if err != nil {
		m.refuse(unreadable(d, method, err))
		return ws.deny(m)
	}
	if len(parsed.Operations) > 0 {
		facts.Stage, facts.Operations = rules.GraphQL, parsed.Operations
		if d = m.judge(ctx, facts); d.Verdict != rules.Allow {
			m.refuse(d)
			return ws.deny(m)
		}
		m.record()
	}
	ws.messages++
	return copyMessage(ctx, ws.server, kind, bytes.NewReader(parsed.Text))
}

// forget ends an exchange that has no event of its own: a message without
// operations is part of its WebSocket's.
func (e *exchange) forget() {
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	delete(e.c.live, e)
}

// deny records a refused message and closes the client's side, RFC 6455 7.4.1.
func (ws *webSocket) deny(m *exchange) error {
	id := m.record()
	m.mu.Lock()
	reason := m.decision.Reason
	m.mu.Unlock()
	ws.e.fail("a message was denied")
	// First, so that the end of the server's side does not come before it.
	ws.client.Close(websocket.StatusPolicyViolation, closeReason(reason, id))
	ws.server.CloseNow()
	return errMessageDenied
}

// closeReason: at most 123 bytes of UTF-8 (RFC 6455, 5.5.1).
func closeReason(reason string, event int64) string {
	const most = 123
	text := "event " + strconv.FormatInt(event, 10) + ": " + strings.ToValidUTF8(reason, "?")
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}
