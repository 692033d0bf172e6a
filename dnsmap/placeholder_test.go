package dnsmap

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"weir/audit"
	"weir/rules"
)

// askTest asks about what allowTest only does not allow.
func askTest(name string, qtype uint16) rules.Decision {
	d := allowTest(name, qtype)
	if strings.HasSuffix(name, ".arpa") {
		d = refusal("no rule allows " + name)
	}
	d.Askable = d.Verdict == rules.Deny && d.Rule == nil
	return d
}

func TestPlaceholdersStandForNamesThatWait(t *testing.T) {
	a := newAuthority(t, records(t, "evil.test. 60 IN A 203.0.113.7", "evil.test. 60 IN AAAA 2001:db8::7", "evil.test. 60 IN A 127.0.0.1"))
	s := newShim(t, a.addr, func(s *Server) { s.Policy, s.Placeholders = askTest, &Placeholders{} })
	first := s.lookup(t, "evil.test.", dns.TypeA)
	if len(first.Answer) != 1 || first.Answer[0].Header().Ttl != 1 {
		t.Fatalf("answered %v", first)
	}
	addr := netip.MustParseAddr(first.Answer[0].(*dns.A).A.String())
	name, ok := s.Placeholders.Name(netip.AddrFrom16(addr.As16()))
	if !IsPlaceholder(addr) || !ok || name != "evil.test" {
		t.Errorf("%s stands for %q", addr, name)
	}
	if again := s.lookup(t, "EVIL.test.", dns.TypeA); addrs(again)[0] != addr.String() {
		t.Errorf("asked again: %v", again)
	}
	for _, qtype := range []uint16{dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSRV, dns.TypeMX, dns.TypeTXT, dns.TypeANY} {
		if r := s.lookup(t, "evil.test.", qtype); r.Rcode != dns.RcodeSuccess || len(r.Answer)+len(r.Ns) != 0 {
			t.Errorf("%s: %v", dns.TypeToString[qtype], r)
		}
	}
	// Denied by a rule, and names that nobody connects to.
	for _, name := range []string{"secret.ok.test.", "7.113.0.203.in-addr.arpa.", "abc.onion.", `a\.b.test.`} {
		if r := s.lookup(t, name, dns.TypeA); r.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", name, r)
		}
	}
	if q := a.questions(); len(q) != 0 {
		t.Errorf("upstream was asked: %v", q)
	}
	if got := s.Table.Entries(); len(got) != 0 {
		t.Errorf("learned %v", got)
	}
	waiting := 0
	for _, e := range s.recorded(audit.DNS) {
		switch {
		case e.Host == "evil.test" && e.Verdict == "" && e.Layer == "default":
			waiting++
			if e.Method == "A" && !strings.Contains(e.Reason, addr.String()) {
				t.Errorf("event %+v", e)
			}
		case e.Host == "evil.test" || e.Verdict != "deny":
			t.Errorf("event %+v", e)
		}
	}
	if waiting != 8 {
		t.Errorf("%d events of names that wait", waiting)
	}

	// Allowed, for what connected.
	got, err := s.Lookup(t.Context(), "evil.test")
	if err != nil || fmt.Sprint(got) != "[203.0.113.7 2001:db8::7]" && fmt.Sprint(got) != "[2001:db8::7 203.0.113.7]" {
		t.Errorf("Lookup = %v, %v", got, err)
	}
	if names := s.names("203.0.113.7"); len(names) != 1 || names[0] != "evil.test" {
		t.Errorf("the table has %v", names)
	}
	for _, name := range []string{"secret.ok.test", "localhost", "abc.onion", "bad name.test"} {
		if got, err := s.Lookup(t.Context(), name); err == nil {
			t.Errorf("Lookup(%s) = %v", name, got)
		}
	}
	if q := a.questions(); len(q) != 2 {
		t.Errorf("upstream was asked: %v", q)
	}
}

func TestPlaceholdersAreBounded(t *testing.T) {
	clock := newClock()
	p := &Placeholders{Max: 3, Idle: time.Minute, Now: clock.Now}
	var given []netip.Addr
	for i := range 3 {
		a, ok := p.For(fmt.Sprintf("n%d.test", i))
		if !ok {
			t.Fatal("no room")
		}
		given = append(given, a)
	}
	if _, ok := p.For("more.test"); ok {
		t.Error("more than there is room for")
	}
	clock.advance(30 * time.Second)
	p.Name(given[0]) // something connects
	clock.advance(30 * time.Second)
	if _, ok := p.For("more.test"); !ok {
		t.Error("what was not used for a minute stays")
	}
	if name, ok := p.Name(given[1]); ok {
		t.Errorf("%s stands for %s still", given[1], name)
	}
	if name, _ := p.Name(given[0]); name != "n0.test" {
		t.Errorf("%s stands for %q", given[0], name)
	}

	s := newShim(t, netip.MustParseAddrPort("192.0.2.1:53"), func(s *Server) { s.Policy, s.Placeholders = askTest, &Placeholders{Max: 2} })
	for i := range 5 {
		r := s.lookup(t, fmt.Sprintf("n%d.evil.test.", i), dns.TypeA)
		if full := i >= 2; (r.Rcode == dns.RcodeNameError) != full || full != (len(r.Answer) == 0) {
			t.Errorf("%d: %v", i, r)
		}
	}
	events := s.recorded(audit.DNS)
	if last := events[len(events)-1]; last.Verdict != "deny" || !strings.Contains(last.Reason, "as many names as can wait to be allowed, 2, wait already") {
		t.Errorf("event %+v", last)
	}
}

// An address stands for one name, and never for another later.
func TestPlaceholdersAreNotMixedUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		clock := newClock()
		p := &Placeholders{Max: rapid.IntRange(1, 8).Draw(t, "max"), Idle: time.Minute, Now: clock.Now}
		given := map[netip.Addr]string{}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			name := fmt.Sprintf("n%d.test", rapid.IntRange(0, 20).Draw(t, "name"))
			if a, ok := p.For(name); ok {
				if !IsPlaceholder(a) || a.As4()[0] == 255 {
					t.Fatalf("%s for %s", a, name)
				}
				if was := given[a]; was != "" && was != name {
					t.Fatalf("%s stood for %s and stands for %s", a, was, name)
				}
				given[a] = name
			}
			clock.advance(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			for a, name := range given {
				if now, ok := p.Name(a); ok && now != name {
					t.Fatalf("%s stood for %s and stands for %s", a, name, now)
				}
			}
			if len(p.names) > p.Max || len(p.addrs) != len(p.names) || p.ages.Len() != len(p.names) {
				t.Fatalf("%d names, %d addresses", len(p.names), len(p.addrs))
			}
		}
	})
}
