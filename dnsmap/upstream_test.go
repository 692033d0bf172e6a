package dnsmap

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// addrs are the addresses of an answer, in the order of text.
func addrs(r *dns.Msg) []string {
	var out []string
	for _, rr := range r.Answer {
		if rr.Header().Rrtype == dns.TypeA || rr.Header().Rrtype == dns.TypeAAAA {
			out = append(out, dns.Field(rr, 1))
		}
	}
	slices.Sort(out)
	return out
}

func TestHostileAnswers(t *testing.T) {
	var flood []string
	for i := range 2000 {
		flood = append(flood, fmt.Sprintf("x.ok.test. 60 IN A 203.%d.%d.1", i>>8, i&255))
	}
	var loop []string
	for i := range 20 {
		loop = append(loop, fmt.Sprintf("c%d.ok.test. 60 IN CNAME c%d.ok.test.", i, i+1))
	}
	loop = append(loop, "x.ok.test. 60 IN CNAME c0.ok.test.", "c20.ok.test. 60 IN A 203.0.113.1")
	cases := []struct {
		name  string
		zone  []string
		qtype uint16
		rcode int
		want  []string // addresses
		n     int      // of them, instead
	}{
		{"thousands of addresses", flood, dns.TypeA, 0, nil, 64},
		{"unrelated names", []string{"bank.test. 60 IN A 203.0.113.9", "x.ok.test. 60 IN A 203.0.113.1", "y.ok.test. 60 IN A 203.0.113.8"}, dns.TypeA, 0, []string{"203.0.113.1"}, 0},
		{"only unrelated names", []string{"bank.test. 60 IN A 203.0.113.9"}, dns.TypeA, 0, nil, 0},
		{"chain in any order", []string{"b.test. 60 IN A 203.0.113.2", "a.test. 60 IN CNAME b.test.", "X.ok.TEST. 60 IN CNAME A.test."}, dns.TypeA, 0, []string{"203.0.113.2"}, 0},
		{"chain and more", []string{"x.ok.test. 60 IN CNAME b.test.", "b.test. 60 IN A 203.0.113.2", "x.ok.test. 60 IN A 203.0.113.3", "a.test. 60 IN A 203.0.113.9"}, dns.TypeA, 0, []string{"203.0.113.2"}, 0},
		{"CNAME to itself", []string{"x.ok.test. 60 IN CNAME x.ok.test.", "x.ok.test. 60 IN A 203.0.113.1"}, dns.TypeA, dns.RcodeServerFailure, nil, 0},
		{"CNAME loop", []string{"x.ok.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME x.ok.test."}, dns.TypeA, dns.RcodeServerFailure, nil, 0},
		{"chain of 21", loop, dns.TypeA, dns.RcodeServerFailure, nil, 0},
		{"another type", []string{"x.ok.test. 60 IN AAAA 2001:db8::1"}, dns.TypeA, 0, nil, 0},
		{"another class", []string{"x.ok.test. 60 CH A 203.0.113.1"}, dns.TypeA, 0, nil, 0},
		{"loopback", []string{"x.ok.test. 60 IN A 127.0.0.1", "x.ok.test. 60 IN A 0.0.0.0", "x.ok.test. 60 IN A 203.0.113.1", "x.ok.test. 60 IN A 127.8.8.8"}, dns.TypeA, 0, []string{"203.0.113.1"}, 0},
		{"IPv6 loopback", []string{"x.ok.test. 60 IN AAAA ::1", "x.ok.test. 60 IN AAAA ::", "x.ok.test. 60 IN AAAA ::ffff:127.0.0.1", "x.ok.test. 60 IN AAAA 2001:db8::1"}, dns.TypeAAAA, 0, []string{"2001:db8::1"}, 0},
		{"any", []string{"x.ok.test. 60 IN A 203.0.113.1", "x.ok.test. 60 IN A 127.0.0.1", "x.ok.test. 60 IN TXT hello", "z.test. 60 IN A 203.0.113.9"}, dns.TypeANY, 0, []string{"203.0.113.1"}, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) {
				if len(c.zone) > 100 && w.LocalAddr().Network() == "udp" {
					m := new(dns.Msg).SetReply(q)
					m.Truncated = true
					w.WriteMsg(m)
					return
				}
				records(t, c.zone...)(w, q)
			})
			s := newShim(t, a.addr, nil)
			r := s.ask(t, "tcp", new(dns.Msg).SetQuestion("x.ok.test.", c.qtype))
			got := addrs(r)
			if r.Rcode != c.rcode || c.n > 0 && len(got) != c.n || c.n == 0 && !slices.Equal(got, c.want) {
				t.Fatalf("got %v", r)
			}
			if len(r.Extra) != 0 {
				t.Errorf("additional records %v", r.Extra)
			}
			// What the client was told is what was learned, under the name asked for.
			var learned []string
			for _, e := range s.Table.Entries() {
				if e.Name != "x.ok.test" {
					t.Errorf("learned the name %s", e.Name)
				}
				learned = append(learned, e.Addr.String())
			}
			slices.Sort(learned)
			if diff := cmp.Diff(got, learned); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTTLs(t *testing.T) {
	a := newAuthority(t, records(t, "x.ok.test. 0 IN A 203.0.113.1"))
	s := newShim(t, a.addr, nil)
	ask := func(ttl uint32) *dns.Msg {
		r := s.lookup(t, "x.ok.test", dns.TypeA)
		if len(r.Answer) != 1 || r.Answer[0].Header().Ttl != ttl {
			t.Fatalf("want TTL %d: %v", ttl, r)
		}
		return r
	}
	ask(0)
	ask(0)
	if n := len(a.questions()); n != 2 {
		t.Errorf("TTL 0 was cached: %d queries", n)
	}
	if s.clock.advance(time.Minute); s.names("203.0.113.1") == nil {
		t.Error("TTL 0: no grace")
	}
	a.set(records(t, "x.ok.test. 4294967295 IN A 203.0.113.2"))
	ask(300)
	s.clock.advance(maxCacheTTL - time.Second)
	ask(300)
	if n := len(a.questions()); n != 3 {
		t.Errorf("%d queries", n)
	}
	s.clock.advance(time.Second)
	ask(300)
	if n := len(a.questions()); n != 4 {
		t.Errorf("cached for more than an hour: %d queries", n)
	}
	for _, e := range s.Table.Entries() {
		if left := e.Expires.Sub(s.clock.Now()); left > DefaultMaxTTL+DefaultGrace {
			t.Errorf("counts for %v", left)
		}
	}
}

func TestNegativeAnswers(t *testing.T) {
	soa, err := dns.NewRR("ok.test. 900 IN SOA ns.ok.test. host.ok.test. 1 2 3 4 20")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := dns.NewRR("elsewhere.test. 900 IN SOA ns.ok.test. host.ok.test. 1 2 3 4 20")
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		m.Ns = []dns.RR{foreign, soa}
		if strings.HasPrefix(q.Question[0].Name, "bare") {
			m.Ns = []dns.RR{foreign}
		}
		m.Extra = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "ns.ok.test.", Rrtype: dns.TypeA, Class: 1, Ttl: 9}, A: []byte{203, 0, 113, 9}}}
		w.WriteMsg(m)
	})
	s := newShim(t, a.addr, nil)
	for range 3 {
		r := s.lookup(t, "none.ok.test", dns.TypeA)
		if r.Rcode != dns.RcodeNameError || len(r.Ns) != 1 || r.Ns[0].Header().Name != "ok.test." || len(r.Extra) != 0 {
			t.Fatalf("got %v", r)
		}
	}
	if n := len(a.questions()); n != 1 {
		t.Errorf("%d queries", n)
	}
	s.clock.advance(20 * time.Second)
	s.lookup(t, "none.ok.test", dns.TypeA)
	if n := len(a.questions()); n != 2 {
		t.Errorf("kept for longer than the SOA says: %d queries", n)
	}
	s.lookup(t, "bare.ok.test", dns.TypeA)
	if r := s.lookup(t, "bare.ok.test", dns.TypeA); len(r.Ns) != 0 {
		t.Errorf("got %v", r)
	}
	if n := len(a.questions()); n != 4 {
		t.Errorf("without an SOA: %d queries", n)
	}
}

