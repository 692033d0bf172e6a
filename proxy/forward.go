package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// maxInformational bounds the 1xx responses to one request.
const maxInformational = 32

// forward sends an allowed request on and its response back.
func (h *http1) forward(ctx context.Context, e *exchange, head *requestHead, r *ruling, b *body) (goesOn bool) {
	streams := head.hasBody() && !r.rewritten
	for {
		u, err := h.connection(ctx)
		if err != nil {
			return h.unreachable(e, head, b, err)
		}
		again := u.used && !streams && !r.rewritten && idempotent(head.method)
		u.used = true
		h.writeRequest(u.bw, head, *r, nil)
		if !streams {
			err = u.bw.Flush()
		}
		h.c.relay.giveBack(r)
		var answered bool
		if err == nil {
			goesOn, answered, err = h.converse(e, head, b, u, streams)
		}
		if err == nil {
			return goesOn
		}
		h.drop(u)
		if again && !answered && mayRepeat(err) {
			continue // the server had closed a connection that it did not like to keep
		}
		return h.broken(e, head, err, answered)
	}
}

// connection returns the connection to the server, a new one if need be.
func (h *http1) connection(ctx context.Context) (*upstream, error) {
	if h.up != nil {
		if h.up.usable() {
			return h.up, nil
		}
		h.drop(h.up)
	}
	u, err := h.c.takeFirst()
	if err == nil && u == nil {
		var offer []string
		if h.c.tls {
			offer = []string{protoHTTP1}
		}
		u, err = h.c.dial(ctx, offer)
	}
	if err == nil && u.protocol == protoHTTP2 {
		h.c.release(u, false)
		err = errors.New("the server speaks only HTTP/2 to clients of HTTP/1.1")
	}
	if err != nil {
		return nil, err
	}
	h.up = u
	return u, nil
}

// drop closes the connection to the server in the middle of something.
func (h *http1) drop(u *upstream) {
	h.c.release(u, false)
	h.up = nil
}

// idempotent: methods that may be sent twice (RFC 9110, 9.2.2).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// unreachable answers a request that was allowed and could not be sent.
func (h *http1) unreachable(e *exchange, head *requestHead, b *body, err error) bool {
	e.unreachable(err)
	keep := h.rest(head, b)
	head.persists = false // the next attempt is a new connection's
	return h.answer(e.refusal(ruling{Decision: e.decision, status: http.StatusBadGateway}), head, keep)
}

// unreachable settles e: a server that does not prove its name is refused, and
// anything else is no verdict.
func (e *exchange) unreachable(err error) {
	if _, ok := errors.AsType[untrusted](err); ok {
		d := e.decision
		d.Reason += "; " + err.Error()
		e.refuse(d)
		return
	}
	e.fail(err.Error())
}

// The errors of a conversation, beside a problem (the client's request is
// malformed), writing and those of the server's connection.
type (
	// A serverProblem is a response that cannot be read in one way only.
	serverProblem struct{ error }
	// A clientGone is a client that left in the middle.
	clientGone struct{ error }
)

func (s serverProblem) Error() string {
	return "the server's response is malformed: " + s.error.Error()
}
func (g clientGone) Error() string { return "the client went away: " + plainError(g.error).Error() }

// broken ends an exchange that failed after it was sent.
func (h *http1) broken(e *exchange, head *requestHead, err error, answered bool) bool {
	bad, isProblem := errors.AsType[problem](err)
	gone, isGone := errors.AsType[clientGone](err)
	server, isServer := errors.AsType[serverProblem](err)
	switch {
	case isGone:
		e.fail(gone.Error())
		return false
	case answered:
		e.fail("broken off: " + plainError(err).Error())
		h.c.in.Client.Close() // what came is not to be taken for the whole
		return false
	case isServer:
		e.fail(server.Error())
	case isProblem:
		e.refuse(malformed(string(bad)))
		return h.answer(e.refusal(ruling{Decision: e.decision}), head, false)
	default:
		e.fail("no answer from the server: " + plainError(err).Error())
	}
	return h.answer(e.refusal(ruling{Decision: e.decision, status: http.StatusBadGateway}), head, false)
}

