package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weir/ask"
	"weir/audit"
	"weir/rules"
)

// A Server is the data path of one container. Fill in the fields, call Serve
// and, for UDP, ServeUDP once each, and change nothing afterwards. All methods may be called at any time
// from any goroutine.
type Server struct {
	// Container is whose connections these are; it comes with the listener
	// and is never looked up.
	Container rules.Container
	// Policy returns the policy to judge by now. Required. Whoever makes it
	// return another one calls Rejudge afterwards.
	Policy func() *rules.Policy
	// Names returns the names that this container resolved to an address and
	// that still count; the slice is kept, not changed. nil: none.
	Names func(a netip.Addr, now time.Time) []string
	// Hold keeps a name of an address counting until release is called, which
	// happens when the connection that it was the name of has ended. ok is
	// false when there is no such name; release is never nil. nil: names count
	// for as long as Names says.
	Hold func(name string, a netip.Addr) (release func(), ok bool)
	// Prove resolves a name and reports whether the answer contains the
	// address. It is asked about an address without names only, and only where
	// a yes can lead to an allow. nil: nothing can be proven.
	Prove func(ctx context.Context, name string, a netip.Addr) bool
	// Program finds who opened the connection or UDP association client → dst,
	// as seen inside the container. It is asked only where a rule lists programs. nil, an
	// error or a nil Program: not found.
	Program func(ctx context.Context, transport rules.Transport, client, dst netip.AddrPort) (*rules.Program, error)
	// OriginalDst returns where the client wanted to go (SO_ORIGINAL_DST).
	// Required.
	OriginalDst func(c *net.TCPConn) (netip.AddrPort, error)
	// StandsFor returns the name that this container was given an address for in
	// the place of the name's own, and false for every other address. nil: there
	// are none.
	StandsFor func(a netip.Addr) (name string, ok bool)
	// Lookup resolves a name that an address stands for, once it is allowed, and
	// notes that it did for Names. Required with StandsFor.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Ask puts a flow that a person could allow to people, and returns where
	// their answer will come; the error says why nobody is asked. nil: it is
	// refused.
	Ask func(q ask.Question) (*ask.Waiting, error)
	// Dial connects to an address. nil: from this process's network namespace.
	// Loopback, unspecified and multicast addresses never get here.
	Dial func(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error)
	// DialUDP makes a socket that is connected to an address. nil: from this
	// process's network namespace. The same addresses never get here.
	DialUDP func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error)
	// Record stores an event and returns its id; it blocks while the store
	// cannot keep up. Required.
	Record func(audit.Event) int64
	// Relay serves a connection whose requests are judged one by one, until
	// it ends; see Inspected. nil: such connections are refused.
	Relay func(ctx context.Context, in Inspected) error
	// Limits; zero fields mean their defaults.
	Limits Limits
	// Meter is told how long decisions took. nil: nobody is.
	Meter Meter
	// Log gets panics and accept failures. nil: discarded; both are events.
	Log *slog.Logger
	// Now is the clock of decisions and events. nil: time.Now.
	Now func() time.Time

	once    sync.Once
	limits  Limits
	gauges  gauges
	stores  stores
	lookups chan struct{} // one element for each program looked for in learning mode
	now     func() time.Time
	connect func(context.Context, netip.AddrPort) (*net.TCPConn, error)
	log     *slog.Logger

	// generation counts calls of Rejudge, so that a flow which was judged
	// just before one and becomes live just after it is judged again.
	generation atomic.Uint64

	mu       sync.Mutex
	changed  chan struct{} // closed when held flows are to be looked at; nil: nobody waits for it
	flows    map[uint64]party
	lastID   uint64
	closing  bool
	listener *net.TCPListener
	handlers sync.WaitGroup // one per accepted connection; added to before served is closed
	served   chan struct{}  // closed when Serve's loop has ended; nil before Serve
	udp      udpSide
}

// ErrClosed is the answer of Serve when it was called after Shutdown or twice.
var ErrClosed = errors.New("proxy: already served or shut down; make a new Server")

