package dnsmap

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"weir/audit"
	"weir/rules"
)

// Server is the DNS shim of one container: it answers every DNS query that
// the container sends, to whatever server, asks upstream for the names that
// the policy allows, and notes in Table what it answered. It is safe for
// concurrent use; its fields must not change after Serve or Prove was called.
type Server struct {
	Container rules.Container
	// Policy decides about a canonical name at stage Resolve. Deny means
	// blocked; any other verdict lets the question through.
	Policy   func(name string, qtype uint16) rules.Decision
	Upstream *Upstream
	Table    *Table
	// Record takes one event per decision, before the answer is sent. It may
	// block: queries then wait rather than go unrecorded.
	Record func(audit.Event)

	// Local returns the addresses of a container on the same networks, as the
	// runtime's own DNS would, or none when it knows no such name. It is asked
	// for every name and must answer from memory. nil: there are none.
	Local func(ctx context.Context, name string) []netip.Addr
	// Reverse is Local the other way round; "" when it knows no such address.
	// nil: there are none.
	Reverse func(ctx context.Context, addr netip.Addr) string
	// Placeholders are what a question for the addresses of a name that a
	// person could allow is answered with. nil: it is refused.
	Placeholders *Placeholders
	Limits       Limits
	Now          func() time.Time // nil: time.Now

	once     sync.Once
	limits   Limits // with defaults
	rate     *rate.Limiter
	budget   budget
	waiting  chan struct{} // one per query that waits for upstream
	hits     hits
	sessions sync.Map // net.Conn of TCP clients
}

// Serve answers queries from pc and ln until ctx ends or one of them fails,
// and closes both. A reply is written to the very address that ReadFrom
// returned, so pc may carry more in it, such as where the query arrived. Queries that then wait for upstream get no answer. It
// returns nil when ctx ended.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn, ln net.Listener) error {
	s.start()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		err := errors.Join(pc.Close(), ln.Close())
		s.sessions.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
	s.serveUDP(ctx, g, pc)
	g.Go(func() error { return s.serveTCP(ctx, g, ln) })
	g.Go(func() error { return s.reportLimits(ctx) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("dns of container %s: %w", s.Container.Name, err)
	}
	return nil
}

// passing says whether a socket goes on after err: the machine is short of
// something that another process may be using up.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause keeps a loop over a passing error from spinning.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

// Prove says whether name really resolves to addr, for a connection that
// claims a name that the container never asked for. It passes through the same
// gate as a query, so that a claimed name carries nothing out: a name that the
// policy blocks or the limits forbid is not asked for, and false.
func (s *Server) Prove(ctx context.Context, name string, addr netip.Addr) bool {
	s.start()
	name, err := rules.CanonicalName(name)
	if err != nil || special(name) || isLocalhost(name) {
		return false
	}
	d := s.Policy(name, dns.TypeA)
	if d.Verdict == rules.Deny && d.Rule != nil {
		return false
	}
	if s.Local != nil {
		if local := s.Local(ctx, name); len(local) > 0 {
			return slices.Contains(local, plain(addr))
		}
	}
	if d.Verdict == rules.Deny {
		return false
	}
	addrs, _, err := s.ask(ctx, name)
	return err == nil && slices.Contains(addrs, plain(addr))
}

// Lookup resolves a name on behalf of a connection to its placeholder, which
// the policy or a person has allowed, and notes in Table that the container
// was told so. It passes through the same limits as a query; a rule that
// denies the name still does.
func (s *Server) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	s.start()
	name, err := rules.CanonicalName(name)
	switch {
	case err != nil:
		return nil, err
	case special(name) || isLocalhost(name):
		return nil, fmt.Errorf("%s is a special-use name", name)
	}
	if d := s.Policy(name, dns.TypeA); d.Verdict == rules.Deny && !d.Askable {
		return nil, errors.New(d.Reason)
	}
	addrs, ttl, err := s.ask(ctx, name)
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, 0, len(addrs))
	for _, a := range addrs {
		answers = append(answers, Answer{a, ttl})
	}
	s.Table.LearnAll(name, answers)
	return addrs, nil
}

// ask resolves a name that may be asked for, within the limits of queries.
func (s *Server) ask(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	now := s.now()
	if !s.rate.AllowN(now, 1) {
		s.hit(limitQueries, now)
		return nil, 0, errors.New(limitQueries.text(s.limits))
	}
	if _, ok := s.budget.allow(name, now); !ok {
		s.hit(limitNames, now)
		return nil, 0, errors.New(limitNames.text(s.limits))
	}
	if !s.enter() {
		s.hit(limitUpstream, now)
		return nil, 0, errors.New(limitUpstream.text(s.limits))
	}
	defer s.leave()
	return s.Upstream.Resolve(ctx, name)
}

func (s *Server) start() {
	s.once.Do(func() {
		s.limits = s.Limits.orDefaults()
		s.rate = rate.NewLimiter(rate.Limit(s.limits.QueriesPerSecond), 2*s.limits.QueriesPerSecond)
		s.budget = budget{names: s.limits.NewNames, window: s.limits.NamesWindow, seed: maphash.MakeSeed(), domains: map[string]*spent{}}
		s.waiting = make(chan struct{}, s.limits.Upstream)
	})
}

// enter takes one of the places of queries that wait for upstream.
func (s *Server) enter() bool {
	select {
	case s.waiting <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) leave() { <-s.waiting }

// Waiting is how many queries wait for upstream, and how many may.
func (s *Server) Waiting() (now, most int) {
	s.start()
	return len(s.waiting), cap(s.waiting)
}

func (s *Server) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *Server) hit(k limitKind, now time.Time) {
	if n := s.hits.add(k, now); n > 0 {
		s.recordLimit(k, n, now)
	}
}

// reportLimits reports the hits that hit did not.
func (s *Server) reportLimits(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		now := s.now()
		if ended {
			now = now.Add(time.Second) // whatever is left is due
		}
		for k := range limitKinds {
			if n := s.hits.due(k, now); n > 0 {
				s.recordLimit(k, n, now)
			}
		}
		if ended {
			return nil
		}
	}
}

func (s *Server) recordLimit(k limitKind, n int, now time.Time) {
	s.Record(audit.Event{
		Time: now, Type: audit.Limit, ContainerID: s.Container.ID, ContainerName: s.Container.Name,
		Verdict: "deny", Reason: fmt.Sprintf("%s (hit %d times)", k.text(s.limits), n),
	})
}
