package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/ask"
	"weir/audit"
	"weir/rules"
)

var placeholder = netip.MustParseAddrPort("240.0.0.1:443")

// An asking world's policy asks, and its placeholder stands for a.example, which
// is siteA.
type asking struct {
	*world
	book ask.Book

	mu      sync.Mutex
	lookups int
	alive   bool // a program has the client's socket
}

func newAsking(t *testing.T, rs ...rules.Rule) *asking {
	w := &asking{}
	w.world = newWorld(t, func(s *Server) {
		s.Ask = w.book.Ask
		s.StandsFor = func(a netip.Addr) (string, bool) { return "a.example", a == placeholder.Addr() }
		s.Lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.lookups++
			if name != "a.example" {
				return nil, fmt.Errorf("asked for %s", name)
			}
			return []netip.Addr{netip.MustParseAddr("2001:db8::7"), siteA.Addr()}, nil
		}
		s.Program = func(_ context.Context, _ rules.Transport, _, dst netip.AddrPort) (*rules.Program, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !w.alive {
				return nil, errors.New("no such socket")
			}
			return &rules.Program{Path: "/bin/to-" + dst.Addr().String()}, nil
		}
	})
	w.alive = true
	w.policyAsks(true, rs...)
	w.site(siteA, echo)
	w.goTo(placeholder)
	return w
}

// policyAsks puts rules into force, in a session that asks or does not.
func (w *asking) policyAsks(asks bool, rs ...rules.Rule) {
	w.t.Helper()
	for i := range rs {
		rs[i].ID = fmt.Sprintf("r%d", i)
	}
	layer, err := rules.NewLayer(rules.Session, rs)
	if err != nil {
		w.t.Fatal(err)
	}
	w.policy.Store(rules.Compile(rules.Stack{Layers: []*rules.Layer{layer}, Ask: asks, Session: "s1"}))
	w.srv.Rejudge()
}

// asked waits until n connections wait for the answer to one question.
func (w *asking) asked(n int) ask.Question {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if open := w.book.Open(""); len(open) == 1 && open[0].Flows == n {
			return open[0]
		}
		if time.Now().After(end) {
			w.t.Fatalf("never %d connections at one question: %+v", n, w.book.Open(""))
		}
	}
}

func (w *asking) answer(n int, r ask.Reply) {
	w.t.Helper()
	q := w.asked(n)
	if _, err := w.book.Claim(q.ID); err != nil {
		w.t.Fatal(err)
	}
	w.book.Answer(q.ID, r)
}

func (w *asking) counts() (lookups, dials int) {
	dials = w.dials()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lookups, dials
}

const get = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"

// say opens a connection and says something.
func (w *asking) say(text string) *net.TCPConn {
	w.t.Helper()
	c := w.client()
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// hears waits for the echo of what was said.
func (w *asking) hears(c *net.TCPConn, text string) {
	w.t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		w.t.Errorf("heard %q, %v", b, err)
	}
}

func (w *asking) refused(c *net.TCPConn) audit.Event {
	w.t.Helper()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		w.t.Errorf("not reset: %v", err)
	}
	return w.event()
}

func TestHeldUntilAllowed(t *testing.T) {
	w := newAsking(t)
	first, second := w.say(get), w.say(get)
	q := w.asked(2)
	if q.Host != "a.example" || q.Addr.IsValid() || q.Port != 443 || q.Session != "s1" || q.Container.Name != "web" || q.Binary != "/bin/to-240.0.0.1" {
		t.Errorf("question %+v", q)
	}
	if lookups, dials := w.counts(); lookups+dials > 0 {
		t.Errorf("%d lookups and %d dials before the answer", lookups, dials)
	}
	w.answer(2, ask.Reply{Allow: true, Reason: "allowed once by somebody"})
	w.hears(first, get)
	w.hears(second, get)

	// Kept by what changes, but for a rule that denies.
	w.policyAsks(false)
	if isCut(t, first) {
		t.Error("cut although nothing denies it")
	}
	first.Close()
	if e := w.event(); e.Verdict != "allow" || e.Layer != "asked" || e.Host != "a.example" || e.Address != siteA.Addr().String() || e.Reason != "allowed once by somebody" {
		t.Errorf("event %+v", e)
	}
	w.policyAsks(true, forbid("a.example"))
	if e := w.refused(second); e.Verdict != "deny" || e.RuleID != "r0" {
		t.Errorf("event %+v", e)
	}
}

func TestHeldUntilItEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(w *asking, c *net.TCPConn)
		passes bool
		reason string
	}{
		{"denied", func(w *asking, _ *net.TCPConn) { w.answer(1, ask.Reply{Reason: "denied once by somebody"}) }, false, "denied once by somebody"},
		{"expired", func(w *asking, _ *net.TCPConn) {
			w.answer(1, ask.Reply{Expired: true, Reason: "nobody answered within 30s"})
		}, false, "default deny; nobody answered within 30s"},
		{"a rule that allows", func(w *asking, _ *net.TCPConn) { w.asked(1); w.policyAsks(true, allow("a.example")) }, true, "session rule r0 allows a.example"},
		{"an answer that made one", func(w *asking, _ *net.TCPConn) {
			q := w.asked(1)
			w.book.Claim(q.ID)
			w.policyAsks(true, allow("*.example"))
			w.book.Answer(q.ID, ask.Reply{Allow: true, Rule: true})
		}, true, "session rule r0 allows *.example"},
		{"an answer whose rule is about something else", func(w *asking, _ *net.TCPConn) {
			w.answer(1, ask.Reply{Allow: true, Rule: true, Reason: "allowed for good"})
		}, false, "allowed for good, which does not change it"},
		{"a rule that denies", func(w *asking, _ *net.TCPConn) { w.asked(1); w.policyAsks(true, forbid("a.example")) }, false, "session rule r0 denies a.example"},
		{"nobody asks any more", func(w *asking, _ *net.TCPConn) { w.asked(1); w.policyAsks(false) }, false, "default deny"},
		{"the client has gone", func(w *asking, c *net.TCPConn) {
			w.asked(1)
			w.mu.Lock()
			w.alive = false
			w.mu.Unlock()
			c.Close()
		}, false, "default deny; the client has gone before anybody answered"},
		{"the client resets", func(w *asking, c *net.TCPConn) { w.asked(1); c.SetLinger(0); c.Close() }, false, "default deny; the client has gone before anybody answered"},
		{"cut on request", func(w *asking, _ *net.TCPConn) { w.asked(1); w.srv.Kill(w.srv.Flows()[0].ID) }, false, "cut on request"},
		{"shutdown", func(w *asking, _ *net.TCPConn) {
			w.asked(1)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := w.srv.Shutdown(ctx); err != nil {
				w.t.Errorf("Shutdown waited for people: %v", err)
			}
		}, false, "default deny; Weir stopped before anybody answered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newAsking(t)
			conn := w.say(get)
			c.end(w, conn)
			if c.passes {
				w.hears(conn, get)
				conn.Close()
			}
			e := w.event()
			if (e.Verdict == "allow") != c.passes || !strings.HasSuffix(e.Reason, c.reason) {
				t.Errorf("event %+v", e)
			}
			if lookups, dials := w.counts(); !c.passes && lookups+dials > 0 {
				t.Errorf("%d lookups and %d dials for what was not allowed", lookups, dials)
			}
			if open := w.book.Open(""); len(open) > 0 {
				t.Errorf("questions stay: %+v", open)
			}
		})
	}
}

// A client that has closed its sending side and waits goes on.
func TestHeldHalfClosed(t *testing.T) {
	w := newAsking(t)
	c := w.say(get)
	w.asked(1)
	c.CloseWrite()
	w.answer(1, ask.Reply{Allow: true, Reason: "allowed once"})
	w.hears(c, get)
}

// What contradicts or is broken is not asked about, and what a person allowed is
// held to it.
func TestHeldToItsClaim(t *testing.T) {
	w := newAsking(t)
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"} {
		if e := w.refused(w.say(text)); e.Verdict != "deny" {
			t.Errorf("%q: %+v", text, e)
		}
	}
	// A client that is silent at first is asked about, and judged when it speaks.
	c := w.client()
	w.answer(1, ask.Reply{Allow: true, Reason: "allowed once"})
	w.live(1)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")
	if e := w.refused(c); e.Verdict != "deny" || !strings.Contains(e.Reason, "b.example") {
		t.Errorf("event %+v", e)
	}
	if open := w.book.Open(""); len(open) > 0 {
		t.Errorf("asked: %+v", open)
	}
}

// The name's own address is judged as every other.
func TestHeldToItsAddress(t *testing.T) {
	w := newAsking(t)
	c := w.say(get)
	q := w.asked(1)
	w.book.Claim(q.ID)
	w.policyAsks(true, allow("a.example"), forbid("203.0.113.0/24"))
	w.book.Answer(q.ID, ask.Reply{Allow: true, Rule: true})
	w.hears(c, get) // a name is more specific than a network
	c.Close()
	w.event()
	w.policyAsks(true, allow("*.example"), forbid("203.0.113.0/24"))
	if e := w.refused(w.say(get)); e.RuleID != "r1" || e.Address != siteA.Addr().String() {
		t.Errorf("event %+v", e)
	}
	if _, dials := w.counts(); dials != 1 {
		t.Errorf("%d dials", dials)
	}
}

// Addresses and names that were resolved before are asked about without a
// placeholder.
func TestHeldWithItsAddress(t *testing.T) {
	w := newAsking(t)
	w.goTo(siteA)
	c := w.say("SSH-2.0-x\r\n")
	if q := w.asked(1); q.Host != "" || q.Addr != siteA.Addr() {
		t.Errorf("question %+v", q)
	}
	w.answer(1, ask.Reply{Allow: true, Reason: "allowed once"})
	w.hears(c, "SSH-2.0-x\r\n")
	c.Close()
	w.event()
	w.resolved(siteA.Addr(), "a.example", "b.example")
	c = w.say("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")
	if q := w.asked(1); q.Host != "b.example" || q.Addr != siteA.Addr() {
		t.Errorf("question %+v", q)
	}
	w.answer(1, ask.Reply{Reason: "no"})
	if e := w.refused(c); e.Layer != "asked" || e.Reason != "no" {
		t.Errorf("event %+v", e)
	}
	c = w.say("SSH-2.0-x\r\n")
	if e := w.refused(c); e.Verdict != "deny" {
		t.Errorf("one of two names, unsaid: %+v", e)
	}
	if lookups, _ := w.counts(); lookups != 0 {
		t.Errorf("%d lookups", lookups)
	}
}

// Another session asks anew: an answer for the session has to be for the one
// that counts.
func TestHeldAcrossSessions(t *testing.T) {
	w := newAsking(t)
	c := w.say(get)
	before := w.asked(1)
	w.policy.Store(rules.Compile(rules.Stack{Ask: true, Session: "s2"}))
	w.srv.Rejudge()
	for end := time.Now().Add(patience); w.asked(1).Session != "s2"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still asked for %+v", w.book.Open(""))
		}
	}
	if _, err := w.book.Claim(before.ID); !errors.Is(err, ask.ErrOver) {
		t.Errorf("the question before: %v", err)
	}
	w.answer(1, ask.Reply{Allow: true, Reason: "allowed once"})
	w.hears(c, get)
}
