package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"weir/rules"
)

const (
	// drainMost is how much of a refused request's body is read so that the
	// connection can be kept, or the answer arrive before the reset.
	drainMost = 256 << 10
	drainTime = time.Second
)

// An http1 is a connection on which the client speaks HTTP/1, one request
// after the other. Its goroutine runs serve; while a body is sent on, a second
// one reads it, and only then.
type http1 struct {
	c      *intercepted
	client net.Conn // TLS or plain
	br     *bufio.Reader
	bw     *bufio.Writer
	up     *upstream // kept between requests; nil: none

	// deadline guards the read deadline while a body is sent on.
	deadline sync.Mutex
	stalled  time.Time // when it was last moved; zero: there is none
	over     bool      // the body is not read any more
}

// past, as a deadline, ends a wait.
var past = time.Unix(1, 0)

func newHTTP1(c *intercepted, client net.Conn) *http1 {
	return &http1{c: c, client: client, br: bufio.NewReader(client), bw: bufio.NewWriter(client)}
}

// serve relays requests until either side ends or one may not go on.
func (h *http1) serve(ctx context.Context) {
	for h.next(ctx) {
	}
	if h.up != nil {
		h.c.release(h.up, true)
	}
}

// next relays one request; false when it was the last one.
func (h *http1) next(ctx context.Context) (goesOn bool) {
	limits := &h.c.relay.limits
	slow := false
	text, err := readHead(h.br, limits.HeaderBytes, func() {
		slow = true
		h.client.SetReadDeadline(time.Now().Add(limits.Head))
	})
	if slow {
		h.client.SetReadDeadline(time.Time{})
	}
	bad, isProblem := errors.AsType[problem](err)
	switch {
	case err == io.EOF, err != nil && ctx.Err() != nil:
		return false
	case errors.Is(err, os.ErrDeadlineExceeded):
		bad, isProblem = "the request head was not finished in time", true
	case err == io.ErrUnexpectedEOF:
		bad, isProblem = "the request head breaks off", true
	case err != nil && !isProblem:
		return false
	}
	e := h.c.begin()
	defer e.finish()
	if isProblem {
		e.refuse(malformed(string(bad)))
		return h.answer(e.refusal(ruling{Decision: e.decision}), nil, false)
	}
	e.out.Add(int64(len(text)))
	head, err := parseRequestHead(text, limits.Fields)
	if err == nil && head.scheme != "" && (head.scheme == "https") != h.c.tls {
		err = problem("the request target names the scheme " + head.scheme + ", which is not the connection's")
	}
	if err != nil {
		e.refuse(malformed(err.Error()))
		return h.answer(e.refusal(ruling{Decision: e.decision}), nil, false)
	}
	if !e.admit() {
		return h.answer(e.refusal(ruling{status: 503}), nil, false)
	}
	defer h.c.relay.requests.leave()
	if !e.goLive(h.cut) {
		return false
	}
	return h.request(ctx, e, head)
}

// admit takes a place under Limits.Requests.
func (e *exchange) admit() bool {
	g := &e.c.relay.requests
	if g.enter() {
		return true
	}
	e.refuse(deny(rules.Default, "%s", g.full()))
	return false
}

// cut makes every read and write of the connection fail.
func (h *http1) cut() {
	h.c.in.Client.Close()
	h.c.end()
}

// request judges one request and sends it on or answers it.
func (h *http1) request(ctx context.Context, e *exchange, head *requestHead) (goesOn bool) {
	b := &body{br: h.br, left: max(head.length, 0), chunked: head.chunked, limits: &h.c.relay.limits}
	a := asked{method: head.method, target: head.target, authority: head.authority, upgrade: head.upgrade}
	a.each = func(yield func(name, value string) bool) {
		for _, f := range head.fields {
			if !yield(f.name, f.value) {
				return
			}
		}
	}
	if head.hasBody() {
		a.body = &wanted{h: h, b: b, expected: head.expects}
	}
	r := e.rule(ctx, a)
	defer h.c.relay.giveBack(&r)
	if r.Verdict != rules.Allow {
		if r.status == 0 && r.Malformed || head.method == "CONNECT" {
			head.persists = false
		}
		return h.answer(e.refusal(r), head, h.rest(head, b))
	}
	if r.rewritten || r.held != nil {
		h.unstall()
		head.expects = false
	}
	b.held = r.held
	if head.upgrade != "" {
		return h.webSocket(ctx, e, head, r)
	}
	return h.forward(ctx, e, head, &r, b)
}

