package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/audit"
	"weir/rules"
)

func TestAllowByAddress(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, echo)
	got, err := w.talk("hello")
	if err != nil || got != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	e := w.event()
	if e.Type != audit.Connect || e.Verdict != "allow" || e.Layer != "global" || e.RuleID != "r0" || e.SessionID != "s1" ||
		e.ContainerID != "c1" || e.ContainerName != "web" || e.Address != "203.0.113.7" || e.Port != 443 || e.Transport != "tcp" ||
		e.BytesIn != 5 || e.BytesOut != 5 || e.Reason == "" || e.Time.IsZero() {
		t.Errorf("event %+v", e)
	}
}

func TestDenyIsReset(t *testing.T) {
	w := newWorld(t, nil)
	c, err := w.connect()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client sees %v, want a reset", err)
	}
	if e := w.event(); e.Verdict != "deny" || e.Layer != "default" || e.Address != "203.0.113.7" || e.Reason == "" {
		t.Errorf("event %+v", e)
	}
	if w.dials() != 0 {
		t.Error("dialled")
	}
}

func httpGet(host string) string { return "GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

// What the first bytes say, against rules for names.
func TestPeek(t *testing.T) {
	hello := func(name string) string {
		return string(clientHello(t, &tls.Config{ServerName: name, InsecureSkipVerify: true}))
	}
	cases := []struct {
		name  string
		names []string // that the container resolved to the address
		send  string
		want  string
		why   string // in the reason
	}{
		{"tls, the name", []string{"a.example"}, hello("a.example"), "allow", ""},
		{"tls, case and dot", []string{"a.example"}, string(handmade(extServerName, sni("A.Example."))), "allow", ""},
		{"tls, one of two", []string{"b.example", "a.example"}, hello("a.example"), "allow", ""},
		{"tls, the other of two", []string{"b.example", "a.example"}, hello("b.example"), "deny", ""},
		{"tls, contradicts", []string{"a.example"}, hello("b.example"), "deny", "b.example"},
		{"tls, without a name", []string{"a.example"}, hello(""), "deny", ""},
		{"tls, never looked up", nil, hello("a.example"), "deny", ""},
		{"tls, proven", nil, hello("proven.example"), "allow", ""},
		{"tls, proven but not allowed", nil, hello("deniedbutproven.example"), "deny", ""},
		{"tls, ech", []string{"a.example"}, string(handmade(extServerName, sni("a.example"), extECH, []byte{0})), "deny", "ECH"},
		{"tls, NUL", []string{"a.example"}, string(handmade(extServerName, sni("a.example\x00"))), "deny", ""},
		{"tls, address", []string{"a.example"}, string(handmade(extServerName, sni("10.0.0.1"))), "deny", "10.0.0.1"},
		{"tls, cut off", []string{"a.example"}, hello("a.example")[:100], "deny", "not finished"},
		{"tls, malformed", []string{"a.example"}, "\x16\x03\x01\x00\x05\x05\x00\x00\x01\x00", "deny", "malformed"},
		{"tls, over the limit", []string{"a.example"}, "\x16\x03\x01\x40\x00\x01\x0f\x00\x00" + strings.Repeat("x", 100), "deny", "more than"},
		{"tls, 40 KB", []string{"a.example"}, string(handmade(21, make([]byte, 40000), extServerName, sni("a.example"))), "allow", ""},
		{"tls, many records", []string{"a.example"}, string(split([]byte(hello("a.example")), 7)), "allow", ""},
		{"http", []string{"a.example"}, httpGet("a.example"), "allow", ""},
		{"http, contradicts", []string{"a.example"}, httpGet("b.example"), "deny", "b.example"},
		{"http, proxy request", []string{"a.example"}, "CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "deny", "b.example"},
		{"http, clear h2", []string{"a.example"}, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "deny", "HTTP/2"},
		{"http, cut off", []string{"a.example"}, "GET / HTTP/1.1\r\nHost: a.exa", "deny", "not finished"},
		{"http, address", nil, httpGet("203.0.113.7"), "deny", ""},
		{"other, one allowed name", []string{"a.example"}, "EHLO x\r\n", "allow", ""},
		{"other, one denied name", []string{"b.example"}, "EHLO x\r\n", "deny", ""},
		{"other, two names", []string{"a.example", "b.example"}, "EHLO x\r\n", "deny", ""},
		{"a SOCKS proxy", []string{"a.example"}, "\x05\x01\x00", "deny", "SOCKS"},
		{"a word", []string{"a.example"}, "hello", "allow", ""},
		{"nothing, one allowed name", []string{"a.example"}, "", "allow", ""},
		{"nothing, two names", []string{"a.example", "b.example"}, "", "deny", ""},
	}
	w := newWorld(t, func(s *Server) {
		s.Prove = func(_ context.Context, name string, a netip.Addr) bool {
			if name == "a.example" && a == siteA.Addr() {
				return false
			}
			if name != "proven.example" {
				t.Errorf("resolves %s, which no rule could allow", name)
			}
			return true
		}
	}, allow("a.example"), allow("proven.example"))
	w.site(siteA, echo)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w.resolved(siteA.Addr(), c.names...)
			before := w.dials()
			got, err := w.talk(c.send)
			e := w.event()
			if e.Verdict != c.want || !strings.Contains(e.Reason, c.why) {
				t.Errorf("%s (%s), want %s because of %q", e.Verdict, e.Reason, c.want, c.why)
			}
			if c.want == "allow" {
				if err != nil || got != c.send {
					t.Errorf("%d of %d bytes came back, error %v", len(got), len(c.send), err)
				}
				return
			}
			if e.BytesOut != 0 || w.dials() != before {
				t.Errorf("%d bytes out, %d dials", e.BytesOut, w.dials()-before)
			}
			if err == nil {
				t.Errorf("not reset, got %q", got)
			}
		})
	}
}