func TestServiceRecordsAreStripped(t *testing.T) {
	a := newAuthority(t, records(t,
		`x.ok.test. 60 IN HTTPS 1 . alpn="h2" ech="AEX+DQBB" ipv4hint="203.0.113.9" ipv6hint="2001:db8::9" port="8443"`,
		`x.ok.test. 60 IN HTTPS 2 . mandatory="ech" ech="AEX+DQBB"`,
		`x.ok.test. 60 IN SVCB 1 svc.ok.test. ech="AEX+DQBB" port="53"`,
	))
	s := newShim(t, a.addr, nil)
	for qtype, want := range map[uint16]string{
		dns.TypeHTTPS: `x.ok.test.	60	IN	HTTPS	1 . alpn="h2" port="8443"`,
		dns.TypeSVCB:  `x.ok.test.	60	IN	SVCB	1 svc.ok.test. port="53"`,
	} {
		r := s.lookup(t, "x.ok.test", qtype)
		if len(r.Answer) != 1 || r.Answer[0].String() != want {
			t.Errorf("got %v", r)
		}
	}
	if got := s.Table.Entries(); len(got) != 0 {
		t.Errorf("learned %v", got)
	}
}

// TestForgedAnswers: whatever comes before the right answer is not believed.
func TestForgedAnswers(t *testing.T) {
	forge := func(q *dns.Msg, change func(*dns.Msg)) []byte {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: 1, Ttl: 60}, A: net.IPv4(203, 0, 113, 66).To4()}}
		change(m)
		raw, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return raw
	}
	a := newAuthority(t, nil)
	a.set(func(w dns.ResponseWriter, q *dns.Msg) {
		for _, change := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Response = false },
			func(m *dns.Msg) { m.Question[0].Name = "y.ok.test." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
			func(m *dns.Msg) { m.Question = nil },
			func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		} {
			w.Write(forge(q.Copy(), change))
		}
		w.Write([]byte{1, 2, 3})
		records(t, "x.ok.test. 60 IN A 203.0.113.1")(w, q)
	})
	s := newShim(t, a.addr, nil)
	if got := addrs(s.lookup(t, "x.ok.test", dns.TypeA)); !slices.Equal(got, []string{"203.0.113.1"}) {
		t.Errorf("got %v", got)
	}
}

