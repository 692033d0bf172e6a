package dnsmap

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"weir/audit"
	"weir/rules"
)

// FuzzMessage gives the server one message of a client and, when it asks
// upstream, one message of a server.
func FuzzMessage(f *testing.F) {
	pack := func(m *dns.Msg) []byte {
		raw, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	answer := func(zone ...string) []byte {
		m := new(dns.Msg).SetQuestion("www.ok.test.", dns.TypeA)
		m.Response = true
		for _, line := range zone {
			rr, err := dns.NewRR(line)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		return pack(m)
	}
	ok := answer("www.ok.test. 60 IN CNAME b.test.", "b.test. 60 IN A 203.0.113.7", "c.test. 60 IN A 203.0.113.8")
	for _, name := range []string{"www.ok.test.", "WWW.ok.TEST.", "evil.test.", `a\.b.ok.test.`, `\000.ok.test.`, "localhost.", "db.", "3.0.18.172.in-addr.arpa.", "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeANY, dns.TypeHTTPS, dns.TypePTR} {
			m := new(dns.Msg).SetQuestion(name, qtype)
			f.Add(pack(m), ok)
			f.Add(pack(m.SetEdns0(1232, true)), answer(`www.ok.test. 60 IN HTTPS 1 . ech="AEX+DQBB" ipv4hint="203.0.113.9"`))
		}
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, []byte{})
	f.Add(append(pack(new(dns.Msg).SetQuestion("www.ok.test.", dns.TypeA)), 0), ok[:30])

	f.Fuzz(func(t *testing.T, client, upstream []byte) {
		var events []audit.Event
		s := &Server{
			Policy: allowTest, Upstream: &Upstream{CacheBytes: -1}, Table: &Table{},
			Record: func(e audit.Event) { events = append(events, e) },
		}
		s.start()
		s.rate.SetLimit(rate.Inf)
		reply, q := s.respond(t.Context(), client, rules.UDP, nil)
		if len(reply) > 0 {
			checkReply(t, client, reply, minUDPOf(client))
		}
		if len(s.Table.Entries()) != 0 {
			t.Fatalf("learned %v without asking anybody", s.Table.Entries())
		}
		if len(events) > 1 || len(events) == 0 && (q != nil || len(reply) > 0) {
			t.Fatalf("%d events: %+v", len(events), events)
		}
		if q == nil {
			return
		}
		if events[0].Verdict != "allow" || allowTest(q.name, q.qtype).Verdict != rules.Allow {
			t.Fatalf("%q goes upstream: %+v", q.name, events)
		}
		a, err := clean(upstream, q.name, q.qtype, time.Now())
		if err != nil {
			a = failure(q.name, q.qtype, time.Now())
		}
		reply = s.reply(a, q, rules.UDP, nil)
		m := checkReply(t, client, reply, q.udpSize)
		told := map[netip.Addr]bool{}
		for _, rr := range m.Answer {
			if addr, ok := address(rr); ok {
				told[addr] = true
				if addr.IsLoopback() || addr.IsUnspecified() {
					t.Fatalf("loopback in %v", m)
				}
			}
			if strings.Contains(rr.String(), " ech=") || strings.Contains(rr.String(), "hint=") {
				t.Fatalf("not stripped: %v", rr)
			}
		}
		if len(m.Answer) > maxRecords+maxChain {
			t.Fatalf("%d records", len(m.Answer))
		}
		for _, e := range s.Table.Entries() {
			if e.Name != q.name || !told[e.Addr] {
				t.Fatalf("learned %s as %s from %v", e.Addr, e.Name, m)
			}
		}
	})
}

func minUDPOf(client []byte) int {
	if q, err := parseQuery(client); err == nil {
		return q.udpSize
	}
	return minUDP
}

// checkReply: a reply is a well-formed message, fits, and repeats the question.
func checkReply(t *testing.T, client, reply []byte, limit int) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("reply % x to % x: %v", reply, client, err)
	}
	if len(reply) > limit {
		t.Fatalf("%d bytes where %d fit", len(reply), limit)
	}
	if !m.Response || m.Id != binary.BigEndian.Uint16(client) {
		t.Fatalf("not a reply: %v", m)
	}
	if len(m.Question) > 0 {
		asked := new(dns.Msg)
		// Unpack may stop behind the question, which is enough.
		if err := asked.Unpack(client); len(asked.Question) == 0 || asked.Question[0] != m.Question[0] {
			t.Fatalf("answers %v to %v (%v)", m.Question, asked.Question, err)
		}
	}
	return m
}
