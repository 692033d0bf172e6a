package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Rule is the part of a rule that the tests look at.
type Rule struct {
	ID, Source, Container, Destination, Ports, Action, Notes string

	SessionID string     `json:"session_id"`
	ExpiresAt *time.Time `json:"expires_at"`
	CreatedAt time.Time  `json:"created_at"`
}

func (w *Weir) rules(args ...string) []Rule {
	w.t.Helper()
	var list struct{ Items []Rule }
	w.json(&list, append([]string{"rule", "list"}, args...)...)
	return list.Items
}

func (w *Weir) sessions() []Session {
	w.t.Helper()
	var list []Session
	w.json(&list, "session", "list")
	return list
}

type resolved struct{ Name, Address string }

func (w *Weir) names(container string) []resolved {
	w.t.Helper()
	var list []resolved
	w.json(&list, "dns", container)
	return list
}

// state is all that must survive the daemon.
type state struct {
	Attached []Attached
	Sessions []Session
	Rules    []Rule
}

func (w *Weir) state() (s state) {
	w.t.Helper()
	w.json(&s.Attached, "ps")
	for i := range s.Attached {
		s.Attached[i].Flows = 0 // whose connection it was ends with the daemon
	}
	s.Sessions, s.Rules = w.sessions(), w.rules()
	return s
}

func TestDaemonThatEndsLeavesNothingOpenAndLosesNothing(t *testing.T) {
	for _, how := range []struct {
		name string
		end  func(*Weir)
	}{{"killed", (*Weir).kill}, {"stopped", (*Weir).stop}} {
		t.Run(how.name, func(t *testing.T) { endsUnderTraffic(t, how.end) })
	}
}

func endsUnderTraffic(t *testing.T, end func(*Weir)) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	var served atomic.Int64
	o.serveHTTP("198.51.100.10:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		fmt.Fprintln(w, "hello")
	}))
	echo(o, "198.51.100.11:7")
	hello(o, canary4+":80")
	seen := o.watch(canary4)
	w := startWeir(t, "")
	box := newBox(t, "--network", newNetwork(t))
	w.run("attach", box.Name, "--session", "old", "--ttl", "10m")
	w.run("session", "create", box.Name, "--id", "work", "--ttl", "2h", "--allow", "shop.example:80", "--allow", "198.51.100.11:7", "--label", "job=42")
	w.run("rule", "add", "deny", "**.evil.example", "--notes", "never", "--expires", "3h")
	w.run("session", "heartbeat", "work", "--ttl", "1h")
	pid := box.pid()

	// Traffic that never ends: what is allowed, and what is not.
	run(t, "docker", "exec", "-d", box.Name, "sh", "-c",
		"while :; do curl -s -m 1 http://shop.example/ & curl -s -m 1 http://"+canary4+"/; echo x | nc -u -w0 "+canary4+" 53; wait; done")
	held := box.connect("198.51.100.11", 7, "busy")
	eventually(t, "traffic", func() bool { return served.Load() > 5 })
	// Names are stored every few seconds.
	eventually(t, "the name is known", func() bool { return len(w.names(box.Name)) > 0 })
	before, names := w.state(), w.names(box.Name)

	end(w)
	held.cut()
	closed := func() {
		t.Helper()
		for _, url := range []string{"http://shop.example/", "http://198.51.100.10/", "http://" + canary4 + "/"} {
			if out, ok := box.curl("-m", "1", url); ok {
				t.Errorf("without the daemon %s was reached: %s", url, out)
			}
		}
	}
	closed()
	o.asks()
	count := served.Load()
	// The loop in the container goes on meanwhile.
	closed()
	closed()
	if n := served.Load(); n != count {
		t.Errorf("without the daemon the server had %d more requests", n-count)
	}
	if asked := o.asks(); len(asked) > 0 {
		t.Errorf("without the daemon the resolver was asked for %v", asked)
	}

	w.start()
	if d := cmp.Diff(before, w.state()); d != "" {
		t.Errorf("after the restart (-before +after):\n%s", d)
	}
	after := w.names(box.Name)
	for _, n := range names {
		if !slices.Contains(after, n) {
			t.Errorf("the name %v is forgotten: %v", n, after)
		}
	}
	eventually(t, "traffic flows again by itself", func() bool { return served.Load() > count+5 })
	if !box.echoes("198.51.100.11", 7) {
		t.Error("a connection to an address does not work after the restart")
	}
	if box.pid() != pid {
		t.Error("the container was restarted")
	}
	if packets := seen(); len(packets) > 0 {
		t.Errorf("%d packets reached the canary, the first: %s", len(packets), packets[0])
	}
}