// TestGuessingReplacesTheSocket: many wrong answers end the socket, and the
// question is asked again from another port.
func TestGuessingReplacesTheSocket(t *testing.T) {
	var mu sync.Mutex
	ports := map[string]bool{}
	a := newAuthority(t, nil)
	a.set(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		first := len(ports) == 0
		ports[w.RemoteAddr().String()] = true
		mu.Unlock()
		if first {
			wrong := new(dns.Msg).SetReply(q)
			for range socketStrays {
				wrong.Id++
				w.WriteMsg(wrong)
			}
			return
		}
		records(t, "x.ok.test. 60 IN A 203.0.113.1")(w, q)
	})
	s := newShim(t, a.addr, func(s *Server) { s.Upstream.Timeout = time.Minute })
	if got := addrs(s.lookup(t, "x.ok.test", dns.TypeA)); !slices.Equal(got, []string{"203.0.113.1"}) {
		t.Errorf("got %v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ports) != 2 {
		t.Errorf("asked from %d ports", len(ports))
	}
}

func TestFailover(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	refused, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close() // nobody there: ICMP port unreachable
	broken := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)) })
	good := newAuthority(t, records(t, "x.ok.test. 0 IN A 203.0.113.1"))
	port := func(pc net.PacketConn) netip.AddrPort { return netip.MustParseAddrPort(pc.LocalAddr().String()) }
	s := newShim(t, good.addr, func(s *Server) {
		s.Upstream.Servers = []netip.AddrPort{port(silent), port(refused), broken.addr, good.addr}
		s.Upstream.Timeout = 50 * time.Millisecond
		s.Upstream.Tries = 4
	})
	for range 3 {
		if got := addrs(s.lookup(t, "x.ok.test", dns.TypeA)); !slices.Equal(got, []string{"203.0.113.1"}) {
			t.Fatalf("got %v", got)
		}
	}
	// The silent one was asked once and then passed over.
	buf := make([]byte, 512)
	if _, _, err := silent.ReadFrom(buf); err != nil {
		t.Fatal(err)
	}
	if err := silent.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, _, err := silent.ReadFrom(buf); err == nil {
		t.Errorf("the silent server was asked again: % x", buf[:n])
	}
}

func TestNoServerAnswers(t *testing.T) {
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) {})
	s := newShim(t, a.addr, func(s *Server) { s.Upstream.Timeout = 20 * time.Millisecond })
	if r := s.lookup(t, "x.ok.test", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
	if n := len(a.questions()); n != DefaultTries {
		t.Errorf("asked %d times", n)
	}
	s.lookup(t, "x.ok.test", dns.TypeA)
	if n := len(a.questions()); n != DefaultTries {
		t.Errorf("asked again within a second: %d", n)
	}
	if _, _, err := s.Upstream.Resolve(t.Context(), "y.ok.test"); err == nil {
		t.Error("Resolve: no error")
	}
}

