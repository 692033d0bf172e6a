package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weir/audit"
	"weir/rules"
)

// open connects and makes sure that bytes flow.
func (w *world) open(first string) *net.TCPConn {
	w.t.Helper()
	c := w.client()
	if _, err := io.WriteString(c, first); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(first))); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// moved waits until the only live flow has counted n bytes each way: they are
// counted after they are sent, so that the other end may have them earlier.
func (w *world) moved(n int64) {
	w.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if f := w.live(1)[0]; f.BytesIn == n && f.BytesOut == n {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("never %d bytes each way: %+v", n, w.srv.Flows())
		}
	}
}

// isCut says whether the connection is reset; otherwise it must still echo.
func isCut(t *testing.T, c *net.TCPConn) bool {
	t.Helper()
	_, err := io.WriteString(c, "x")
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("neither alive nor reset: %v", err)
	}
	return err != nil
}

func TestRejudge(t *testing.T) {
	start := []rules.Rule{allow("203.0.113.7"), allow("b.example")}
	cases := []struct {
		name  string
		rules []rules.Rule
		cutA  bool // by address
		cutB  bool // by name
	}{
		{"the same", start, false, false},
		{"by other rules", []rules.Rule{allow("203.0.113.0/24")}, false, false},
		{"nothing", nil, true, true},
		{"denied name", append([]rules.Rule{forbid("b.example")}, start...), false, true},
		{"no name", start[:1], false, true},
		{"no address", start[1:], true, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil, start...)
			w.site(siteA, echo)
			w.site(siteB, echo)
			w.resolved(siteB.Addr(), "b.example", "a.example")
			a := w.open("hello")
			w.goTo(siteB)
			b := w.open(httpGet("b.example"))
			w.live(2)

			w.setRules(false, c.rules...)
			w.srv.Rejudge()
			if got := isCut(t, a); got != c.cutA {
				t.Errorf("by address: cut %v, want %v", got, c.cutA)
			}
			if got := isCut(t, b); got != c.cutB {
				t.Errorf("by name: cut %v, want %v", got, c.cutB)
			}
			a.Close()
			b.Close()
			for range 2 {
				e := w.event()
				cut := e.Address == "203.0.113.7" && c.cutA || e.Address == "203.0.113.8" && c.cutB
				if (e.Verdict == "deny") != cut || strings.HasPrefix(e.Reason, "allowed before, cut now: ") != cut || e.BytesIn == 0 {
					t.Errorf("cut %v: event %+v", cut, e)
				}
			}
		})
	}
}

// A policy that changes while a connection is dialled counts for it.
func TestRejudgeWhileDialling(t *testing.T) {
	dialling, proceed := make(chan bool), make(chan bool)
	w := newWorld(t, func(s *Server) {
		inner := s.Dial
		s.Dial = func(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
			dialling <- true
			<-proceed
			return inner(ctx, dst)
		}
	}, allow("203.0.113.7"))
	w.site(siteA, echo)
	c := w.client()
	<-dialling
	w.setRules(false)
	w.srv.Rejudge()
	proceed <- true
	if !isCut(t, c) {
		t.Error("not cut")
	}
	if e := w.event(); e.Verdict != "deny" || e.BytesOut != 0 {
		t.Errorf("event %+v", e)
	}
}

// Learning ends: what the rules do not allow ends with it.
func TestRejudgeAfterLearning(t *testing.T) {
	w := newWorld(t, nil)
	w.setRules(true, allow("a.example"))
	w.site(siteA, echo)
	w.resolved(siteA.Addr(), "a.example", "b.example")
	good, bad := w.open(httpGet("a.example")), w.open(httpGet("b.example"))
	w.live(2)
	w.setRules(false, allow("a.example"))
	w.srv.Rejudge()
	if isCut(t, good) || !isCut(t, bad) {
		t.Error("the wrong connection was cut")
	}
}

func TestKillAndFlows(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, echo)
	c := w.open("hello")
	w.moved(5)
	f := w.live(1)[0]
	if f.Destination != siteA || f.Client != addrPort(c.LocalAddr()) || f.BytesIn != 5 || f.BytesOut != 5 ||
		f.Rule == nil || f.Rule.ID != "r0" || f.Layer != rules.Global || f.Started.IsZero() {
		t.Errorf("flow %+v", f)
	}
	if w.srv.Kill(f.ID + 1) {
		t.Error("killed a flow that is not there")
	}
	if !w.srv.Kill(f.ID) {
		t.Error("not killed")
	}
	if !isCut(t, c) {
		t.Error("still alive")
	}
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "request") {
		t.Errorf("event %+v", e)
	}
	w.live(0)
}