func (s *Server) init() {
	s.once.Do(func() {
		s.limits = s.Limits.withDefaults()
		s.gauges.init(s.limits)
		s.stores.init(s.limits.Pipes)
		s.flows = make(map[uint64]party)
		s.lookups = make(chan struct{}, learnLookups)
		if s.now = s.Now; s.now == nil {
			s.now = time.Now
		}
		if s.connect = s.Dial; s.connect == nil {
			s.connect = dialDirect
		}
		if s.log = s.Log; s.log == nil {
			s.log = slog.New(slog.DiscardHandler)
		}
	})
}

// Serve accepts and handles connections until Shutdown is called or ctx is
// done, then waits for them to end and for their events to be recorded. It
// returns nil after Shutdown. When ctx is done it cuts what is live and
// returns ctx's error. It does not close l, which belongs to the attachment;
// if someone else does, Serve cuts everything and says so.
func (s *Server) Serve(ctx context.Context, l *net.TCPListener) error {
	s.init()
	s.mu.Lock()
	if s.closing || s.served != nil {
		s.mu.Unlock()
		return ErrClosed
	}
	s.listener = l
	s.served = make(chan struct{})
	s.mu.Unlock()

	l.SetDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() {
		l.SetDeadline(time.Unix(1, 0))
		s.cutAll(rules.TCP, "Weir stopped")
	})()
	house, closeHouse := context.WithCancel(ctx)
	housekeeping := make(chan struct{})
	go func() {
		defer close(housekeeping)
		s.keepHouse(house)
	}()

	err := s.accept(ctx, l)
	close(s.served)
	if err != nil {
		s.cutAll(rules.TCP, "Weir stopped")
	}
	s.handlers.Wait()
	closeHouse()
	<-housekeeping
	s.reportLimits(rules.TCP, "connections", s.gauges.tcp())
	s.stores.close()
	return err
}

// accept takes connections until it is told to stop.
func (s *Server) accept(ctx context.Context, l *net.TCPListener) error {
	for failing := backoff(0); ; {
		c, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				abort(c)
			}
			return ctx.Err()
		case err == nil: // even when stopping: it is drained like those before
		case s.stopping():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		default:
			// Out of file descriptors or memory: the connection stays in the
			// backlog, so try again soon, but do not spin.
			s.gauges.accepting.hits.Add(1)
			s.log.Warn("accept failed", "container", s.Container.Name, "error", err)
			failing.wait(ctx)
			continue
		}
		failing = 0
		if !s.gauges.admit(ctx) {
			abort(c)
			continue
		}
		go s.handle(ctx, s.register(c))
	}
}

// Shutdown stops accepting, ends the UDP associations, which have no end of
// their own, and waits until the live connections have ended.
// When ctx is done first, the rest is cut. It returns after the last event
// was recorded; the error is ctx's if something had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.mu.Lock()
	s.closing = true
	l, served := s.listener, s.served
	s.mu.Unlock()
	s.wakeHeld()
	s.stopUDP()
	if served == nil {
		return nil
	}
	l.SetDeadline(time.Unix(1, 0))
	<-served
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.handlers.Wait()
	}()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
	}
	s.cutAll(rules.TCP, "Weir stopped")
	<-drained
	return ctx.Err()
}

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// keepHouse reports limits every second and closes idle connections.
func (s *Server) keepHouse(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	idle := time.NewTicker(max(s.limits.Idle/8, time.Millisecond))
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-second.C:
			s.reportLimits(rules.TCP, "connections", s.gauges.tcp())
		case <-idle.C:
			s.sweepIdle(rules.TCP, s.limits.Idle, time.Now())
		}
	}
}

// reportLimits records one event for each limit hit since the last time.
func (s *Server) reportLimits(transport rules.Transport, what string, gauges []*gauge) {
	for _, g := range gauges {
		n := g.hits.Swap(0)
		if n == 0 {
			continue
		}
		verdict, became := "deny", "refused"
		if g.waits {
			verdict, became = "", "had to wait"
		}
		s.Record(audit.Event{
			Time:          s.now(),
			Type:          audit.Limit,
			ContainerID:   s.Container.ID,
			ContainerName: s.Container.Name,
			Verdict:       verdict,
			Transport:     string(transport),
			Reason:        fmt.Sprintf("%s: %d %s %s", g.full(), n, what, became),
		})
	}
}
