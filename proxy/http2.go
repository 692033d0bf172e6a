package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"weir/rules"
)

// How many bytes are held of what a server sends and its client has not taken:
// of one stream, and of a connection. A client that leaves so much unread stops
// the other streams of its connection too, and holds no more memory with any
// number of them.
const (
	serverStreamWindow = 1 << 20
	serverWindow       = 2 << 20
)

// An http2Conn is a connection on which the client speaks HTTP/2. Each of its
// streams is judged by itself.
type http2Conn struct {
	c         *intercepted
	transport *http2.Transport

	mu sync.Mutex
	up *http2.ClientConn // nil: none, or none any more
}

// serveHTTP2 relays the requests of t until it ends.
func (c *intercepted) serveHTTP2(ctx context.Context, t *tls.Conn) {
	limits := c.relay.limits
	transport, err := http2.ConfigureTransports(&http.Transport{HTTP2: &http.HTTP2Config{
		// What a server may send that the client does not take yet.
		MaxReceiveBufferPerStream:     serverStreamWindow,
		MaxReceiveBufferPerConnection: serverWindow,
	}})
	if err != nil { // an http.Transport that was configured before
		panic(err)
	}
	transport.DisableCompression = true // the client's Accept-Encoding is the one that counts
	transport.MaxHeaderListSize = uint32(limits.HeaderBytes)
	h := &http2Conn{c: c, transport: transport}
	server := &http2.Server{MaxConcurrentStreams: uint32(limits.Streams), CountError: h.unheard}
	server.ServeConn(t, &http2.ServeConnOpts{
		Context: ctx,
		Handler: h,
		// Up to twice the limit a head gets to where its refusal is recorded.
		BaseConfig: &http.Server{MaxHeaderBytes: 2 * limits.HeaderBytes, ErrorLog: log.New(h, "", 0)},
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up != nil {
		h.up.Close()
	}
}

// unheard records a stream that the library resets by itself, because its
// pseudo-header fields are no request. Its other errors are about frames: what
// they belong to has an event, or asked for nothing.
func (h *http2Conn) unheard(kind string) {
	why := ""
	switch strings.TrimPrefix(kind, "stream_PROTOCOL_ERROR_") {
	case "bad_path", "bad_path_method", "bad_connect":
		why = "HTTP/2 stream with a bad path, method or scheme"
	case "userinfo_in_authority", "invalid_authority":
		why = "no or a malformed :authority"
	case "authority_host_mismatch":
		why = "the :authority and the Host field differ"
	case "multiple_host_headers":
		why = "more than one Host field"
	default:
		return
	}
	h.refuse(why)
}

func (h *http2Conn) refuse(why string) {
	e := h.c.begin()
	e.refuse(malformed(why))
	e.finish()
}

// Write takes what the library logs: why it ends a connection whose frames
// break the protocol, or are too many that ask for nothing. What goes wrong in
// a request is in its event.
func (h *http2Conn) Write(line []byte) (int, error) {
	if why, ok := strings.CutPrefix(string(line), "http2: server connection error from "); ok {
		why = why[strings.LastIndexByte(why, ' ')+1:] // the code's name
		h.refuse("the connection breaks HTTP/2 (" + strings.TrimSpace(why) + ")")
	}
	return len(line), nil
}

// connection returns a connection to the server that takes another stream.
func (h *http2Conn) connection(ctx context.Context) (*http2.ClientConn, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up != nil && h.up.CanTakeNewRequest() {
		return h.up, nil
	}
	h.up = nil
	u, err := h.c.takeFirst()
	if err == nil && u == nil {
		// Not ended with the stream that happens to need it first.
		u, err = h.c.dial(context.WithoutCancel(ctx), []string{protoHTTP2})
	}
	if err != nil {
		return nil, err
	}
	if u.protocol != protoHTTP2 {
		h.c.release(u, false)
		return nil, errors.New("the server does not speak HTTP/2 any more")
	}
	if h.up, err = h.transport.NewClientConn(&smallFrames{Conn: u.Conn}); err != nil {
		h.c.release(u, false)
		return nil, fmt.Errorf("HTTP/2 with the server: %w", err)
	}
	return h.up, nil
}

// ServeHTTP relays one stream.
func (h *http2Conn) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	e := h.c.begin()
	defer e.finish()
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	live := e.goLive(func() {
		cancel()
		http.NewResponseController(w).SetWriteDeadline(past)
	})
	if !live {
		panic(http.ErrAbortHandler)
	}
	if !e.admit() {
		h.answer(w, req, e.refusal(ruling{status: http.StatusServiceUnavailable}))
		return
	}
	defer h.c.relay.requests.leave()
	r := h.rule(ctx, e, req)
	defer h.c.relay.giveBack(&r)
	if r.Verdict != rules.Allow {
		h.answer(w, req, e.refusal(r))
		return
	}
	if r.held != nil {
		req.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(r.held), req.Body), req.Body}
	}
	h.forward(ctx, e, w, req, &r)
}