// A hello that comes byte by byte is waited for, and refused when it takes
// too long.
func TestSlowHello(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.Hello = 150 * time.Millisecond }, allow("a.example"))
	w.site(siteA, echo)
	w.resolved(siteA.Addr(), "a.example")
	hello := clientHello(t, &tls.Config{ServerName: "a.example"})

	c := w.client()
	c.SetNoDelay(true)
	for i := range hello {
		if _, err := c.Write(hello[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(c, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if e := w.event(); e.Verdict != "allow" || e.Host != "a.example" {
		t.Errorf("event %+v", e)
	}

	c = w.client()
	c.Write(hello[:50])
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "not finished") {
		t.Errorf("event %+v", e)
	}
}

// A server that speaks first is heard at once; what the client then says is
// still judged before a byte of it goes out.
func TestSilentStart(t *testing.T) {
	w := newWorld(t, nil, allow("a.example"))
	arrived := make(chan string, 4)
	w.site(siteA, func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\r\n")
		b, _ := io.ReadAll(c)
		arrived <- string(b)
		c.Close()
	})
	w.resolved(siteA.Addr(), "a.example")
	for _, c := range []struct{ send, want, out string }{
		{"EHLO x\r\n", "allow", "EHLO x\r\n"},
		{string(clientHello(t, &tls.Config{ServerName: "evil.example"})), "deny", ""},
		{httpGet("evil.example"), "deny", ""},
		{"", "allow", ""},
	} {
		conn := w.client()
		greeting := make([]byte, 11)
		if _, err := io.ReadFull(conn, greeting); err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, c.send)
		conn.CloseWrite()
		_, err := io.ReadAll(conn)
		if reset := errors.Is(err, syscall.ECONNRESET); reset != (c.want == "deny") {
			t.Errorf("%.8q: client sees %v", c.send, err)
		}
		if got := <-arrived; got != c.out {
			t.Errorf("%.8q: %d bytes arrived outside, want %d", c.send, len(got), len(c.out))
		}
		if e := w.event(); e.Verdict != c.want || e.BytesIn != 11 || e.BytesOut != int64(len(c.out)) {
			t.Errorf("%.8q: event %+v", c.send, e)
		}
	}
}

// A client that is merely slow is not refused for its silence.
func TestSlowToSpeak(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.Silence = time.Millisecond }, allow("a.example"))
	w.site(siteA, echo)
	w.resolved(siteA.Addr(), "a.example", "b.example")
	c := w.client()
	for len(w.srv.Flows()) == 0 || w.srv.Flows()[0].Reason == "not judged yet" {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // long past Silence; the test holds either way
	hello := clientHello(t, &tls.Config{ServerName: "a.example"})
	c.Write(hello)
	if _, err := io.ReadFull(c, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, func(c *net.TCPConn) { // answers only after the client has ended
		b, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(b))
		c.CloseWrite()
		c.Close()
	})
	if got, err := w.talk("question"); err != nil || got != "QUESTION" {
		t.Errorf("got %q, %v", got, err)
	}
	w.event()

	// The other way round: the server ends first, the client goes on.
	rest := make(chan string, 1)
	w.site(siteA, func(c *net.TCPConn) {
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		rest <- string(b)
		c.Close()
	})
	c := w.client()
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "last words")
	c.Close()
	if got := <-rest; got != "last words" {
		t.Errorf("server got %q", got)
	}
	if e := w.event(); e.BytesOut != 10 || e.Verdict != "allow" {
		t.Errorf("event %+v", e)
	}
}

func TestResetIsPassedOn(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		abort(c)
	})
	if _, err := w.talk("x"); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client sees %v, want a reset", err)
	}
	w.event()

	seen := make(chan error, 1)
	w.site(siteA, func(c *net.TCPConn) {
		c.Write([]byte("x"))
		_, err := io.ReadAll(c)
		seen <- err
	})
	c := w.client()
	io.ReadFull(c, make([]byte, 1))
	abort(c)
	if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server sees %v, want a reset", err)
	}
	w.event()
}

// Bulk data in both directions at once arrives whole: the path through pipes.
func TestBulk(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, echo)
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	c := w.client()
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes, equal %v, error %v", len(got), len(data), bytes.Equal(got, data), err)
	}
	if e := w.event(); e.BytesIn != int64(len(data)) || e.BytesOut != int64(len(data)) {
		t.Errorf("event %+v", e)
	}
}