// rest brings the connection behind the body of a refused request, if that is
// cheap and certain; false when the connection cannot be kept.
func (h *http1) rest(head *requestHead, b *body) bool {
	switch {
	case !head.persists:
		return false
	case !head.hasBody() || b.ended || !b.chunked && b.left == 0:
		return true
	case head.expects || b.chunked || b.left > drainMost:
		return false
	}
	h.client.SetReadDeadline(time.Now().Add(drainTime))
	_, err := io.Copy(io.Discard, b)
	h.client.SetReadDeadline(time.Time{})
	return err == nil
}

// A wanted is a body that its reader wants to have: a client which waits for
// that is told.
type wanted struct {
	h        *http1
	b        *body
	expected bool
}

func (w *wanted) Read(p []byte) (int, error) {
	if w.expected {
		w.expected = false
		w.h.bw.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
		if err := w.h.bw.Flush(); err != nil {
			return 0, err
		}
	}
	w.h.stall()
	return w.b.Read(p)
}

// stall gives the client Limits.Stall for its next bytes.
func (h *http1) stall() {
	limit := h.c.relay.limits.Stall
	h.deadline.Lock()
	defer h.deadline.Unlock()
	if now := time.Now(); !h.over && now.Sub(h.stalled) > limit/4 {
		h.stalled = now
		h.client.SetReadDeadline(now.Add(limit + limit/4))
	}
}

// unstall takes the deadline away.
func (h *http1) unstall() {
	h.deadline.Lock()
	defer h.deadline.Unlock()
	if !h.stalled.IsZero() {
		h.stalled = time.Time{}
		h.client.SetReadDeadline(time.Time{})
	}
}

// answer writes a response of Weir's own. head is nil when the request could
// not be read; keep says that the next request begins where it should.
func (h *http1) answer(a answer, head *requestHead, keep bool) (goesOn bool) {
	keep = keep && head != nil && head.persists
	w := h.bw
	w.WriteString("HTTP/1.1 " + strconv.Itoa(a.status) + " " + statusText(a.status) + "\r\n")
	for _, f := range a.fields {
		writeField(w, f)
	}
	writeField(w, field{"Content-Length", strconv.Itoa(len(a.body))})
	switch {
	case !keep:
		writeField(w, field{"Connection", "close"})
	case head.minor == 0:
		writeField(w, field{"Connection", "keep-alive"})
	}
	w.WriteString("\r\n")
	if head == nil || head.method != "HEAD" {
		w.Write(a.body)
	}
	if err := w.Flush(); err != nil {
		return false
	}
	if !keep {
		h.farewell()
	}
	return keep
}

// farewell ends the direction to the client and reads a little more of what it
// sends, so that a reset does not take away what was said last.
func (h *http1) farewell() {
	h.client.SetReadDeadline(time.Now().Add(drainTime))
	if half, ok := h.client.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	if h.client != net.Conn(h.c.client) {
		h.c.client.CloseWrite() // below TLS
	}
	io.CopyN(io.Discard, h.client, drainMost)
}

// A vigil watches whether a client still wants its answer. It begins when the
// answer takes long, so that quick requests cost no goroutine.
type vigil struct {
	h    *http1
	gone func()
	body *atomic.Bool // the request's body was read to its end

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	done    chan struct{} // closed when the watching goroutine has ended; nil: it never began
}

func (h *http1) watchOver(sent *atomic.Bool, gone func()) *vigil {
	v := &vigil{h: h, gone: gone, body: sent}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.timer = time.AfterFunc(h.c.relay.limits.Gone, v.begin)
	return v
}

func (v *vigil) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.stopped:
	case !v.body.Load():
		v.timer.Reset(v.h.c.relay.limits.Gone) // whoever reads the body will notice
	default:
		v.done = make(chan struct{})
		go v.watch(v.done)
	}
}

func (v *vigil) watch(done chan<- struct{}) {
	defer close(done)
	_, err := v.h.br.Peek(1)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		v.gone()
	}
}

// stop ends the vigil; the client may be read again.
func (v *vigil) stop() {
	v.mu.Lock()
	v.stopped = true
	v.timer.Stop()
	done := v.done
	v.mu.Unlock()
	if done != nil {
		v.h.client.SetReadDeadline(past)
		<-done
		v.h.client.SetReadDeadline(time.Time{})
	}
}