func TestLimits(t *testing.T) {
	w := newWorld(t, func(s *Server) {
		s.Limits.Connections = 2
		s.Limits.Peeking = 1
	}, allow("203.0.113.7"), allow("a.example"))
	w.site(siteA, echo)
	w.site(siteB, echo)
	first, second := w.open("1"), w.open("2")
	for range 3 {
		if c, err := w.connect(); err == nil && !isCut(t, c) {
			t.Error("a third connection was served")
		}
	}
	w.srv.reportLimits(rules.TCP, "connections", w.srv.gauges.tcp())
	if e := w.event(); e.Type != audit.Limit || e.Verdict != "deny" || !strings.Contains(e.Reason, "limit of 2 open connections reached: 3 conn") {
		t.Errorf("event %+v", e)
	}
	first.Close()
	second.Close()
	w.event()
	w.event()
	w.live(0)

	w.goTo(siteB)
	w.resolved(siteB.Addr(), "a.example")
	slow := w.client()
	io.WriteString(slow, "GET / HT")
	for w.srv.gauges.peeking.now.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := w.talk("GET / HT"); err == nil {
		t.Error("a second unfinished head was waited for")
	}
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "unfinished") {
		t.Errorf("event %+v", e)
	}
}

func TestNewConnectionsPerSecond(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.PerSecond = 10 }, allow("203.0.113.7"))
	w.site(siteA, echo)
	w.open("1")
	w.open("2") // has to wait, and is served then
	w.srv.reportLimits(rules.TCP, "connections", w.srv.gauges.tcp())
	if e := w.event(); e.Type != audit.Limit || e.Verdict != "" ||
		!strings.Contains(e.Reason, "limit of 10 new connections a second reached: 1 connections had to wait") {
		t.Errorf("event %+v", e)
	}
}

func TestIdle(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.Idle = time.Hour }, allow("203.0.113.7"))
	w.site(siteA, echo)
	c := w.open("hello")
	now := time.Now()
	w.moved(5)
	w.srv.sweepIdle(rules.TCP, w.srv.limits.Idle, now) // sees the bytes
	w.srv.sweepIdle(rules.TCP, w.srv.limits.Idle, now.Add(59*time.Minute))
	if isCut(t, c) {
		t.Fatal("cut too early")
	}
	w.moved(6)
	w.srv.sweepIdle(rules.TCP, w.srv.limits.Idle, now.Add(61*time.Minute)) // sees the new bytes
	w.srv.sweepIdle(rules.TCP, w.srv.limits.Idle, now.Add(122*time.Minute))
	if !isCut(t, c) {
		t.Error("not cut")
	}
	if e := w.event(); e.Verdict != "allow" || !strings.Contains(e.Reason, "without traffic") {
		t.Errorf("event %+v", e)
	}
}

func TestShutdown(t *testing.T) {
	w := newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, echo)
	c := w.open("hello")
	w.live(1)
	ended := make(chan error, 1)
	go func() { ended <- w.srv.Shutdown(context.Background()) }()
	for !w.srv.stopping() {
		time.Sleep(time.Millisecond)
	}
	if isCut(t, c) {
		t.Error("cut while draining")
	}
	c.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(w.events) != 1 {
		t.Errorf("%d events when Shutdown returned", len(w.events))
	}

	// What was accepted and still has to wait for its turn is served, too.
	w = newWorld(t, func(s *Server) { s.Limits.PerSecond = 5 }, allow("203.0.113.7"))
	w.site(siteA, echo)
	c = w.open("hello")
	late := w.client()
	for w.srv.gauges.fresh.hits.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	go func() { ended <- w.srv.Shutdown(context.Background()) }()
	for !w.srv.stopping() {
		time.Sleep(time.Millisecond)
	}
	if isCut(t, late) {
		t.Error("cut while it waited")
	}
	c.Close()
	late.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	w = newWorld(t, nil, allow("203.0.113.7"))
	w.site(siteA, echo)
	c = w.open("hello")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.srv.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !isCut(t, c) {
		t.Error("not cut")
	}
	if e := w.event(); e.Verdict != "allow" || !strings.Contains(e.Reason, "stopped") {
		t.Errorf("event %+v", e)
	}
}

// While the recorder blocks, connections keep their places: nothing is lost
// and nothing goes unrecorded.
func TestRecorderBlocks(t *testing.T) {
	gate := make(chan struct{})
	var recorded atomic.Int64
	w := newWorld(t, func(s *Server) {
		s.Limits.Connections = 1
		s.Record = func(audit.Event) int64 { <-gate; return recorded.Add(1) }
	}, allow("203.0.113.7"))
	w.site(siteA, echo)
	if got, err := w.talk("x"); err != nil || got != "x" {
		t.Fatalf("%q, %v", got, err)
	}
	if c, err := w.connect(); err == nil && !isCut(t, c) {
		t.Error("served although the last connection is not recorded")
	}
	close(gate)
	w.live(0)
	for len(w.srv.all()) > 0 {
		time.Sleep(time.Millisecond)
	}
	if recorded.Load() < 1 {
		t.Error("nothing recorded")
	}
}

