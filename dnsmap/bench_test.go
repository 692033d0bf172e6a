package dnsmap

import (
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"weir/audit"
	"weir/rules"
)

// benchServe measures queries over loopback sockets, with the client on the
// same processors. Each client keeps a window of queries under way.
func benchServe(b *testing.B, name func(i int64) string) {
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer pc.Close()
	go func() { // answers every question with the same address, as fast as it can
		buf := make([]byte, maxQuery)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			q, err := parseQuery(buf[:n])
			if err != nil {
				continue
			}
			reply := q.appendAddresses(nil, []netip.Addr{v4(7)}, 3600)
			pc.WriteToUDPAddrPort(reply, from)
		}
	}()
	s := newShim(b, pc.LocalAddr().(*net.UDPAddr).AddrPort(), func(s *Server) {
		s.Policy = func(string, uint16) rules.Decision { return rules.Decision{Verdict: rules.Allow} }
		s.Record = func(audit.Event) {}
		s.Now, s.Table.Now, s.Upstream.Now = nil, nil, nil
		s.Limits = Limits{QueriesPerSecond: 1 << 30, NewNames: 1 << 30}
	})
	const window = 32
	var next atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		c, err := net.Dial("udp", s.addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		buf := make([]byte, maxUDP)
		out, waiting := make([]byte, 0, 512), 0
		send := func() {
			out = appendQuery(out[:0], 1, question(name(next.Add(1))))
			if _, err := c.Write(out); err != nil {
				b.Error(err)
			}
			waiting++
		}
		receive := func() {
			if n, err := c.Read(buf); err != nil || n < headerSize || buf[3]&15 != 0 {
				b.Errorf("%v: % x", err, buf[:n])
			}
			waiting--
		}
		for p.Next() {
			if send(); waiting == window {
				receive()
			}
		}
		for waiting > 0 {
			receive()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
}

func question(name string) []byte {
	return append(appendName(nil, name), 0, byte(dns.TypeA), 0, byte(dns.ClassINET))
}

func BenchmarkCached(b *testing.B) {
	benchServe(b, func(int64) string { return "www.example.com" })
}

func BenchmarkMisses(b *testing.B) {
	benchServe(b, func(i int64) string { return "n" + strconv.FormatInt(i, 10) + ".example.com" })
}

// BenchmarkRespond is a cached answer without the sockets.
func BenchmarkRespond(b *testing.B) {
	s := &Server{
		Policy:   func(string, uint16) rules.Decision { return rules.Decision{Verdict: rules.Allow} },
		Upstream: &Upstream{}, Table: &Table{}, Record: func(audit.Event) {},
		Limits: Limits{QueriesPerSecond: 1 << 30},
	}
	s.start()
	s.Upstream.start()
	query := appendQuery(nil, 1, question("www.example.com"))
	q, err := parseQuery(query)
	if err != nil {
		b.Fatal(err)
	}
	now := s.now()
	a, err := clean(q.appendAddresses(nil, []netip.Addr{v4(1), v4(2)}, 3600), q.name, q.qtype, now)
	if err != nil {
		b.Fatal(err)
	}
	s.Upstream.cache.put(key{q.name, q.qtype}, a, now)
	out := make([]byte, 0, maxUDP)
	b.ReportAllocs()
	for b.Loop() {
		if reply, _ := s.respond(b.Context(), query, rules.UDP, out); len(reply) == 0 {
			b.Fatal("not from the cache")
		}
	}
}

func BenchmarkNames(b *testing.B) {
	t := &Table{}
	t.Learn("www.example.com", v4(1), 1e12)
	now := t.now()
	b.ReportAllocs()
	for b.Loop() {
		t.Names(v4(1), now)
	}
}