// rule judges a stream's request.
func (h *http2Conn) rule(ctx context.Context, e *exchange, req *http.Request) ruling {
	a := asked{method: strings.ToUpper(req.Method), target: req.RequestURI, authority: req.Host}
	a.each = func(yield func(name, value string) bool) {
		for name, vs := range req.Header {
			for _, v := range vs {
				if !yield(name, v) {
					return
				}
			}
		}
	}
	if req.ContentLength != 0 {
		a.body = req.Body
	}
	hosts := req.Header.Values("Host")
	fields, size := 0, 0
	for name, vs := range req.Header {
		fields += len(vs)
		for _, v := range vs {
			size += len(name) + len(v)
		}
	}
	switch {
	case !isToken([]byte(a.method)) || len(a.method) > maxMethod:
		a.method = ""
		return e.unfit(a, malformed("malformed method"))
	case size > h.c.relay.limits.HeaderBytes:
		return e.unfit(a, malformed("the head is longer than "+strconv.Itoa(h.c.relay.limits.HeaderBytes)+" bytes"))
	case fields > h.c.relay.limits.Fields:
		return e.unfit(a, malformed("more than "+strconv.Itoa(h.c.relay.limits.Fields)+" header fields"))
	case req.Host == "" || !utterable(req.Host):
		return e.unfit(a, malformed("no or a malformed :authority"))
	case len(hosts) > 1 || len(hosts) == 1 && !strings.EqualFold(hosts[0], req.Host):
		return e.unfit(a, malformed("the :authority and the Host field differ"))
	}
	return e.rule(ctx, a)
}

// unfit refuses a request that is not judged at all.
func (e *exchange) unfit(a asked, d rules.Decision) ruling {
	e.mu.Lock()
	e.facts.HTTP = &rules.HTTPRequest{Method: a.method, Target: a.target}
	e.mu.Unlock()
	return ruling{}.refuse(e, d)
}

// utterable: what splitAuthority takes.
func utterable(authority string) bool {
	_, _, err := splitAuthority(authority)
	return err == nil
}

// forward sends an allowed request on and its response back.
func (h *http2Conn) forward(ctx context.Context, e *exchange, w http.ResponseWriter, req *http.Request, r *ruling) {
	up, err := h.connection(ctx)
	if err != nil {
		e.unreachable(err)
		h.answer(w, req, e.answer(http.StatusBadGateway, r.grpc))
		return
	}
	trace := &httptrace.ClientTrace{Got1xxResponse: func(status int, header textproto.MIMEHeader) error {
		if status == http.StatusContinue {
			return nil // the client is told when its body is read
		}
		passHeader(w.Header(), http.Header(header))
		w.WriteHeader(status)
		clear(w.Header())
		return nil
	}}
	res, err := up.RoundTrip(h.outgoing(httptrace.WithClientTrace(ctx, trace), e, req, *r))
	h.c.relay.giveBack(r)
	if err != nil {
		if req.Context().Err() != nil || ctx.Err() != nil {
			e.fail("broken off before the server answered")
			panic(http.ErrAbortHandler)
		}
		e.fail("no answer from the server: " + serversError(err))
		h.answer(w, req, e.answer(http.StatusBadGateway, r.grpc))
		return
	}
	defer res.Body.Close()
	if err := h.pass(e, w, res); err != nil {
		e.fail("broken off: " + serversError(err))
		panic(http.ErrAbortHandler) // a reset of the stream, not an end
	}
}

