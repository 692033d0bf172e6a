package dnsmap

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"weir/audit"
	"weir/rules"
)

func TestAllowedNameIsAnsweredAndLearned(t *testing.T) {
	a := newAuthority(t, records(t, "www.ok.test. 60 IN A 203.0.113.7", "www.ok.test. 60 IN A 203.0.113.8"))
	s := newShim(t, a.addr, nil)

	r := s.lookup(t, "WwW.oK.tEsT", dns.TypeA)
	if r.Rcode != dns.RcodeSuccess || len(r.Answer) != 2 || !r.RecursionAvailable || r.Authoritative {
		t.Fatalf("answer: %v", r)
	}
	if got := r.Question[0].Name; got != "WwW.oK.tEsT." {
		t.Errorf("question comes back as %q, not as it was spelled", got)
	}
	if got := r.Answer[0].Header().Name; got != "WwW.oK.tEsT." {
		t.Errorf("owner is %q, not as the name was spelled", got)
	}
	if diff := cmp.Diff([]string{"www.ok.test"}, s.names("203.0.113.8")); diff != "" {
		t.Error(diff)
	}
	want := []audit.Event{{
		Time: s.clock.Now(), Type: audit.DNS, ContainerID: "c0ffee", ContainerName: "web", SessionID: "s1", Verdict: "allow",
		Layer: "session", RuleID: "r1", Reason: "allowed by rule r1", Host: "www.ok.test", Port: 53, Transport: "udp", Method: "A",
	}}
	if diff := cmp.Diff(want, s.recorded(audit.DNS)); diff != "" {
		t.Error(diff)
	}
	// Upstream saw it in lower case.
	if got := a.questions()[0].Name; got != "www.ok.test." {
		t.Errorf("upstream was asked for %q", got)
	}

	// From the cache, with aged TTLs, and counting from the answer's own time.
	s.clock.advance(45 * time.Second)
	r = s.lookup(t, "www.ok.test", dns.TypeA)
	if ttl := r.Answer[0].Header().Ttl; ttl != 15 {
		t.Errorf("TTL after 45 of 60 s is %d", ttl)
	}
	s.clock.advance(74 * time.Second)
	if got := s.names("203.0.113.7"); len(got) != 1 {
		t.Errorf("within grace: %v", got)
	}
	s.clock.advance(time.Second)
	if got := s.names("203.0.113.7"); len(got) != 0 {
		t.Errorf("60 s + grace of 60 s later: %v", got)
	}
	if n := len(a.questions()); n != 1 {
		t.Errorf("%d upstream queries, want 1", n)
	}
}

func TestBlockedNamesNeverReachUpstream(t *testing.T) {
	a := newAuthority(t, records(t))
	s := newShim(t, a.addr, nil)
	long := strings.Repeat("a", 63) + "."
	names := []string{
		"evil.test.", "b64datab64data.evil.test.", "okx.test.", "notok.test.", "secret.ok.test.", "ok.test.evil.test.",
		`a\.ok.test.`, `ok\.test.evil.`, `x\000.ok.test.`, `x\032y.ok.test.`, `x\010.ok.test.`, `x\\.ok.test.`, `\255.ok.test.`, "x%2e.ok.test.",
		".", long + long + long + "evil.test.", "abc.onion.", "x.invalid.", "1.2.3.4.",
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeNULL, dns.TypeANY, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeMX, dns.TypeNS, dns.TypeCNAME, 65280}
	asked := 0
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range names {
			for _, qtype := range types {
				m := new(dns.Msg).SetQuestion(name, qtype)
				m.SetEdns0(1232, false)
				r := s.ask(t, network, m)
				asked++
				if r.Rcode != dns.RcodeNameError || len(r.Answer)+len(r.Ns) != 0 || r.Authoritative {
					t.Fatalf("%s %s %s: %v", network, name, dns.TypeToString[qtype], r)
				}
				if ede := blocked(r); ede == nil || ede.ExtraText == "" {
					t.Fatalf("%s: no Extended DNS Error 15 in %v", name, r)
				}
			}
		}
	}
	if q := a.questions(); len(q) != 0 {
		t.Errorf("upstream was asked: %v", q)
	}
	events := s.recorded(audit.DNS)
	if len(events) != asked {
		t.Errorf("%d events for %d queries", len(events), asked)
	}
	for _, e := range events {
		if e.Verdict != "deny" || e.Reason == "" || e.ContainerID != "c0ffee" || strings.ContainsAny(e.Host, "\x00\n\xff") {
			t.Fatalf("event %+v", e)
		}
	}
	if got := s.Table.Entries(); len(got) != 0 {
		t.Errorf("learned %v", got)
	}
}