// mayRepeat: nothing but the loss of the connection is known.
func mayRepeat(err error) bool {
	_, gone := errors.AsType[clientGone](err)
	_, server := errors.AsType[serverProblem](err)
	return !gone && !server
}

// converse sends the body while it takes the response. answered says that the
// client has got some of that.
func (h *http1) converse(e *exchange, head *requestHead, b *body, u *upstream, streams bool) (goesOn, answered bool, err error) {
	var upload chan error
	var sent, gone atomic.Bool
	switch {
	case streams && !b.chunked && int64(h.br.Buffered()) >= b.left:
		if err := h.upload(e, head, b, u); err != nil {
			return false, false, err
		}
		sent.Store(true)
	case streams:
		upload = make(chan error, 1)
		go func() {
			err := h.upload(e, head, b, u)
			sent.Store(err == nil)
			upload <- err
			if _, ok := errors.AsType[writing](err); err != nil && !ok {
				abort(u.tcp) // the server must not take what came for the whole
			}
		}()
	default:
		sent.Store(true)
	}
	v := h.watchOver(&sent, func() {
		gone.Store(true)
		abort(u.tcp)
	})
	res, answered, err := h.takeResponse(e, head, u)
	v.stop()
	whole := true
	if upload != nil {
		whole, err = h.endUpload(upload, u, err)
	}
	h.unstall()
	switch {
	case gone.Load():
		return false, answered, clientGone{io.EOF}
	case err != nil:
		return false, answered, err
	}
	if res.closes || !whole {
		h.c.release(u, whole)
		h.up = nil
	}
	if !head.persists || res.closes || !whole {
		h.farewell()
		return false, answered, nil
	}
	return true, answered, nil
}

// endUpload waits for the upload beside a response that has ended, or failed
// with err. whole says that the body was sent to its end.
func (h *http1) endUpload(upload <-chan error, u *upstream, err error) (whole bool, _ error) {
	var uerr error
	if err == nil {
		// The server has said all it wants to. A client that still sends after
		// a moment is not told anything more by going on.
		timer := time.NewTimer(drainTime)
		defer timer.Stop()
		select {
		case uerr = <-upload:
		case <-timer.C:
			h.interrupt(u)
			<-upload
			uerr = io.ErrUnexpectedEOF
		}
		h.resume()
		return uerr == nil, nil
	}
	select {
	case uerr = <-upload:
	default:
		h.interrupt(u)
		<-upload
	}
	h.resume()
	if _, ok := errors.AsType[writing](uerr); uerr != nil && !ok {
		err = uerr // why the server was cut off
	}
	return false, err
}

// interrupt makes an upload end that waits for either side.
func (h *http1) interrupt(u *upstream) {
	h.deadline.Lock()
	defer h.deadline.Unlock()
	h.over = true
	h.client.SetReadDeadline(past)
	abort(u.tcp)
}

func (h *http1) resume() {
	h.deadline.Lock()
	h.over = false
	h.deadline.Unlock()
	h.client.SetReadDeadline(time.Time{})
}

// upload sends the request's body on.
func (h *http1) upload(e *exchange, head *requestHead, b *body, u *upstream) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = clientGone{fmt.Errorf("internal error: %v", p)}
		}
	}()
	buf := h.c.relay.buffers.Get().(*[relayBuffer]byte)
	defer h.c.relay.buffers.Put(buf)
	err = b.copyTo(u.bw, head.chunked, buf[:], func(n int) { e.out.Add(int64(n)) }, h.stall)
	if err == nil {
		if err = u.bw.Flush(); err != nil {
			err = writing{err}
		}
	}
	_, isProblem := errors.AsType[problem](err)
	if _, ok := errors.AsType[writing](err); err == nil || ok || isProblem {
		return err
	}
	return clientGone{err}
}

