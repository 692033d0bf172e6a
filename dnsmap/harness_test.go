package dnsmap

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weir/audit"
	"weir/rules"
)

// authority is an upstream server on loopback. It answers with what answer
// says and remembers every question.
type authority struct {
	addr netip.AddrPort

	mu     sync.Mutex
	asked  []dns.Question
	raw    []*dns.Msg
	answer func(w dns.ResponseWriter, q *dns.Msg)
}

func newAuthority(t testing.TB, answer func(dns.ResponseWriter, *dns.Msg)) *authority {
	t.Helper()
	a := &authority{answer: answer}
	pc, ln := listen(t)
	a.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: a}, {Listener: ln, Handler: a}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ActivateAndServe()
		<-up
		t.Cleanup(func() { s.Shutdown() })
	}
	return a
}

// listen opens the same port for UDP and TCP.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return pc, ln
		}
		ln.Close() // somebody has that one for UDP
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (a *authority) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	a.mu.Lock()
	a.asked = append(a.asked, m.Question...)
	a.raw = append(a.raw, m)
	answer := a.answer
	a.mu.Unlock()
	answer(w, m)
}

func (a *authority) set(answer func(dns.ResponseWriter, *dns.Msg)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

func (a *authority) questions() []dns.Question {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]dns.Question(nil), a.asked...)
}

// records answers every question with those of the records, given in zone
// file form, that have its name or lead from it.
func records(t testing.TB, zone ...string) func(dns.ResponseWriter, *dns.Msg) {
	t.Helper()
	var rrs []dns.RR
	for _, line := range zone {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for _, rr := range rrs {
			m.Answer = append(m.Answer, dns.Copy(rr))
		}
		w.WriteMsg(m)
	}
}

// shim is a Server under test with its surroundings.
type shim struct {
	*Server
	addr  string // UDP and TCP
	clock *clock

	mu     sync.Mutex
	events []audit.Event
}

// clock is a wall clock that the test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// allowTest allows what is below ok.test, and denies secret.ok.test by rule.
func allowTest(name string, _ uint16) rules.Decision {
	if name == "secret.ok.test" {
		r := &rules.Rule{ID: "r9", Source: rules.Session, SessionID: "s1", Action: rules.ActionDeny}
		return rules.Decision{Verdict: rules.Deny, Layer: rules.Session, Rule: r, Reason: "denied by rule r9", Host: name}
	}
	if name == "ok.test" || strings.HasSuffix(name, ".ok.test") || strings.HasSuffix(name, ".arpa") {
		r := &rules.Rule{ID: "r1", Source: rules.Session, SessionID: "s1", Action: rules.ActionAllow}
		return rules.Decision{Verdict: rules.Allow, Layer: rules.Session, Rule: r, Reason: "allowed by rule r1", Host: name}
	}
	return rules.Decision{Verdict: rules.Deny, Layer: rules.Default, Reason: "no rule allows " + name}
}

// newShim serves on loopback; change may alter the server before it starts.
func newShim(t testing.TB, upstream netip.AddrPort, change func(*Server)) *shim {
	t.Helper()
	s := &shim{clock: newClock()}
	s.Server = &Server{
		Container: rules.Container{ID: "c0ffee", Name: "web"},
		Policy:    allowTest,
		Upstream:  &Upstream{Servers: []netip.AddrPort{upstream}, Now: s.clock.Now},
		Table:     &Table{Now: s.clock.Now},
		Now:       s.clock.Now,
		Record: func(e audit.Event) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e)
		},
	}
	if change != nil {
		change(s.Server)
	}
	pc, ln := listen(t)
	s.addr = pc.LocalAddr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, pc, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		s.Upstream.Close()
	})
	return s
}

func (s *shim) recorded(kind audit.Type) []audit.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []audit.Event
	for _, e := range s.events {
		if e.Type == kind {
			out = append(out, e)
		}
	}
	return out
}

func (s *shim) ask(t testing.TB, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(m, s.addr)
	if err != nil {
		t.Fatalf("%s query %v: %v", network, m.Question, err)
	}
	return r
}

func (s *shim) lookup(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	return s.ask(t, "udp", new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype))
}

// names is what the table says now.
func (s *shim) names(addr string) []string {
	return s.Table.Names(netip.MustParseAddr(addr), s.clock.Now())
}