func blocked(r *dns.Msg) *dns.EDNS0_EDE {
	if opt := r.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok && ede.InfoCode == dns.ExtendedErrorCodeBlocked {
				return ede
			}
		}
	}
	return nil
}

func TestBlockedWithoutEDNSHasNoOPT(t *testing.T) {
	s := newShim(t, newAuthority(t, records(t)).addr, nil)
	r := s.lookup(t, "evil.test", dns.TypeA)
	if r.Rcode != dns.RcodeNameError || len(r.Extra) != 0 {
		t.Errorf("got %v", r)
	}
}

func TestLearningModeForwardsAndSaysWhatWouldBe(t *testing.T) {
	a := newAuthority(t, records(t, "evil.test. 5 IN A 203.0.113.66"))
	s := newShim(t, a.addr, func(s *Server) {
		s.Policy = func(name string, qtype uint16) rules.Decision {
			would := allowTest(name, qtype)
			return rules.Decision{Verdict: rules.Allow, Layer: rules.AllowAll, Reason: "learning", Would: &would}
		}
	})
	if r := s.lookup(t, "evil.test", dns.TypeA); len(r.Answer) != 1 {
		t.Fatalf("got %v", r)
	}
	want := &audit.Would{Verdict: "deny", Reason: "no rule allows evil.test"}
	e := s.recorded(audit.DNS)
	if len(e) != 1 || e[0].Verdict != "allow" || e[0].Layer != "allow_all" {
		t.Fatalf("events %+v", e)
	}
	if diff := cmp.Diff(want, e[0].Would); diff != "" {
		t.Error(diff)
	}
}

func TestProtocolRefusals(t *testing.T) {
	a := newAuthority(t, records(t))
	s := newShim(t, a.addr, nil)
	question := func(change func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("www.ok.test.", dns.TypeA)
		change(m)
		return m
	}
	cases := []struct {
		name  string
		m     *dns.Msg
		rcode int
	}{
		{"chaos class", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"any class", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		{"AXFR", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		{"IXFR", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR }), dns.RcodeRefused},
		{"TKEY", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTKEY }), dns.RcodeRefused},
		{"OPT as type", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeOPT }), dns.RcodeRefused},
		{"notify", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"update", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"no question", question(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"two OPT", question(func(m *dns.Msg) { m.SetEdns0(1232, false); m.Extra = append(m.Extra, m.Extra[0]) }), dns.RcodeFormatError},
		{"answer in a query", question(func(m *dns.Msg) {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "www.ok.test.", Rrtype: dns.TypeA, Class: 1}, A: []byte{1, 2, 3, 4}}}
		}), dns.RcodeFormatError},
		{"EDNS 1", question(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	}
	for _, c := range cases {
		r := s.ask(t, "udp", c.m)
		if r.Rcode != c.rcode || len(r.Answer) != 0 {
			t.Errorf("%s: got %v", c.name, r)
		}
	}
	if q := a.questions(); len(q) != 0 {
		t.Errorf("upstream was asked: %v", q)
	}
	if n := len(s.recorded(audit.DNS)); n != len(cases) {
		t.Errorf("%d events for %d refusals", n, len(cases))
	}
}