// Certainty is what a client knows of something that it asked for: without an
// answer it may be there or not.
type Certainty int

const (
	absent Certainty = iota
	present
	unknown
)

// ledger is what a client was told.
type ledger struct {
	sessions map[string]Certainty
	expires  map[string]time.Time // of present sessions; zero: either
	rules    map[string]Certainty // by destination
	ruleIDs  map[string]string
	attached Certainty
}

// next makes one change by the API; false when the daemon no longer answers.
func (l *ledger) next(t testing.TB, r *rand.Rand, client *http.Client, n int, always, sometimes string) bool {
	do := func(want int, method, path, body string) (string, bool) {
		status, answer, err := call(client, method, path, body)
		if err != nil {
			return "", false
		}
		if status/100 != want/100 {
			t.Errorf("%s %s: %d %s", method, path, status, answer)
		}
		return answer, true
	}
	expiry := func(id, answer string) {
		var s Session
		if err := json.Unmarshal([]byte(answer), &s); err != nil {
			t.Error(err)
		}
		l.expires[id] = s.ExpiresAt
	}
	known := func(m map[string]Certainty) string {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if m[k] == present && r.IntN(3) == 0 {
				return k
			}
		}
		return ""
	}
	switch r.IntN(7) {
	case 0, 1:
		id := fmt.Sprintf("k%d", n)
		l.sessions[id] = unknown
		answer, ok := do(201, "POST", "/v1/sessions", fmt.Sprintf(`{"id":%q,"container":%q,"ttl_seconds":3600,"network_rules":[{"destination":"s%d.example"}]}`, id, always, n))
		if !ok {
			return false
		}
		l.sessions[id] = present
		expiry(id, answer)
	case 2:
		if id := known(l.sessions); id != "" {
			l.sessions[id] = unknown
			if _, ok := do(204, "DELETE", "/v1/sessions/"+id, ""); !ok {
				return false
			}
			l.sessions[id] = absent
		}
	case 3:
		if id := known(l.sessions); id != "" {
			l.expires[id] = time.Time{}
			answer, ok := do(200, "POST", "/v1/sessions/"+id+"/heartbeat", fmt.Sprintf(`{"ttl_seconds":%d}`, 3600+n))
			if !ok {
				return false
			}
			expiry(id, answer)
		}
	case 4:
		dest := fmt.Sprintf("r%d.example", n)
		l.rules[dest] = unknown
		answer, ok := do(201, "POST", "/v1/rules", fmt.Sprintf(`{"destination":%q,"action":"deny"}`, dest))
		if !ok {
			return false
		}
		var rule Rule
		if err := json.Unmarshal([]byte(answer), &rule); err != nil {
			t.Error(err)
		}
		l.rules[dest], l.ruleIDs[dest] = present, rule.ID
	case 5:
		if dest := known(l.rules); dest != "" {
			l.rules[dest] = unknown
			if _, ok := do(204, "DELETE", "/v1/rules/"+l.ruleIDs[dest], ""); !ok {
				return false
			}
			l.rules[dest] = absent
		}
	case 6:
		was := l.attached
		l.attached = unknown
		if was != absent {
			if _, ok := do(204, "DELETE", "/v1/attachments/"+sometimes, ""); !ok {
				return false
			}
			l.attached = absent
			return true
		}
		if _, ok := do(201, "POST", "/v1/attachments", fmt.Sprintf(`{"container":%q}`, sometimes)); !ok {
			return false
		}
		l.attached = present
	}
	return true
}

