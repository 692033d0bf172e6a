package proxy

import (
	"crypto/x509"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/audit"
	"weir/rules"
)

// tally is a Meter that counts.
type tally struct {
	mu         sync.Mutex
	decided    map[rules.Stage]int
	handshakes map[string]int
	negative   bool
}

func newTally() *tally {
	return &tally{decided: map[rules.Stage]int{}, handshakes: map[string]int{}}
}

func (m *tally) Decided(stage rules.Stage, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.decided[stage]++
	m.negative = m.negative || took < 0
}

func (m *tally) Handshaken(side Side, took time.Duration, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	what := side.String() + " failed"
	if done {
		what = side.String() + " done"
	}
	m.handshakes[what]++
	m.negative = m.negative || took <= 0
}

// takeHandshakes returns what was counted so far and forgets it.
func (m *tally) takeHandshakes() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.handshakes
	m.handshakes = map[string]int{}
	return was
}

func TestMeterIsToldOfEveryDecision(t *testing.T) {
	m := newTally()
	w := newWorld(t, func(s *Server) { s.Meter = m }, allow("203.0.113.7"))
	w.site(siteA, echo)
	for range 3 {
		if got, err := w.talk("hello"); got != "hello" || err != nil {
			t.Fatal(got, err)
		}
		w.event()
	}
	w.setRules(false, allow("shop.example"))
	w.resolved(siteA.Addr(), "shop.example")
	if got, err := w.talk("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"); err != nil || got == "" {
		t.Fatal(got, err)
	}
	w.event()
	m.mu.Lock()
	defer m.mu.Unlock()
	if diff := cmp.Diff(map[rules.Stage]int{rules.Connect: 4, rules.Hello: 1}, m.decided); diff != "" || m.negative {
		t.Errorf("negative times %v, decisions by stage:\n%s", m.negative, diff)
	}
}

func TestMeterIsToldOfHandshakes(t *testing.T) {
	m := newTally()
	l := newRelayLab(t, 443, restPolicy, func(l *relayLab) { l.relay.Meter = m })
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") })
	l.serve(ok)
	if code, text, err := readRes(l.client(false).Get(l.url("/ok/a"))); err != nil || code != 200 {
		t.Fatalf("%d %v %s", code, err, text)
	}
	if diff := cmp.Diff(map[string]int{"client done": 1, "server done": 1}, m.takeHandshakes()); diff != "" {
		t.Error(diff)
	}
	m.mu.Lock()
	if m.decided[rules.HTTP] == 0 || m.negative {
		t.Errorf("decisions by stage %v, negative times %v", m.decided, m.negative)
	}
	m.mu.Unlock()

	// A client that trusts somebody else.
	stranger := l.client(false)
	stranger.Transport.(*http.Transport).TLSClientConfig.RootCAs = x509.NewCertPool()
	if _, err := stranger.Get(l.url("/ok/a")); err == nil {
		t.Fatal("a client that does not trust Weir was answered")
	}
	l.event(audit.Connect)
	if diff := cmp.Diff(map[string]int{"client failed": 1, "server done": 1}, m.takeHandshakes()); diff != "" {
		t.Error(diff)
	}
}

func TestLoadSaysWhatIsUnderWay(t *testing.T) {
	w := newWorld(t, func(s *Server) { s.Limits.Connections = 10 }, allow("203.0.113.7"))
	w.site(siteA, echo)
	level := func(limit string) Level {
		for _, l := range w.srv.Load().Levels {
			if l.Limit == limit {
				return l
			}
		}
		t.Fatalf("no level %q", limit)
		return Level{}
	}
	if got := level("connections"); got != (Level{"connections", 0, 10}) {
		t.Errorf("before: %+v", got)
	}
	c := w.open("12345")
	w.moved(5)
	if got := level("connections"); got != (Level{"connections", 1, 10}) || w.srv.Open() != 1 {
		t.Errorf("with one open: %+v, %d", got, w.srv.Open())
	}
	if load := w.srv.Load(); load.BytesIn != 5 || load.BytesOut != 5 {
		t.Errorf("%d bytes in, %d out; want 5 and 5", load.BytesIn, load.BytesOut)
	}
	c.Close()
	w.event()
	for end := time.Now().Add(patience); w.srv.Open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it stays open")
		}
	}
	if load := w.srv.Load(); load.BytesIn != 0 || load.BytesOut != 0 {
		t.Errorf("nothing is open, and %d bytes in, %d out", load.BytesIn, load.BytesOut)
	}
}
