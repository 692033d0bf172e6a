package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write openapi.json anew")

func TestTheDescriptionIsTheCommittedOne(t *testing.T) {
	s := newService(t)
	text, err := s.server.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, '\n')
	if *update {
		if err := os.WriteFile("openapi.json", text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden), string(text)); diff != "" {
		t.Errorf("the API has changed; if it should: go test ./api -update\n%s", diff)
	}
	var served, committed struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]any
	}
	a := s.send("GET", "/openapi.json", "")
	if err := json.Unmarshal(a.body, &served); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	if err := json.Unmarshal(golden, &committed); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(committed, served); diff != "" {
		t.Errorf("what is served is not what is committed:\n%s", diff)
	}
	if !strings.HasPrefix(served.OpenAPI, "3.1") {
		t.Errorf("OpenAPI %q", served.OpenAPI)
	}
	for _, want := range []string{
		"GET /v1/health", "POST /v1/attachments", "GET /v1/attachments", "GET /v1/attachments/{container}", "DELETE /v1/attachments/{container}",
		"POST /v1/sessions", "GET /v1/sessions", "GET /v1/sessions/{id}", "DELETE /v1/sessions/{id}", "POST /v1/sessions/{id}/heartbeat",
		"GET /v1/rules", "POST /v1/rules", "PUT /v1/rules/{id}", "DELETE /v1/rules/{id}", "POST /v1/explain",
		"GET /v1/events", "GET /v1/events/stream", "GET /v1/dns/{container}", "GET /v1/policy/{container}",
		"GET /v1/learn/{container}", "POST /v1/replay/{container}", "PUT /v1/sessions/{id}/inspect",
		"GET /v1/questions", "POST /v1/questions/{id}",
		"GET /v1/policies", "PUT /v1/policies/{name}", "DELETE /v1/policies/{name}",
	} {
		method, path, _ := strings.Cut(want, " ")
		if served.Paths[path][strings.ToLower(method)] == nil {
			t.Errorf("not described: %s", want)
		}
	}
}