func TestSameQuestionIsAskedOnce(t *testing.T) {
	const clients = 20
	release := make(chan struct{})
	reply := records(t, "x.ok.test. 60 IN A 203.0.113.1")
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) { <-release; reply(w, q) })
	u := &Upstream{Servers: []netip.AddrPort{a.addr}, Timeout: time.Minute}
	defer u.Close()
	got := make(chan *answer, clients)
	for range clients {
		u.ask(key{"x.ok.test", dns.TypeA}, func(a *answer) { got <- a })
	}
	close(release)
	for range clients {
		if a := <-got; len(a.addrs) != 1 {
			t.Errorf("got %+v", a)
		}
	}
	if n := len(a.questions()); n != 1 {
		t.Errorf("%d upstream queries", n)
	}
}

func TestTablesAreNotShared(t *testing.T) {
	a := newAuthority(t, records(t, "x.ok.test. 60 IN A 203.0.113.1"))
	one := newShim(t, a.addr, nil)
	two := newShim(t, a.addr, func(s *Server) { s.Upstream = one.Upstream })
	one.lookup(t, "x.ok.test", dns.TypeA)
	if got := two.names("203.0.113.1"); got != nil {
		t.Errorf("another container's lookup counts: %v", got)
	}
	two.lookup(t, "x.ok.test", dns.TypeA)
	if got := two.names("203.0.113.1"); got == nil {
		t.Error("an answer from the shared cache was not learned")
	}
	if n := len(a.questions()); n != 1 {
		t.Errorf("%d upstream queries", n)
	}
}

func TestResolvConf(t *testing.T) {
	dir := t.TempDir()
	etc, run := filepath.Join(dir, "etc"), filepath.Join(dir, "run")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newClock()
	u := &Upstream{ResolvConf: []string{etc, run}, Now: c.Now, Exclude: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.66:53")}}
	check := func(what string, want ...string) {
		t.Helper()
		var got []string
		for _, s := range u.list.inOrder(u) {
			got = append(got, s.addr.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	check("no files")
	write(etc, "nameserver 127.0.0.53\noptions edns0\n")
	check("only the stub", "127.0.0.53:53")
	write(run, "nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver nonsense\nnameserver 192.0.2.66\n")
	check("looked a moment ago", "127.0.0.53:53")
	c.advance(recheck)
	check("what the stub asks", "192.0.2.1:53", "[2001:db8::1]:53")
	write(etc, "nameserver 192.0.2.7\n# and more, so that the size differs\n")
	c.advance(recheck)
	check("changed by hand", "192.0.2.7:53")
	kept := u.list.servers[0]
	write(etc, "")
	write(run, "")
	c.advance(recheck)
	check("being rewritten", "192.0.2.7:53")
	write(etc, "nameserver 192.0.2.8\nnameserver 192.0.2.7\n")
	c.advance(recheck)
	check("one more", "192.0.2.8:53", "192.0.2.7:53")
	if u.list.servers[1] != kept {
		t.Error("a server that stayed lost its sockets")
	}
}

func TestNobodyToAsk(t *testing.T) {
	s := newShim(t, netip.MustParseAddrPort("127.0.0.1:53"), func(s *Server) {
		s.Upstream.Exclude = s.Upstream.Servers
	})
	if r := s.lookup(t, "x.ok.test", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
}

func TestCacheIsBounded(t *testing.T) {
	now := newClock().Now()
	c := newCache(64 << 10)
	for i := range 5000 {
		a := failure(fmt.Sprintf("n%d.ok.test", i), dns.TypeA, now)
		a.packed = append(a.packed, bytes.Repeat([]byte{0}, i%700)...)
		c.put(key{fmt.Sprintf("n%d.ok.test", i), dns.TypeA}, a, now)
	}
	total := 0
	for i := range c.shards {
		sum := 0
		for _, a := range c.shards[i].answers {
			sum += cost(a)
		}
		if sum != c.shards[i].bytes || sum > c.limit {
			t.Errorf("shard %d holds %d bytes, counts %d, limit %d", i, sum, c.shards[i].bytes, c.limit)
		}
		total += len(c.shards[i].answers)
	}
	if total == 0 {
		t.Error("nothing is cached")
	}
}