func TestDialFailure(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	if _, err := w.talk(""); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client sees %v", err)
	}
	if e := w.event(); e.Verdict != "allow" || !strings.Contains(e.Reason, "could not connect") {
		t.Errorf("event %+v", e)
	}
}

func TestMadeToTheListener(t *testing.T) {
	direct := func(c *net.TCPConn) (netip.AddrPort, error) { return addrPort(c.LocalAddr()), nil }
	unknown := func(c *net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, errors.New("enoent") }
	for _, original := range []func(*net.TCPConn) (netip.AddrPort, error){direct, unknown} {
		w := newWorld(t, func(s *Server) { s.OriginalDst = original }, allow("*"))
		if _, err := w.talk(httpGet("a.example")); err == nil {
			t.Error("served")
		}
		if e := w.event(); e.Verdict != "deny" || e.Layer != "guard" || !strings.Contains(e.Reason, "listener") {
			t.Errorf("event %+v", e)
		}
	}
}

// Whatever a policy says, some addresses are not dialled.
func TestNeverDialled(t *testing.T) {
	for _, dst := range []string{"127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[ff02::1]:80", "[::ffff:127.0.0.1]:80"} {
		s := &Server{Dial: func(context.Context, netip.AddrPort) (*net.TCPConn, error) {
			t.Errorf("dialled %s", dst)
			return nil, errors.New("dialled")
		}}
		s.init()
		if _, err := s.dial(t.Context(), netip.MustParseAddrPort(dst)); !errors.Is(err, errNeverDialled) {
			t.Errorf("%s: %v", dst, err)
		}
	}
}

func TestPrograms(t *testing.T) {
	rule := allow("203.0.113.7")
	rule.Binaries = []string{"/usr/bin/curl"}
	var path atomic.Value
	var asked atomic.Int64
	w := newWorld(t, func(s *Server) {
		s.Program = func(_ context.Context, _ rules.Transport, client, dst netip.AddrPort) (*rules.Program, error) {
			asked.Add(1)
			if !client.Addr().IsLoopback() || dst != siteA {
				t.Errorf("asked about %s → %s", client, dst)
			}
			if path.Load() == "" {
				return nil, errors.New("gone")
			}
			return &rules.Program{Path: path.Load().(string)}, nil
		}
	}, rule)
	w.site(siteA, echo)
	for p, want := range map[string]string{"/usr/bin/curl": "allow", "/usr/bin/nc": "deny", "": "deny"} {
		path.Store(p)
		w.talk("x")
		if e := w.event(); e.Verdict != want || e.Binary != p {
			t.Errorf("%q: event %+v", p, e)
		}
		if n := asked.Swap(0); n != 1 {
			t.Errorf("%q: looked for the program %d times", p, n)
		}
	}
	w.setRules(false, allow("203.0.113.7"))
	w.talk("x")
	if e := w.event(); e.Verdict != "allow" || e.Binary != "" || asked.Load() != 0 {
		t.Errorf("without a rule that lists binaries: looked %d times, event %+v", asked.Load(), e)
	}
}

func TestPanicIsARefusal(t *testing.T) {
	w := newWorld(t, func(s *Server) {
		s.Names = func(netip.Addr, time.Time) []string { panic("boom") }
	}, allow("*"))
	if _, err := w.talk("x"); err == nil {
		t.Error("served")
	}
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "boom") {
		t.Errorf("event %+v", e)
	}
}

func TestLearning(t *testing.T) {
	w := newWorld(t, func(s *Server) {
		s.Prove = func(_ context.Context, name string, _ netip.Addr) bool { return name == "proven.example" }
	})
	w.site(siteA, echo)
	w.setRules(true, allow("a.example"), allow("proven.example"))
	for _, c := range []struct {
		name        string
		names       []string
		send        string
		would, host string
	}{
		{"named", []string{"a.example", "b.example"}, string(clientHello(t, &tls.Config{ServerName: "a.example"})), "allow", "a.example"},
		{"another", []string{"a.example", "b.example"}, string(clientHello(t, &tls.Config{ServerName: "b.example"})), "deny", "b.example"},
		{"proven", nil, httpGet("proven.example"), "allow", "proven.example"},
		{"claimed only", nil, httpGet("a.example"), "deny", ""},
		{"silent", []string{"a.example", "b.example"}, "", "deny", ""},
		{"unfinished", []string{"a.example", "b.example"}, "GET / HT", "deny", ""},
	} {
		w.resolved(siteA.Addr(), c.names...)
		if got, err := w.talk(c.send); err != nil || got != c.send {
			t.Errorf("%s: got %d bytes, %v", c.name, len(got), err)
		}
		e := w.event()
		if e.Verdict != "allow" || e.Layer != "allow_all" || e.Would == nil || e.Would.Verdict != c.would || e.Host != c.host {
			t.Errorf("%s: event %+v, would %+v", c.name, e, e.Would)
		}
	}
}