func TestListsAreNeverNull(t *testing.T) {
	s := newService(t)
	for path, want := range map[string]string{
		"/v1/attachments":             `[]`,
		"/v1/sessions":                `[]`,
		"/v1/policies":                `[]`,
		"/v1/questions":               `[]`,
		"/v1/rules?source=global":     `{"items":[],"total":0}`,
		"/v1/events?container=nobody": `{"items":[]}`,
	} {
		if a := s.send("GET", path, ""); a.status != 200 || string(bytes.TrimSpace(a.body)) != want {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

func TestHealth(t *testing.T) {
	s := newService(t)
	into[Health](s.send("GET", "/v1/health", ""), 200) // it has started
	s.clock.Advance(90 * time.Second)
	h := into[Health](s.send("GET", "/v1/health", ""), 200)
	if h.Status != "ok" || h.Version != "test" || h.Attachments != 0 || h.UptimeSeconds < 90 {
		t.Errorf("%+v", h)
	}
}

func TestSessions(t *testing.T) {
	s := newService(t)
	now := s.clock.Now()
	made := into[Session](s.send("POST", "/v1/sessions", `{"container":"web"}`), 201)
	if left := made.ExpiresAt.Sub(now); made.ID == "" || !made.Current || made.RulesCreated != 0 || left < 900*time.Second || left > 930*time.Second {
		t.Errorf("defaults: %+v", made)
	}
	into[Session](s.send("POST", "/v1/sessions", `{"container":"web","ttl_seconds":86400}`), 201)
	s.send("POST", "/v1/sessions", `{"container":"web","ttl_seconds":86401}`).problem(422, "86400")
	s.send("POST", "/v1/sessions", `{"container":"web","ttl_seconds":-1}`).problem(422, "ttl")
	s.send("POST", "/v1/sessions", `{"container":"web","ttl_seconds":9223372036854775807}`).problem(422, "86400")
	s.send("POST", "/v1/sessions", `{"container":""}`).problem(422, "container")
	s.send("POST", "/v1/sessions", `{}`).problem(422, "container")

	// Created, replaced, extended, ended.
	full := `{"id":"build","container":"web","ttl_seconds":60,"allow_all":true,"labels":{"job":"7"},
		"network_rules":[{"destination":"*.Example.com","ports":"443"},{"destination":"10.0.0.7/8","action":"deny","transport":"tcp","binaries":["/usr/bin/curl"],"notes":"n"}],
		"policy":{"version":1,"rules":[{"allow":"api.example.com"}]}}`
	made = into[Session](s.send("POST", "/v1/sessions", full), 201)
	if made.RulesCreated != 3 || !made.AllowAll || !made.Current || made.Labels["job"] != "7" || made.Container != "web" {
		t.Errorf("%+v", made)
	}
	list := into[RuleList](s.send("GET", "/v1/rules?source=session&container=web", ""), 200)
	var got []string
	for _, r := range list.Items {
		got = append(got, strings.Join([]string{r.SessionID, r.Container, r.Action, r.Destination, r.Ports, r.Transport, strings.Join(r.Binaries, " "), r.Notes}, "|"))
		if r.ExpiresAt == nil || !r.ExpiresAt.Equal(made.ExpiresAt) {
			t.Errorf("rule %s expires at %v, its session at %v", r.ID, r.ExpiresAt, made.ExpiresAt)
		}
	}
	want := []string{
		"build|web|allow|*.example.com|443|any||",
		"build|web|deny|10.0.0.0/8|*|tcp|/usr/bin/curl|n",
		"build|web|allow|api.example.com|*|any||",
	}
	if diff := cmp.Diff(want, got); diff != "" || list.Total != 3 {
		t.Errorf("total %d\n%s", list.Total, diff)
	}
	s.clock.Advance(2 * time.Second)
	again := into[Session](s.send("POST", "/v1/sessions", `{"id":"build","container":"web","policy":"version: 1\nrules: [{deny: x.example}]\n"}`), 201)
	if again.RulesCreated != 1 || again.AllowAll || !again.CreatedAt.Equal(made.CreatedAt) || again.Labels != nil {
		t.Errorf("replaced: %+v", again)
	}
	beat := into[Heartbeat](s.send("POST", "/v1/sessions/build/heartbeat", `{"ttl_seconds":120}`), 200)
	if left := beat.ExpiresAt.Sub(s.clock.Now()); beat.ID != "build" || left > 120*time.Second || left < 100*time.Second {
		t.Errorf("heartbeat: %+v", beat)
	}
	beat = into[Heartbeat](s.send("POST", "/v1/sessions/build/heartbeat", ""), 200)
	if left := beat.ExpiresAt.Sub(s.clock.Now()); left > 900*time.Second || left < 880*time.Second {
		t.Errorf("heartbeat without ttl: %s", left)
	}
	s.send("POST", "/v1/sessions/build/heartbeat", `{"ttl_seconds":90000}`).problem(422, "86400")
	s.send("POST", "/v1/sessions/none/heartbeat", `{}`).problem(404, `"none"`)
	if one := into[Session](s.send("GET", "/v1/sessions/build", ""), 200); one.ID != "build" {
		t.Errorf("%+v", one)
	}
	s.send("DELETE", "/v1/sessions/build", "").empty(204)
	s.send("DELETE", "/v1/sessions/build", "").problem(404, "build")
	s.send("GET", "/v1/sessions/build", "").problem(404, "build")

	short := into[Session](s.send("POST", "/v1/sessions", `{"id":"short","container":"web","ttl_seconds":1}`), 201)
	s.clock.Advance(short.ExpiresAt.Sub(s.clock.Now()))
	s.send("POST", "/v1/sessions/short/heartbeat", `{}`).problem(404, "short")
	s.send("GET", "/v1/sessions/short", "").problem(404, "short")
	for _, one := range into[[]Session](s.send("GET", "/v1/sessions", ""), 200) {
		if one.ID == "short" {
			t.Errorf("expired and still listed: %+v", one)
		}
	}
}

// What is refused is refused whole, as a problem document that names it.
func TestRefusals(t *testing.T) {
	s := newService(t)
	into[Session](s.send("POST", "/v1/sessions", `{"id":"taken","container":"web"}`), 201)
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/v1/sessions", `{"container":"web","alow_all":true}`, 422, "alow_all"},
		{"POST", "/v1/sessions", `{"container":"web","network_rules":[{"destination":"x.example","port":"443"}]}`, 422, "body.network_rules[0].port"},
		{"POST", "/v1/sessions", `{"container":"web","network_rules":[{"destination":"a*b.example"}]}`, 422, "a*b.example"},
		{"POST", "/v1/sessions", `{"container":"web","network_rules":[{"destination":"x.example","action":"permit"}]}`, 422, "action"},
		{"POST", "/v1/sessions", `{"container":"web","policy":"version: 1\nnetwork_polices: {}\n"}`, 422, "policy:2:1:"},
		{"POST", "/v1/sessions", `{"container":"web","policy":{"version":1,"rules":[{"allow":"x.example"}],"rules":[]}}`, 422, "policy:1:"},
		{"POST", "/v1/sessions", `{"container":"web","policy":7}`, 422, "policy"},
		{"POST", "/v1/sessions", `{"container":"web"`, 400, ""},
		{"POST", "/v1/sessions", `{"id":"taken","container":"db"}`, 409, "web"},
		{"POST", "/v1/sessions", `{"container":"pid:1"}`, 422, "host"},
		{"POST", "/v1/sessions", `{"container":"web","ask":true,"allow_all":true}`, 422, "ask and allow_all"},
		{"GET", "/v1/questions?container=web", "", 404, "not attached"},
		{"POST", "/v1/questions/q-1", `{"verdict":"allow","for":"once"}`, 404, "q-1"},
		{"POST", "/v1/questions/q-1", `{"verdict":"allow"}`, 422, "for"},
		{"POST", "/v1/questions/q-1", `{"for":"once"}`, 422, "verdict"},
		{"POST", "/v1/questions/q-1", `{"verdict":"perhaps","for":"once"}`, 422, "verdict"},
		{"POST", "/v1/questions/q-1", `{"verdict":"deny","for":"session","what":"everything"}`, 422, "what"},
		{"POST", "/v1/rules", `{"destination":"x.example"}`, 422, "action"},
		{"POST", "/v1/rules", `{"destination":"","action":"deny"}`, 422, "destination"},
		{"POST", "/v1/rules", `{"destination":"x.example","action":"deny","ports":"0"}`, 422, `"0"`},
		{"POST", "/v1/rules", `{"destination":"x.example","action":"deny","container":"[a"}`, 422, "[a"},
		{"POST", "/v1/rules", `{"destination":"x.example","action":"deny","expires_in_seconds":5,"expires_at":"2030-01-01T00:00:00Z"}`, 422, "one of them"},
		{"POST", "/v1/rules", `{"destination":"x.example","action":"deny","expires_in_seconds":-5}`, 422, "expires_in_seconds"},
		{"POST", "/v1/rules", `{"destination":"x.example","action":"deny","expires_at":"2001-01-01T00:00:00+02:00"}`, 422, "passed already"},
		{"PUT", "/v1/rules/r99", `{"destination":"x.example","action":"deny"}`, 404, "r99"},
		{"DELETE", "/v1/rules/r99", "", 404, "r99"},
		{"GET", "/v1/rules?source=local", "", 422, "source"},
		{"POST", "/v1/attachments", `{"container":"netns:no-such-namespace"}`, 404, "no-such-namespace"},
		{"POST", "/v1/attachments", `{"container":"pid:1"}`, 422, "host"},
		{"POST", "/v1/attachments", `{"container":"web"}`, 503, "runtime"},
		{"POST", "/v1/attachments", `{"container":""}`, 422, "container"},
		{"GET", "/v1/attachments/web", "", 404, "weir attach web"},
		{"DELETE", "/v1/attachments/web", "", 404, "not attached"},
		{"GET", "/v1/policy/web", "", 404, "not attached"},
		{"GET", "/v1/dns/web", "", 404, "not attached"},
		{"POST", "/v1/explain", `{"container":"web","destination":"x.example"}`, 404, "not attached"},
		{"GET", "/v1/events?cursor=abc", "", 422, "cursor"},
		{"GET", "/v1/events?limit=0", "", 422, "limit"},
		{"GET", "/v1/events?type=http2", "", 422, "type"},
		{"GET", "/v1/events?since=yesterday", "", 422, "since"},
		{"GET", "/v1/events/stream?cursor=abc", "", 422, "cursor"},
		{"PUT", "/v1/policies/a%2Fb", `{"policy":"version: 1"}`, 422, "a/b"},
		{"PUT", "/v1/policies/a", `{"policy":"version: 2"}`, 422, "a:1:"},
		{"PUT", "/v1/policies/a", `{}`, 422, "policy"},
		{"DELETE", "/v1/policies/a", "", 404, `"a"`},
		{"GET", "/v1/nothing", "", 404, "/openapi.json"},
		{"GET", "/", "", 404, "/openapi.json"},
		{"PATCH", "/v1/rules/r1", `{}`, 405, "PUT, DELETE"},
	} {
		s.send(c.method, c.path, c.body).problem(c.status, c.says)
	}
	if list := into[[]Session](s.send("GET", "/v1/sessions", ""), 200); len(list) != 1 {
		t.Errorf("refused and there all the same: %+v", list)
	}
	if list := into[RuleList](s.send("GET", "/v1/rules?source=global", ""), 200); list.Total != 0 {
		t.Errorf("refused and there all the same: %+v", list)
	}
	if a := s.send("POST", "/v1/sessions", `{"container":"web","labels":{"x":"`+strings.Repeat("x", maxBody)+`"}}`); a.status != 413 {
		t.Errorf("a body that is too long: %d %.200s", a.status, a.body)
	}

	for _, kind := range []string{"", "text/plain", "application/x-www-form-urlencoded"} {
		req, err := http.NewRequest("POST", "http://weir/v1/rules", strings.NewReader(`{"destination":"x.example","action":"deny"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", kind)
		s.do(s.client, req).problem(415, "application/json")
	}
}

func TestGlobalRules(t *testing.T) {
	s := newService(t)
	rule := into[Rule](s.send("POST", "/v1/rules", `{"destination":"*.COM.","action":"deny","ports":"443,80","expires_in_seconds":60,"notes":"why"}`), 201)
	if rule.ID == "" || rule.Source != "global" || rule.Container != "*" || rule.Destination != "*.com" || rule.Ports != "80,443" || rule.Transport != "any" || len(rule.Warnings) == 0 {
		t.Errorf("%+v", rule)
	}
	if left := rule.ExpiresAt.Sub(s.clock.Now()); left > 60*time.Second || left < 40*time.Second {
		t.Errorf("expires in %s", left)
	}
	at := time.Date(2100, 1, 1, 2, 0, 0, 0, time.FixedZone("", 7200))
	changed := into[Rule](s.send("PUT", "/v1/rules/"+rule.ID, `{"destination":"x.example","action":"allow","container":"ci-*","expires_at":"`+at.Format(time.RFC3339)+`"}`), 200)
	if changed.ID != rule.ID || changed.Ports != "*" || changed.Notes != "" || !changed.ExpiresAt.Equal(at) || !changed.CreatedAt.Equal(rule.CreatedAt) {
		t.Errorf("%+v", changed)
	}
	count := func(query string, want int) {
		t.Helper()
		if list := into[RuleList](s.send("GET", "/v1/rules?"+query, ""), 200); len(list.Items) != want || list.Total != want {
			t.Errorf("%s: %d rules, want %d: %+v", query, len(list.Items), want, list.Items)
		}
	}
	count("source=global", 1)
	count("source=builtin", 3)
	count("", 4)
	count("container=web", 3)
	count("container=ci-1", 4)
	count("destination=x.example", 1)
	s.clock.Advance(at.Sub(s.clock.Now()))
	count("source=global", 0)
	rule = into[Rule](s.send("POST", "/v1/rules", `{"destination":"y.example","action":"deny"}`), 201)
	s.send("DELETE", "/v1/rules/"+rule.ID, "").empty(204)
	s.send("DELETE", "/v1/rules/"+rule.ID, "").problem(404, rule.ID)
	count("source=global", 0)
}

func TestGlobalPolicies(t *testing.T) {
	s := newService(t)
	p := into[Policy](s.send("PUT", "/v1/policies/base", `{"policy":{"version":1,"rules":[{"deny":"x.example"},{"allow":"*.com"}]}}`), 201)
	if p.Name != "base" || p.Rules != 2 || p.UpdatedAt.IsZero() {
		t.Errorf("%+v", p)
	}
	list := into[RuleList](s.send("GET", "/v1/rules?source=global", ""), 200)
	if list.Total != 2 || list.Items[0].ID != "base/0" || list.Items[0].Destination != "x.example" {
		t.Errorf("%+v", list)
	}
	text := "version: 1\nrules:\n  - deny: y.example\n"
	body, err := json.Marshal(PolicyRequest{Policy: PolicyString(text)})
	if err != nil {
		t.Fatal(err)
	}
	into[Policy](s.send("PUT", "/v1/policies/base", string(body)), 200)
	if all := into[[]Policy](s.send("GET", "/v1/policies", ""), 200); len(all) != 1 || all[0].Text != text {
		t.Errorf("%+v", all)
	}
	s.send("DELETE", "/v1/policies/base", "").empty(204)
	if list := into[RuleList](s.send("GET", "/v1/rules?source=global", ""), 200); list.Total != 0 {
		t.Errorf("%+v", list)
	}
}

func TestAnAttachedContainer(t *testing.T) {
	s := newService(t)
	ref := s.netns()
	path := url.PathEscape(ref)
	a := into[Attachment](s.send("POST", "/v1/attachments", `{"container":"`+ref+`"}`), 201)
	if a.ContainerID == "" || a.Name != ref || a.NetNS == "" || a.Interfaces == nil || a.ClosedConnections == nil || a.State != "attached" || a.Mode != "enforce" || a.AttachedAt.IsZero() {
		t.Errorf("%+v", a)
	}
	t.Cleanup(func() { s.server.Conductor.Detach(t.Context(), ref) })
	again := into[Attachment](s.send("POST", "/v1/attachments", `{"container":"`+ref+`"}`), 200)
	if again.ContainerID != a.ContainerID {
		t.Errorf("attached again: %+v", again)
	}
	for _, name := range []string{path, url.PathEscape(a.ContainerID)} {
		if one := into[Attachment](s.send("GET", "/v1/attachments/"+name, ""), 200); one.ContainerID != a.ContainerID {
			t.Errorf("%s: %+v", name, one)
		}
	}
	if got := s.send("GET", "/v1/dns/"+path, ""); got.status != 200 || string(bytes.TrimSpace(got.body)) != "[]" {
		t.Errorf("dns: %d %s", got.status, got.body)
	}

	into[Session](s.send("POST", "/v1/sessions", `{"id":"s","container":"`+ref+`","network_rules":[{"destination":"ok.example","ports":"443"}],
		"policy":{"version":1,"network_policies":{"gql":{"endpoints":[{"host":"api.example.com","port":443,"protocol":"graphql","access":"read-only"}]}}}}`), 201)
	p := into[EffectivePolicy](s.send("GET", "/v1/policy/"+path, ""), 200)
	var ids []string
	for _, r := range p.Rules {
		ids = append(ids, r.Source+" "+r.Destination+" "+r.Endpoint)
	}
	want := []string{"session api.example.com gql", "session ok.example ", "builtin 127.0.0.1 ", "builtin ::1 ", "builtin localhost "}
	if diff := cmp.Diff(want, ids); diff != "" || p.SessionID != "s" || p.Mode != "enforce" || !strings.Contains(p.Documents["session"], "read-only") {
		t.Errorf("%+v\n%s", p, diff)
	}

	for _, c := range []struct{ ask, verdict, layer, says string }{
		{`"destination":"ok.example"`, "allow", "session", "ok.example"},
		{`"destination":"OK.example.","port":443,"transport":"udp"`, "deny", "default", "names udp"},
		{`"destination":"ok.example","port":80`, "deny", "default", ""},
		{`"destination":"203.0.113.7"`, "deny", "default", ""},
		{`"destination":"ok.example","address":"169.254.169.254"`, "deny", "guard", "169.254.169.254"},
		{`"destination":"api.example.com"`, "inspect", "session", ""},
		{`"destination":"api.example.com","method":"POST","target":"/graphql","body":"{\"query\":\"{viewer{login}}\"}"`, "allow", "session", ""},
		{`"destination":"api.example.com","method":"POST","target":"/graphql","headers":{"content-type":"text/plain"},"body":"{\"query\":\"{viewer{login}}\"}"`, "deny", "session", "text/plain"},
		{`"destination":"api.example.com","method":"POST","target":"/graphql","body":"{\"query\":\"mutation { deleteRepository }\"}"`, "deny", "session", "mutation"},
		{`"destination":"api.example.com","method":"POST","target":"/graphql","headers":{"HOST":"evil.example"},"body":"{\"query\":\"{viewer{login}}\"}"`, "deny", "default", "evil.example"},
		{`"destination":"api.example.com","method":"POST","target":"/graphql","headers":{"X-HTTP-Method-Override":"DELETE"},"body":"{\"query\":\"{viewer{login}}\"}"`, "deny", "session", "overrides the method POST"},
	} {
		d := into[Decision](s.send("POST", "/v1/explain", `{"container":"`+ref+`",`+c.ask+`}`), 200)
		if d.Verdict != c.verdict || d.Layer != c.layer || !strings.Contains(d.Reason, c.says) || len(d.Trace) == 0 {
			t.Errorf("%s: %s by %s: %s", c.ask, d.Verdict, d.Layer, d.Reason)
		}
		if strings.Contains(c.ask, "mutation") && (len(d.Operations) != 1 || d.Operations[0].Type != "mutation") {
			t.Errorf("operations: %+v", d.Operations)
		}
		if c.verdict == "deny" && c.layer == "default" && len(d.Hints) == 0 {
			t.Errorf("%s: no hints", c.ask)
		}
	}
	s.send("POST", "/v1/explain", `{"container":"`+ref+`","destination":"a b"}`).problem(422, "a b")
	s.send("POST", "/v1/explain", `{"container":"`+ref+`","destination":"x.example","port":70000}`).problem(422, "port")
	s.send("POST", "/v1/explain", `{"container":"`+ref+`","destination":"x.example","address":"x"}`).problem(422, "address")

	s.send("DELETE", "/v1/attachments/"+path, "").empty(204)
	s.send("DELETE", "/v1/attachments/"+path, "").problem(404, "not attached")
	var reasons []string
	page := s.events(t, "?type=lifecycle", 4)
	for _, e := range page.Items {
		reasons = append(reasons, fmt.Sprintf("%s %s %.11s", e.ContainerName, e.SessionID, e.Reason))
	}
	// A bare namespace is known by a number that another may get next: its
	// sessions do not outlive its attachment.
	want = []string{ref + "  attached; 0", ref + " s session cre", ref + " s session end", ref + "  detached"}
	if diff := cmp.Diff(want, reasons); diff != "" || !slices.IsSortedFunc(page.Items, func(a, b event) int { return int(a.ID - b.ID) }) {
		t.Error(diff)
	}
}
