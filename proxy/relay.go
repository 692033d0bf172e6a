package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

// A Relay serves the inspected connections of one container: it judges every
// request by itself and sends on what it judged, written anew. Fill in the
// fields, hand Serve to Server.Relay, and change nothing afterwards. All
// methods may be called at any time from any goroutine.
//
// TLS is opened with a certificate for the name that was judged, and only
// after the server has proven to be that name. The client is offered what the
// server accepted, so both sides speak the same version of HTTP. Each client
// connection has an upstream connection of its own.
type Relay struct {
	// Authority signs the certificates shown to the container. Required.
	Authority *CA
	// Roots are whom servers must be certified by. nil: the system's.
	Roots *x509.CertPool
	// CRLs are revocation lists that servers' certificates are checked
	// against, beside everything else; see LoadCRLs.
	CRLs []*x509.RevocationList
	// Policy returns the policy to judge by now; it is asked for each request.
	// Required. Whoever makes it return another one calls Rejudge afterwards.
	Policy func() *rules.Policy
	// Program finds who opened the connection client → dst; see Server.Program.
	Program func(ctx context.Context, transport rules.Transport, client, dst netip.AddrPort) (*rules.Program, error)
	// Record stores an event and returns its id. Required.
	Record func(audit.Event) int64
	// Limits; zero fields mean their defaults.
	Limits RelayLimits
	// Meter is told how long decisions and handshakes took. nil: nobody is.
	Meter Meter
	// Now is the clock of decisions, events and certificates. nil: time.Now.
	Now func() time.Time

	once     sync.Once
	limits   RelayLimits
	now      func() time.Time
	server   *tls.Config
	sessions tls.ClientSessionCache
	byIssuer map[string][]*x509.RevocationList
	requests gauge
	buffered gauge
	buffers  sync.Pool // of *[relayBuffer]byte

	// documents remembers what this container's GraphQL documents ask for, so
	// that no other container can make it forget them.
	documents graphql.Classifier

	// generation counts calls of Rejudge; see Server.generation.
	generation atomic.Uint64

	mu    sync.Mutex
	conns map[*intercepted]struct{}
}

// relayBuffer holds what one TLS record can (RFC 8446, 5.1) and is what a body
// is copied through.
const relayBuffer = 16 << 10

func (r *Relay) init() {
	r.once.Do(func() {
		r.limits = r.Limits.withDefaults()
		if r.now = r.Now; r.now == nil {
			r.now = time.Now
		}
		r.server = &tls.Config{GetConfigForClient: configFor}
		r.sessions = tls.NewLRUClientSessionCache(256)
		r.byIssuer = make(map[string][]*x509.RevocationList)
		for _, l := range r.CRLs {
			r.byIssuer[string(l.RawIssuer)] = append(r.byIssuer[string(l.RawIssuer)], l)
		}
		r.requests.what, r.requests.most = "requests under way", int64(r.limits.Requests)
		r.buffered.what, r.buffered.most = "bytes held to be judged", r.limits.Buffered
		r.buffers.New = func() any { return new([relayBuffer]byte) }
		r.conns = make(map[*intercepted]struct{})
	})
}

// An intercepted is one connection that the Relay serves.
type intercepted struct {
	relay  *Relay
	in     Inspected
	client *stalling
	host   string // the judged name, or the address when there is none
	tls    bool

	// name and nameAndPort are how requests write host.
	name, nameAndPort string

	// Of the TLS handshake: the first connection to the server, made to learn
	// what it speaks, or why there is none.
	first    *upstream
	firstErr error
	waited   time.Duration // of the client's handshake, for the server

	mu      sync.Mutex
	live    map[*exchange]struct{}
	held    []*upstream
	ended   bool
	program *rules.Program
	sought  bool // program was looked for
}

// Serve serves one inspected connection until it ends. Its error is that of a
// connection that could not be served at all.
func (r *Relay) Serve(ctx context.Context, in Inspected) error {
	r.init()
	c := &intercepted{relay: r, in: in, host: in.Decision.Host, live: make(map[*exchange]struct{})}
	if c.host == "" {
		c.host = in.Request.Addr.String()
	}
	c.name = c.host
	if strings.Contains(c.host, ":") {
		c.name = "[" + c.host + "]"
	}
	c.nameAndPort = c.name + ":" + strconv.Itoa(int(in.Request.Port))
	c.program, c.sought = in.Request.Program, in.Request.ProgramFailed || in.Request.Program != nil
	c.client = &stalling{Conn: in.Client, c: c}
	r.mu.Lock()
	r.conns[c] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.conns, c)
		r.mu.Unlock()
	}()
	defer c.end()
	defer context.AfterFunc(ctx, c.end)()

	switch in.Request.Claim.Kind {
	case rules.ClaimHTTP:
		newHTTP1(c, c.client).serve(ctx)
		return nil
	case rules.ClaimTLS:
		return c.serveTLS(ctx)
	}
	return errors.New("neither TLS nor HTTP, so its requests cannot be judged")
}

