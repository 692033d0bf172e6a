package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/audit"
	"weir/rules"
)

func TestInspectHosts(t *testing.T) {
	s := newService(t)
	s.send("POST", "/v1/sessions", `{"container":"web","inspect_hosts":["api.example.com"]}`).problem(422, "allow_all")
	s.send("POST", "/v1/sessions", `{"container":"web","allow_all":true,"inspect_hosts":["*.example.com"]}`).problem(422, "*.example.com")
	made := into[Session](s.send("POST", "/v1/sessions", `{"id":"learn","container":"web","allow_all":true,"inspect_hosts":["API.example.com","api.example.com"]}`), 201)
	if d := cmp.Diff([]string{"api.example.com"}, made.InspectHosts); d != "" {
		t.Errorf("created: %s", d)
	}
	changed := into[Session](s.send("PUT", "/v1/sessions/learn/inspect", `{"inspect_hosts":["a.example:8443"]}`), 200)
	read := into[Session](s.send("GET", "/v1/sessions/learn", ""), 200)
	if d := cmp.Diff([]string{"a.example:8443"}, read.InspectHosts); d != "" || changed.ID != "learn" || !changed.Current {
		t.Errorf("changed: %+v %s", changed, d)
	}
	s.send("PUT", "/v1/sessions/learn/inspect", `{"inspect_hosts":["a.example:0"]}`).problem(422, "a.example:0")
	s.send("PUT", "/v1/sessions/nobody/inspect", `{"inspect_hosts":["a.example"]}`).problem(404, "nobody")
	if read = into[Session](s.send("PUT", "/v1/sessions/learn/inspect", `{"inspect_hosts":[]}`), 200); len(read.InspectHosts) > 0 {
		t.Errorf("taken back: %+v", read)
	}
	into[Session](s.send("POST", "/v1/sessions", `{"id":"strict","container":"web"}`), 201)
	s.send("PUT", "/v1/sessions/strict/inspect", `{"inspect_hosts":["a.example"]}`).problem(409, "--allow-all")
}

func TestLearnAndReplay(t *testing.T) {
	s := newService(t)
	s.send("GET", "/v1/learn/web", "").problem(404, "weir attach web --allow-all")
	s.send("POST", "/v1/replay/web", `{"policy":{"version":1}}`).problem(404, "web")
	now := s.clock.Now().Truncate(time.Microsecond)
	seen := func(at time.Duration, e audit.Event) {
		e.Time, e.ContainerID, e.ContainerName, e.Address, e.Transport, e.Layer = now.Add(at), "web", "web", "198.51.100.7", "tcp", string(rules.AllowAll)
		s.log.Record(e)
	}
	seen(-time.Hour, audit.Event{Type: audit.Connect, Verdict: "allow", Host: "old.example.com", Port: 443})
	seen(-2*time.Second, audit.Event{Type: audit.Connect, Verdict: "allow", Host: "api.example.com", Port: 443, Binary: "/bin/a"})
	seen(-time.Second, audit.Event{Type: audit.Connect, Verdict: "deny", Host: "evil.example.com", Port: 443})
	policy := string(s.send("GET", "/v1/learn/web", "").body)
	if strings.Contains(policy, "evil") || !strings.Contains(policy, "old.example.com") || !strings.Contains(policy, "binaries: [/bin/a]") {
		t.Errorf("learned:\n%s", policy)
	}
	if _, _, err := rules.ParseDocument("learned", []byte(policy)); err != nil {
		t.Error(err)
	}
	since := now.Add(-time.Minute).UTC().Format(time.RFC3339Nano)
	if a := s.send("GET", "/v1/learn/web?since="+since, ""); strings.Contains(string(a.body), "old.example.com") || a.header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%s since %s:\n%s", a.header.Get("Content-Type"), since, a.body)
	}
	s.send("GET", "/v1/learn/web?since="+now.Add(time.Hour).UTC().Format(time.RFC3339), "").problem(404, "since")

	text, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	own := into[Replay](s.send("POST", "/v1/replay/web", fmt.Sprintf(`{"policy":%s}`, text)), 200)
	if own.Same != 3 || len(own.Denied)+len(own.Allowed)+len(own.Unknown) > 0 {
		t.Errorf("the policy on what it was learned from: %+v", own)
	}
	other := `{"policy":{"version":1,"rules":[{"allow":"evil.example.com"},{"allow":"api.example.com"}]}}`
	r := into[Replay](s.send("POST", "/v1/replay/web", other), 200)
	if len(r.Denied) != 1 || r.Denied[0].What != "tcp connection to old.example.com:443" || len(r.Allowed) != 1 || r.Same != 1 {
		t.Errorf("another policy: %+v", r)
	}
	// The global layer in force counts.
	s.send("POST", "/v1/rules", `{"destination":"evil.example.com","action":"deny"}`)
	if r := into[Replay](s.send("POST", "/v1/replay/web", other), 200); len(r.Allowed) != 0 || r.Same != 2 {
		t.Errorf("below a global deny: %+v", r)
	}
	s.send("POST", "/v1/replay/web", `{"policy":{"version":2}}`).problem(422, "version")
	s.send("POST", "/v1/replay/web", `{}`).problem(422, "policy")
}