// writeRequest writes the head of what was judged, with extra fields, and its
// body if that was written anew.
func (h *http1) writeRequest(w *bufio.Writer, head *requestHead, r ruling, extra []field) {
	w.WriteString(head.method)
	w.WriteByte(' ')
	w.WriteString(r.target)
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(h.c.authority(head.authority))
	w.WriteString("\r\n")
	for _, f := range head.fields {
		if r.rewritten && bodyField(f.name) {
			continue
		}
		writeField(w, f)
	}
	switch {
	case r.rewritten && r.body != nil:
		writeField(w, field{"Content-Type", "application/json"})
		writeField(w, field{"Content-Length", strconv.Itoa(len(r.body))})
	case r.rewritten:
	case head.chunked:
		writeField(w, field{"Transfer-Encoding", "chunked"})
	case head.length >= 0:
		writeField(w, field{"Content-Length", strconv.FormatInt(head.length, 10)})
	}
	if head.expects {
		writeField(w, field{"Expect", "100-continue"})
	}
	if head.trailers {
		writeField(w, field{"TE", "trailers"})
		writeField(w, field{"Connection", "TE"})
	}
	for _, f := range extra {
		writeField(w, f)
	}
	w.WriteString("\r\n")
	if r.rewritten {
		w.Write(r.body)
	}
}

// bodyField: fields about a body that is written anew.
func bodyField(name string) bool {
	return oneOf(name, "Content-Type", "Content-Encoding", "Content-MD5", "Digest", "Content-Digest", "Repr-Digest", "Trailer")
}

// takeResponse reads the response to head and writes it to the client.
func (h *http1) takeResponse(e *exchange, head *requestHead, u *upstream) (res *responseHead, answered bool, err error) {
	for n := 0; ; n++ {
		res, err = h.c.readResponse(e, u)
		if err != nil {
			return nil, false, err
		}
		if res.status >= 200 {
			break
		}
		switch {
		case n == maxInformational:
			return nil, false, serverProblem{problem("too many informational responses")}
		case res.status == http.StatusSwitchingProtocols:
			return nil, false, serverProblem{problem("it switches the protocol, which nobody asked for")}
		case head.minor == 0:
			continue
		}
		res.write(h.bw, nil)
		if err := h.bw.Flush(); err != nil {
			return nil, true, writing{err}
		}
	}
	return res, true, h.writeResponse(e, head, u, res)
}

func (c *intercepted) readResponse(e *exchange, u *upstream) (*responseHead, error) {
	text, err := readHead(u.br, c.relay.limits.HeaderBytes, func() {})
	if _, ok := errors.AsType[problem](err); ok {
		return nil, serverProblem{err}
	}
	if err == io.EOF {
		return nil, errors.New("the server closed the connection")
	}
	if err != nil {
		return nil, err
	}
	e.in.Add(int64(len(text)))
	res, err := parseResponseHead(text, c.relay.limits.Fields)
	if err != nil {
		return nil, serverProblem{err}
	}
	return res, nil
}

// writeResponse passes a final response on, in the framing it came in unless
// the client would not understand that.
func (h *http1) writeResponse(e *exchange, head *requestHead, u *upstream, res *responseHead) error {
	b := &body{br: u.br, left: max(res.length, 0), chunked: res.chunked, limits: &h.c.relay.limits}
	b.open = !res.chunked && res.length < 0
	bare := head.method == "HEAD" || res.status == http.StatusNoContent || res.status == http.StatusNotModified
	if bare {
		b.open, b.chunked, b.left = false, false, 0
	}
	chunks := b.chunked && head.minor == 1
	res.closes = res.closes || b.open || b.chunked && !chunks

	var extra []field
	switch {
	case res.chunked && head.minor == 1:
		extra = append(extra, field{"Transfer-Encoding", "chunked"})
	case res.length >= 0:
		extra = append(extra, field{"Content-Length", strconv.FormatInt(res.length, 10)})
	}
	switch {
	case res.closes || !head.persists:
		extra = append(extra, field{"Connection", "close"})
	case head.minor == 0:
		extra = append(extra, field{"Connection", "keep-alive"})
	}
	res.write(h.bw, extra)
	if bare {
		return h.bw.Flush()
	}
	buf := h.c.relay.buffers.Get().(*[relayBuffer]byte)
	defer h.c.relay.buffers.Put(buf)
	if err := b.copyTo(h.bw, chunks, buf[:], func(n int) { e.in.Add(int64(n)) }, nil); err != nil {
		return err
	}
	return h.bw.Flush()
}

func statusText(status int) string { return http.StatusText(status) }