func TestClientOptionsStayHere(t *testing.T) {
	a := newAuthority(t, records(t, "www.ok.test. 60 IN A 203.0.113.7"))
	s := newShim(t, a.addr, nil)
	m := new(dns.Msg).SetQuestion("www.ok.test.", dns.TypeA)
	m.SetEdns0(4096, true)
	m.CheckingDisabled = true
	m.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{198, 51, 100, 0}},
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"},
		&dns.EDNS0_PADDING{Padding: []byte("data to carry out")},
		&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("more data to carry out")},
	}
	if r := s.ask(t, "udp", m); len(r.Answer) != 1 || r.IsEdns0() == nil || len(r.IsEdns0().Option) != 0 {
		t.Errorf("answer %v", r)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	up := a.raw[0]
	if opt := up.IsEdns0(); opt == nil || len(opt.Option) != 0 || opt.Do() || up.CheckingDisabled || len(up.Extra) != 1 {
		t.Errorf("upstream saw %v", up)
	}
}

func TestLocalNames(t *testing.T) {
	a := newAuthority(t, records(t))
	s := newShim(t, a.addr, func(s *Server) {
		s.Local = func(_ context.Context, name string) []netip.Addr {
			if name == "db" || name == "secret.ok.test" {
				return []netip.Addr{netip.MustParseAddr("172.18.0.3"), netip.MustParseAddr("fd00::3")}
			}
			return nil
		}
		s.Reverse = func(_ context.Context, addr netip.Addr) string {
			if addr == netip.MustParseAddr("172.18.0.3") || addr == netip.MustParseAddr("fd00::3") {
				return "db.backend"
			}
			return ""
		}
	})
	v6, _ := dns.ReverseAddr("fd00::3")
	cases := []struct {
		name  string
		qtype uint16
		want  []string
		rcode int
	}{
		{"db", dns.TypeA, []string{"172.18.0.3"}, dns.RcodeSuccess},
		{"db", dns.TypeAAAA, []string{"fd00::3"}, dns.RcodeSuccess},
		{"db", dns.TypeTXT, nil, dns.RcodeSuccess},
		{"3.0.18.172.in-addr.arpa", dns.TypePTR, []string{"db.backend."}, dns.RcodeSuccess},
		{v6, dns.TypePTR, []string{"db.backend."}, dns.RcodeSuccess},
		{"localhost", dns.TypeA, []string{"127.0.0.1"}, dns.RcodeSuccess},
		{"a.b.localhost", dns.TypeAAAA, []string{"::1"}, dns.RcodeSuccess},
		{"localhost", dns.TypeHTTPS, nil, dns.RcodeSuccess},
		{"cache", dns.TypeA, nil, dns.RcodeNameError},
		{"secret.ok.test", dns.TypeA, nil, dns.RcodeNameError}, // an explicit deny rule holds
	}
	for _, c := range cases {
		r := s.lookup(t, c.name, c.qtype)
		var got []string
		for _, rr := range r.Answer {
			got = append(got, dns.Field(rr, 1))
		}
		if diff := cmp.Diff(c.want, got); diff != "" || r.Rcode != c.rcode {
			t.Errorf("%s %s: %v %s", c.name, dns.TypeToString[c.qtype], r, diff)
		}
	}
	if q := a.questions(); len(q) != 0 {
		t.Errorf("upstream was asked: %v", q)
	}
	if diff := cmp.Diff([]string{"db"}, s.names("172.18.0.3")); diff != "" {
		t.Error(diff)
	}
	if got := s.names("127.0.0.1"); got != nil {
		t.Errorf("loopback has names %v", got)
	}
}

