package dnsmap

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weir/audit"
)

func TestTunnelUnderAnAllowedWildcard(t *testing.T) {
	a := newAuthority(t, records(t))
	s := newShim(t, a.addr, func(s *Server) {
		s.Limits = Limits{NewNames: 50, QueriesPerSecond: 1 << 20}
	})
	denied := 0
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		r := s.lookup(t, fmt.Sprintf("%x.%x.ok.test", random.Uint64(), random.Uint64()), dns.TypeTXT)
		if r.Rcode == dns.RcodeNameError {
			denied++
		}
	}
	if n := len(a.questions()); n != 50 || denied != 450 {
		t.Errorf("%d names went upstream, %d were blocked", n, denied)
	}
	e := s.recorded(audit.Limit)
	if len(e) != 1 || !strings.Contains(e[0].Reason, "names below one domain") {
		t.Errorf("limit events within one second: %+v", e)
	}
	// Names that were asked for already go on; the next window starts anew.
	known := strings.TrimSuffix(a.questions()[0].Name, ".")
	if r := s.lookup(t, known, dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("a known name: %v", r)
	}
	s.clock.advance(10 * time.Minute)
	if r := s.lookup(t, "new.ok.test", dns.TypeA); r.Rcode != dns.RcodeSuccess {
		t.Errorf("in the next window: %v", r)
	}
}

func TestBudgetIsPerRegistrableDomainAndBounded(t *testing.T) {
	now := newClock().Now()
	b := budget{names: 3, window: time.Minute, domains: map[string]*spent{}}
	b.seed = newCache(1).seed
	for _, name := range []string{"a.example.co.uk", "b.c.example.co.uk", "example.co.uk"} {
		if domain, ok := b.allow(name, now); !ok || domain != "example.co.uk" {
			t.Errorf("%s: %s %v", name, domain, ok)
		}
	}
	if _, ok := b.allow("d.example.co.uk", now); ok {
		t.Error("a fourth name")
	}
	if _, ok := b.allow("a.other.co.uk", now); !ok {
		t.Error("another domain pays for the first")
	}
	for i := range 3 * maxDomains {
		b.allow(fmt.Sprintf("a.d%d.test", i), now)
	}
	if len(b.domains) > maxDomains+1 {
		t.Errorf("%d domains", len(b.domains))
	}
	if _, ok := b.allow("a.fresh.test", now); ok {
		t.Error("domains that are not counted apart have no limit")
	}
	if _, ok := b.allow("a.fresh.test", now.Add(time.Minute)); !ok {
		t.Error("the next window did not begin")
	}
}

func TestQueriesPerSecond(t *testing.T) {
	s := newShim(t, newAuthority(t, records(t)).addr, func(s *Server) { s.Limits.QueriesPerSecond = 10 })
	count := func() (refused int) {
		for range 30 {
			if s.lookup(t, "evil.test", dns.TypeA).Rcode == dns.RcodeRefused {
				refused++
			}
		}
		return refused
	}
	if n := count(); n != 10 {
		t.Errorf("%d of 30 refused with a burst of 20", n)
	}
	s.clock.advance(time.Second)
	if n := count(); n != 20 {
		t.Errorf("%d of 30 refused a second later", n)
	}
	s.clock.advance(time.Second)
	count()
	e := s.recorded(audit.Limit)
	if len(e) != 3 || e[0].Reason != "more than 10 DNS queries per second (hit 1 times)" || !strings.Contains(e[1].Reason, "(hit 10 times)") {
		t.Errorf("limit events: %+v", e)
	}
}

func TestWaitingForUpstreamIsBounded(t *testing.T) {
	release := make(chan struct{})
	answer := records(t)
	arrived := make(chan struct{}, 3)
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) { arrived <- struct{}{}; <-release; answer(w, q) })
	s := newShim(t, a.addr, func(s *Server) {
		s.Upstream.Timeout = time.Minute
		s.Limits.Upstream = 3
	})
	done := make(chan int, 3)
	for i := range 3 {
		go func() { done <- s.lookup(t, fmt.Sprintf("n%d.ok.test", i), dns.TypeA).Rcode }()
	}
	for range 3 {
		<-arrived
	}
	if r := s.lookup(t, "n9.ok.test", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
	if e := s.recorded(audit.Limit); len(e) != 1 || !strings.Contains(e[0].Reason, "waiting for upstream") {
		t.Errorf("limit events: %+v", e)
	}
	close(release)
	for range 3 {
		if rcode := <-done; rcode != dns.RcodeSuccess {
			t.Errorf("got %s", dns.RcodeToString[rcode])
		}
	}
}