// Whatever clients, servers and the policy do: one event for each connection,
// and the byte counts of allowed ones are what arrived.
func TestOneEventEach(t *testing.T) {
	w := newWorld(t, func(s *Server) {
		s.Limits.Silence = time.Millisecond
		s.Limits.Hello = 20 * time.Millisecond
	}, allow("a.example"), allow("203.0.113.7"))
	w.site(siteA, echo)
	w.site(siteB, func(c *net.TCPConn) {
		io.CopyN(c, c, 20)
		abort(c)
	})
	w.resolved(siteB.Addr(), "a.example", "b.example")
	total := 0
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(r, "connections")
		for range n {
			if rapid.Bool().Draw(r, "site") {
				w.goTo(siteA)
			} else {
				w.goTo(siteB)
			}
			text := rapid.SampledFrom([]string{
				"", "x", httpGet("a.example"), httpGet("b.example"), httpGet("a.example")[:20],
				"\x16\x03\x01", strings.Repeat("y", 100<<10),
			}).Draw(r, "text")
			end := rapid.SampledFrom([]string{"close", "half", "abort", "kill"}).Draw(r, "end")
			c, err := w.connect()
			if err != nil {
				continue
			}
			io.WriteString(c, text)
			switch end {
			case "close":
				c.Close()
			case "half":
				c.CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			case "abort":
				abort(c)
			case "kill":
				for _, f := range w.srv.Flows() {
					w.srv.Kill(f.ID)
				}
				c.Close()
			}
		}
		total += n
		if rapid.Bool().Draw(r, "rejudge") {
			w.srv.Rejudge()
		}
		for range n {
			if e := w.event(); e.Type != audit.Connect || e.Verdict == "" || e.Reason == "" {
				r.Fatalf("event %+v", e)
			}
		}
		for end := time.Now().Add(patience); len(w.srv.Flows()) > 0; time.Sleep(100 * time.Microsecond) {
			if time.Now().After(end) {
				r.Fatalf("flows left: %+v", w.srv.Flows())
			}
		}
		if len(w.events) != 0 {
			r.Fatalf("an event too many: %+v", <-w.events)
		}
	})
	if g := &w.srv.gauges; g.connections.now.Load() != 0 || g.peeking.now.Load() != 0 || g.dialing.now.Load() != 0 || w.srv.stores.pipes.now.Load() != 0 {
		t.Errorf("places not given back after %d connections", total)
	}
}

func TestInspectedWithoutRelay(t *testing.T) {
	w := newWorld(t, nil, inspectedRule())
	w.resolved(siteA.Addr(), "a.example")
	if _, err := w.talk(httpGet("a.example")); err == nil {
		t.Error("served")
	}
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "inspected") {
		t.Errorf("event %+v", e)
	}
}

func inspectedRule() rules.Rule {
	r := allow("a.example")
	r.Endpoint = &rules.Endpoint{Policy: "p", Protocol: rules.ProtocolREST, SkipTLS: true, Allow: []rules.RequestRule{{Methods: []string{"GET"}}}}
	return r
}

// A relay reads the client from its first byte on and can be cut.
func TestRelay(t *testing.T) {
	w := newWorld(t, func(s *Server) {
		s.Relay = func(ctx context.Context, in Inspected) error {
			head := make([]byte, len(httpGet("a.example")))
			if _, err := io.ReadFull(in.Client, head); err != nil {
				return err
			}
			if in.Decision.Endpoint == nil || in.Request.Claim.Name != "a.example" {
				return errors.New("facts are missing")
			}
			up, err := in.Dial(ctx)
			if err != nil {
				return err
			}
			defer up.Close()
			in.Client.Write(head)
			<-ctx.Done()
			return nil
		}
	}, inspectedRule())
	w.site(siteA, echo)
	w.resolved(siteA.Addr(), "a.example")
	c := w.open(httpGet("a.example"))
	if fs := w.live(1); !fs[0].Inspected || fs[0].BytesOut != int64(len(httpGet("a.example"))) {
		t.Errorf("flow %+v", fs[0])
	}
	w.srv.Rejudge()
	w.live(1)
	w.setRules(false)
	w.srv.Rejudge()
	if !isCut(t, c) {
		t.Error("not cut")
	}
	if e := w.event(); e.Verdict != "deny" || e.BytesIn == 0 {
		t.Errorf("event %+v", e)
	}
}