// settle compares the ledger with what the daemon has, and learns what it did
// not know.
func (l *ledger) settle(t testing.TB, w *Weir, sometimes string) {
	t.Helper()
	have := map[string]Session{}
	for _, s := range w.sessions() {
		have[s.ID] = s
	}
	for id, c := range l.sessions {
		s, ok := have[id]
		if c == present && !ok || c == absent && ok {
			t.Errorf("session %s: acknowledged %v, there is %v", id, c, ok)
		}
		if want := l.expires[id]; c == present && ok && !want.IsZero() && !s.ExpiresAt.Equal(want) {
			t.Errorf("session %s expires at %v, acknowledged was %v", id, s.ExpiresAt, want)
		}
		l.sessions[id], l.expires[id] = is(ok), s.ExpiresAt
	}
	rules := map[string]string{}
	owners := map[string]bool{}
	for _, r := range w.rules() {
		switch r.Source {
		case "global":
			rules[r.Destination] = r.ID
		case "session":
			owners[r.SessionID] = true
			if _, ok := have[r.SessionID]; !ok {
				t.Errorf("rule %s outlived its session %s", r.ID, r.SessionID)
			}
		}
	}
	for id := range have {
		if strings.HasPrefix(id, "k") && !owners[id] {
			t.Errorf("session %s has lost its rule", id)
		}
	}
	for dest, c := range l.rules {
		id, ok := rules[dest]
		if c == present && !ok || c == absent && ok {
			t.Errorf("rule for %s: acknowledged %v, there is %v", dest, c, ok)
		}
		l.rules[dest], l.ruleIDs[dest] = is(ok), id
	}
	attached := w.attached(sometimes) != nil
	if l.attached == present && !attached || l.attached == absent && attached {
		t.Errorf("attachment: acknowledged %v, there is %v", l.attached, attached)
	}
	l.attached = is(attached)
}

func is(there bool) Certainty {
	if there {
		return present
	}
	return absent
}

func TestKilledAtAnyMomentNothingAcknowledgedIsLost(t *testing.T) {
	o := newOutside(t)
	hello(o, canary4+":80")
	hello(o, "198.51.100.10:80")
	seen := o.watch(canary4)
	w := startWeir(t, "")
	network := newNetwork(t)
	always, sometimes := newBox(t, "--network", network), newBox(t, "--network", network)
	w.run("attach", always.Name)
	run(t, "docker", "exec", "-d", always.Name, "sh", "-c",
		"while :; do curl -s -m 1 http://"+canary4+"/; echo x | nc -u -w0 "+canary4+" 5300; done")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := &ledger{sessions: map[string]Certainty{}, expires: map[string]time.Time{}, rules: map[string]Certainty{}, ruleIDs: map[string]string{}}
	changes := 0
	for round := range 20 {
		client := w.client()
		daemon := w.cmd.Process
		timer := time.AfterFunc(time.Duration(1+r.IntN(300))*time.Millisecond, func() { daemon.Kill() })
		for l.next(t, r, client, changes, always.Name, sometimes.Name) {
			changes++
		}
		changes++
		timer.Stop()
		w.kill()
		client.CloseIdleConnections()
		if out, ok := sometimes.curl("-m", "1", "http://198.51.100.10/"); l.attached == present && ok {
			t.Errorf("round %d: attached, and open without the daemon: %s", round, out)
		}
		w.start()
		l.settle(t, w, sometimes.Name)
		if out, ok := sometimes.curl("-m", "2", "http://198.51.100.10/"); ok != (l.attached == absent) {
			t.Errorf("round %d: attached is %v, reached is %v: %s", round, l.attached == present, ok, out)
		}
		if w.attached(always.Name) == nil {
			t.Fatalf("round %d: the attached container is not attached", round)
		}
		if packets := seen(); len(packets) > 0 {
			t.Errorf("round %d: %d packets reached the canary, the first: %s", round, len(packets), packets[0])
		}
	}
	t.Logf("%d changes in 20 rounds", changes)
	w.run("detach", always.Name)
	w.try("detach", sometimes.Name)
	for _, box := range []*Box{always, sometimes} {
		if out := box.nsenter("nft", "list", "tables"); strings.Contains(out, "weir") {
			t.Errorf("after the detach a table is left in %s: %s", box.Name, out)
		}
		if out := run(t, "nft", "list", "tables"); strings.Contains(out, box.ID) {
			t.Errorf("after the detach a table is left on the host: %s", out)
		}
	}
}
