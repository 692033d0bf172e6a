package proxy

import (
	"context"
	"net"
	"net/netip"

	"weir/rules"
)

// An Inspected is what a Relay gets: a connection whose requests are judged
// one by one. The Relay returns when the connection has ended. An error means
// that it could not be served at all (a failed TLS handshake, say) and makes
// the connection's own event a denial with the error as its reason; refused
// requests have their own events and are no error. When the connection is
// cut, ctx ends and Client is closed.
type Inspected struct {
	// Client reads what the container sends, from its first byte on, and has
	// CloseWrite. Bytes are counted here.
	Client net.Conn
	// Request are the facts that led here, Stage Hello. Request.Time is old
	// by the time a request is judged; the rest holds for all of them.
	Request rules.Request
	// Towards is where the client's own socket goes: Request.Addr, unless
	// another address stood for its name.
	Towards netip.AddrPort
	// Decision is the answer: Inspect, with Endpoint set.
	Decision rules.Decision
	// Dial connects to the address that was judged, within the limits. The
	// connection is the Relay's to close.
	Dial func(ctx context.Context) (*net.TCPConn, error)
}

// inspect hands f to the relay.
func (s *Server) inspect(ctx context.Context, f *flow, dst netip.AddrPort) {
	s.gauges.charge(inspectedCost)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.release = cancel
	f.mu.Unlock()
	if !f.goLive(nil, true) {
		return
	}
	defer s.hold(&f.record, dst)()
	if f.judgedAt() != s.generation.Load() && !f.rejudge(ctx, s) {
		return
	}
	s.learnProgram(ctx, f)()
	in := Inspected{
		Client:   &replayed{Conn: f.c, f: f},
		Request:  f.facts(s.now()),
		Towards:  f.towards,
		Decision: f.verdict(),
		Dial:     func(ctx context.Context) (*net.TCPConn, error) { return s.dial(ctx, dst) },
	}
	if err := s.Relay(ctx, in); err != nil {
		d := f.verdict()
		d.Verdict, d.Reason = rules.Deny, d.Reason+": "+plainError(err).Error()
		f.cut(d)
	}
}

// replayed is a client's connection with what was read of it in front.
type replayed struct {
	net.Conn
	f *flow
}

func (r *replayed) Read(b []byte) (n int, err error) {
	if p := &r.f.out; p.sent < len(p.buf) {
		n = copy(b, p.buf[p.sent:])
		if p.sent += n; p.sent == len(p.buf) {
			p.drop()
		}
	} else {
		n, err = r.Conn.Read(b)
	}
	r.f.moved.out.Add(int64(n))
	return n, err
}

func (r *replayed) Write(b []byte) (int, error) {
	n, err := r.Conn.Write(b)
	r.f.moved.in.Add(int64(n))
	return n, err
}

// CloseWrite ends the direction to the container.
func (r *replayed) CloseWrite() error { return r.f.c.CloseWrite() }