func TestTruncation(t *testing.T) {
	var zone []string
	for i := range 60 {
		zone = append(zone, fmt.Sprintf("many.ok.test. 60 IN A 203.0.113.%d", i+1))
	}
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if w.LocalAddr().Network() == "udp" { // what is over 512 bytes has to be fetched over TCP
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			w.WriteMsg(m)
			return
		}
		records(t, zone...)(w, q)
	})
	s := newShim(t, a.addr, nil)

	r := s.lookup(t, "many.ok.test", dns.TypeA)
	if !r.Truncated || len(r.Answer) != 0 {
		t.Errorf("UDP without EDNS: %d records, truncated %v", len(r.Answer), r.Truncated)
	}
	if got := s.Table.Entries(); len(got) != 0 {
		t.Errorf("learned %d addresses that the client was not told", len(got))
	}
	m := new(dns.Msg).SetQuestion("many.ok.test.", dns.TypeA)
	m.SetEdns0(1232, false)
	if r := s.ask(t, "udp", m); r.Truncated || len(r.Answer) != 60 {
		t.Errorf("UDP with 1232 bytes: %d records", len(r.Answer))
	}
	if r := s.ask(t, "tcp", new(dns.Msg).SetQuestion("many.ok.test.", dns.TypeA)); r.Truncated || len(r.Answer) != 60 {
		t.Errorf("TCP: %d records", len(r.Answer))
	}
	if n := len(s.Table.Entries()); n != 60 {
		t.Errorf("%d entries", n)
	}
}

func TestDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Fatal("dig is needed: apt-get install bind9-dnsutils")
	}
	a := newAuthority(t, records(t, "www.ok.test. 60 IN CNAME edge.cdn.example.", "edge.cdn.example. 60 IN A 203.0.113.7"))
	s := newShim(t, a.addr, nil)
	host, port, _ := strings.Cut(s.addr, ":")
	run := func(args ...string) string {
		out, err := exec.Command(dig, append([]string{"@" + host, "-p", port, "+tries=1"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, args := range [][]string{{"www.ok.test"}, {"+tcp", "www.ok.test"}, {"+nocookie", "+noedns", "www.ok.test"}, {"+bufsize=512", "www.ok.test"}} {
		if out := run(args...); !strings.Contains(out, "status: NOERROR") || !strings.Contains(out, "203.0.113.7") {
			t.Errorf("dig %v:\n%s", args, out)
		}
	}
	for _, args := range [][]string{{"evil.test"}, {"+tcp", "evil.test", "TXT"}} {
		if out := run(args...); !strings.Contains(out, "status: NXDOMAIN") || !strings.Contains(out, "EDE: 15 (Blocked): (no rule allows evil.test)") {
			t.Errorf("dig %v:\n%s", args, out)
		}
	}
	if diff := cmp.Diff([]string{"www.ok.test"}, s.names("203.0.113.7")); diff != "" {
		t.Error(diff)
	}
}

func TestProve(t *testing.T) {
	a := newAuthority(t, records(t, "www.ok.test. 60 IN A 203.0.113.7"))
	s := newShim(t, a.addr, nil)
	ctx := t.Context()
	addr := netip.MustParseAddr("203.0.113.7")
	for _, c := range []struct {
		name string
		addr netip.Addr
		want bool
	}{
		{"www.ok.test", addr, true},
		{"WWW.ok.test.", netip.MustParseAddr("::ffff:203.0.113.7"), true},
		{"www.ok.test", netip.MustParseAddr("203.0.113.8"), false},
		{"data.evil.test", addr, false},
		{"secret.ok.test", addr, false},
		{"localhost", netip.MustParseAddr("127.0.0.1"), false},
		{"bad name.ok.test", addr, false},
	} {
		if got := s.Prove(ctx, c.name, c.addr); got != c.want {
			t.Errorf("Prove(%s, %s) = %v", c.name, c.addr, got)
		}
	}
	for _, q := range a.questions() {
		if q.Name != "www.ok.test." {
			t.Errorf("upstream was asked for %s", q.Name)
		}
	}
	if got := s.names("203.0.113.7"); got != nil {
		t.Errorf("the table learned %v from a claim", got)
	}
}