// serveTLS opens the client's TLS and serves what is in it.
func (c *intercepted) serveTLS(ctx context.Context) error {
	c.tls = true
	t := tls.Server(c.client, c.relay.server)
	// Within it the server is dialled and shakes hands too.
	shake, cancel := context.WithTimeout(ctx, 3*c.relay.limits.Handshake)
	began := time.Now()
	err := t.HandshakeContext(shake)
	cancel()
	c.relay.shaken(ClientSide, time.Since(began)-c.waited, err)
	switch {
	case ctx.Err() != nil:
		return nil // cut
	case err != nil:
		return c.refusedByClient(err)
	}
	if t.ConnectionState().NegotiatedProtocol == protoHTTP2 {
		c.serveHTTP2(ctx, t)
	} else {
		newHTTP1(c, t).serve(ctx)
	}
	t.Close()
	return nil
}

func (c *intercepted) refusedByClient(err error) error {
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return fmt.Errorf("the client refused Weir's certificate for %s (%w): run \"weir ca install\" for the container, or leave the protocol out of its endpoint, which is then not inspected", c.host, alert)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return fmt.Errorf("the client refused Weir's certificate for %s (%v): run \"weir ca install\" for the container, or leave the protocol out of its endpoint, which is then not inspected", c.host, op.Err)
	}
	return fmt.Errorf("the TLS handshake with the client failed: %w", err)
}

// The protocols of ALPN (RFC 7301) that are relayed.
const (
	protoHTTP2 = "h2"
	protoHTTP1 = "http/1.1"
)

// configFor answers a ClientHello: it asks the server which protocol it
// speaks, out of those that the client offers, and mirrors the answer.
func configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := hello.Conn.(*stalling).c
	var offer []string
	for _, p := range hello.SupportedProtos {
		if p == protoHTTP2 || p == protoHTTP1 {
			offer = append(offer, p)
		}
	}
	cert, err := c.relay.Authority.Leaf(c.host)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{Certificates: []tls.Certificate{*cert}, Time: c.relay.now}
	began := time.Now()
	c.first, c.firstErr = c.dial(hello.Context(), offer)
	c.waited = time.Since(began)
	switch {
	case c.firstErr == nil && c.first.protocol != "":
		conf.NextProtos = []string{c.first.protocol}
	case c.firstErr == nil:
	case slices.Contains(offer, protoHTTP1):
		conf.NextProtos = []string{protoHTTP1} // enough to say what went wrong
	default:
		conf.NextProtos = offer
	}
	return conf, nil
}

// takeFirst returns what the handshake has left behind, once.
func (c *intercepted) takeFirst() (*upstream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, err := c.first, c.firstErr
	c.first, c.firstErr = nil, nil
	return u, err
}

// hold makes u end with the connection; false if it has ended.
func (c *intercepted) hold(u *upstream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.held = append(c.held, u)
	}
	return !c.ended
}

// release closes u, of which nothing more is wanted.
func (c *intercepted) release(u *upstream, clean bool) {
	c.mu.Lock()
	c.held = slices.DeleteFunc(c.held, func(h *upstream) bool { return h == u })
	c.mu.Unlock()
	u.close(clean)
}

// end closes everything towards the server.
func (c *intercepted) end() {
	c.mu.Lock()
	held := c.held
	c.held, c.ended = nil, true
	c.mu.Unlock()
	for _, u := range held {
		u.close(false)
	}
}

// whoConnects finds the program, once per connection.
func (c *intercepted) whoConnects(ctx context.Context) (p *rules.Program, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sought && c.relay.Program != nil {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if p, err := c.relay.Program(ctx, rules.TCP, addrPort(c.in.Client.RemoteAddr()), c.in.Towards); err == nil {
			c.program = p
		}
	}
	c.sought = true
	return c.program, c.program == nil
}

// A stalling is the client's connection with a deadline on every write, so
// that a client which never reads does not hold what is sent to it for ever.
type stalling struct {
	net.Conn
	c   *intercepted
	set atomic.Int64 // when the deadline was set, Unix seconds
}

func (s *stalling) Write(b []byte) (int, error) {
	limit := s.c.relay.limits.Stall
	if now := time.Now(); now.Unix()-s.set.Load() > int64(limit/time.Second)/4 {
		s.set.Store(now.Unix())
		s.SetWriteDeadline(now.Add(limit + limit/4))
	}
	return s.Conn.Write(b)
}

// CloseWrite ends the direction to the client.
func (s *stalling) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return s.Conn.Close()
}