// serversError is an error of the server's connection without the text that
// the server may have put into it.
func serversError(err error) string {
	if away, ok := errors.AsType[http2.GoAwayError](err); ok {
		return "it went away (" + away.ErrCode.String() + ")"
	}
	return err.Error()
}

// outgoing is the request as it was judged.
func (h *http2Conn) outgoing(ctx context.Context, e *exchange, req *http.Request, r ruling) *http.Request {
	authority := h.c.authority(req.Host)
	out := &http.Request{
		Method: strings.ToUpper(req.Method),
		URL:    &url.URL{Scheme: "https", Host: authority, Opaque: r.target},
		Host:   authority,
		Header: make(http.Header, len(req.Header)+1),
		Proto:  "HTTP/2.0", ProtoMajor: 2,
	}
	for name, vs := range req.Header {
		if name == "Te" || !hopByHop(name) && name != "Host" && name != "Expect" && name != "Content-Length" && !(r.rewritten && bodyField(name)) {
			out.Header[name] = vs
		}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // none, rather than the library's
	}
	switch {
	case r.rewritten:
		if r.body != nil {
			out.Header["Content-Type"] = []string{"application/json"}
			out.Body, out.ContentLength = io.NopCloser(strings.NewReader(string(r.body))), int64(len(r.body))
		}
	case req.ContentLength != 0:
		out.Body, out.ContentLength, out.Trailer = &counted{req.Body, e}, req.ContentLength, req.Trailer
	}
	return out.WithContext(ctx)
}

// A counted is a request's body that adds to its exchange's bytes.
type counted struct {
	io.ReadCloser
	e *exchange
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.e.out.Add(int64(n))
	return n, err
}

// pass writes the response to the client, each part as it comes.
func (h *http2Conn) pass(e *exchange, w http.ResponseWriter, res *http.Response) error {
	header := w.Header()
	passHeader(header, res.Header)
	for name := range res.Trailer {
		header.Add("Trailer", name)
	}
	// What the server did not say is not made up.
	for _, name := range []string{"Date", "Content-Type"} {
		if _, ok := header[name]; !ok {
			header[name] = nil
		}
	}
	announced := len(res.Trailer)
	w.WriteHeader(res.StatusCode)
	if res.Body == http.NoBody || res.ContentLength == 0 {
		return nil // the head ends the stream
	}
	flush := http.NewResponseController(w)
	buf := h.c.relay.buffers.Get().(*[relayBuffer]byte)
	defer h.c.relay.buffers.Put(buf)
	if err := flush.Flush(); err != nil {
		return err
	}
	for {
		n, err := res.Body.Read(buf[:])
		if n > 0 {
			e.in.Add(int64(n))
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if werr := flush.Flush(); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	for name, vs := range res.Trailer {
		if len(res.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		for _, v := range vs {
			header.Add(name, v)
		}
	}
	return nil
}

func passHeader(to, from http.Header) {
	for name, vs := range from {
		if !hopByHop(name) || name == "Proxy-Authenticate" {
			to[name] = vs
		}
	}
}

// answer writes a response of Weir's own.
func (h *http2Conn) answer(w http.ResponseWriter, req *http.Request, a answer) {
	for _, f := range a.fields {
		w.Header().Set(f.name, f.value)
	}
	if len(a.body) > 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	w.WriteHeader(a.status)
	if req.Method != "HEAD" {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(h.c.relay.limits.Head))
		w.Write(a.body)
	}
}
