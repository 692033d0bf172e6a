package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Yoga is a GraphQL server outside, from the npm registry.
type Yoga struct {
	t     testing.TB
	mu    sync.Mutex
	lines []string
}

// startYoga serves GraphQL on address, HTTPS on port 443 and WebSockets on 444.
func (o *Outside) startYoga(address string, cert tls.Certificate) *Yoga {
	o.t.Helper()
	certFile, keyFile := pair(o.t, cert)
	cmd := exec.Command("ip", "netns", "exec", o.name, "node", "server.mjs", address, "443", certFile, keyFile)
	cmd.Dir = npm(o.t)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	y := &Yoga{t: o.t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			y.mu.Lock()
			y.lines = append(y.lines, lines.Text())
			y.mu.Unlock()
		}
	}()
	o.t.Cleanup(func() { cmd.Process.Kill(); <-done; cmd.Wait() })
	eventually(o.t, "graphql-yoga listens", func() bool { return strings.Contains(y.text(), `"ready"`) })
	return y
}

// text is what the server got and did so far, a line of JSON each.
func (y *Yoga) text() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return strings.Join(y.lines, "\n")
}

const pythonClient = `
import json, os, sys, requests
r = requests.post(sys.argv[1], json={"query": sys.argv[2], "variables": json.loads(sys.argv[3])},
                  headers={"Authorization": "Bearer " + os.environ["TOKEN"]}, timeout=10)
print(json.dumps({"status": r.status_code, "event": r.headers.get("X-Weir-Event"), **r.json()}))
`

// A client posts a document with variables and prints the answer.
type graphQLClient struct {
	name string
	args func(document, variables string) []string
}

func graphQLClients(url string) []graphQLClient {
	curl := func(version string) func(d, v string) []string {
		return func(d, v string) []string {
			body, _ := json.Marshal(map[string]any{"query": d, "variables": json.RawMessage(v)})
			return []string{"curl", "-sS", "--max-time", "10", version, "-H", "Authorization: Bearer " + token,
				"-H", "Content-Type: application/json", "-d", string(body), url}
		}
	}
	node := func(kind string) func(d, v string) []string {
		return func(d, v string) []string { return []string{"node", "/app/client.mjs", kind, url, d, v} }
	}
	return []graphQLClient{
		{"curl h1", curl("--http1.1")},
		{"curl h2", curl("--http2")},
		{"Node fetch", node("fetch")},
		{"Apollo Client", node("apollo")},
		{"urql", node("urql")},
		{"Python requests", func(d, v string) []string { return []string{"python3", "-c", pythonClient, url, d, v} }},
	}
}

// Real clients talk to a real server: what is allowed works, what is denied
// shows as a GraphQL error, and what is stored holds no secret.
func TestGraphQLClientsThroughInterception(t *testing.T) {
	o := newOutside(t)
	o.addName("platform.example", "198.51.100.21")
	outside := newAuthority(t)
	yoga := o.startYoga("198.51.100.21", outside.certificate("platform.example"))
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(guardrails("platform.example"), "-v", npm(t)+":/app:ro")
	box.env = append(box.env, "TOKEN="+token)
	box.addClient()
	const url = "https://platform.example/graphql"
	const variable = "variable-9b41c2"
	clients := graphQLClients(url)

	for _, c := range clients {
		out, ok := box.exec(c.args(`query One($id: ID!) { project(id: $id) { name } me }`, `{"id":"`+variable+`"}`)...)
		if !ok || !strings.Contains(out, `"name":"project `+variable) && !strings.Contains(out, `"name": "project `+variable) {
			t.Errorf("%s, a query: %s", c.name, out)
		}
		out, _ = box.exec(c.args(`mutation Drop($v: String!) { volumeDelete(volumeId: $v) }`, `{"v":"`+variable+`"}`)...)
		if !strings.Contains(out, "denied by policy") || !strings.Contains(out, "POLICY_DENIED") && !strings.Contains(out, "UPSTREAM") {
			t.Errorf("%s, a denied mutation shows as: %s", c.name, out)
		}
	}
	r := box.client(`{"query":"{ projects { name } }"}`, "request", "-2", "-H", "Content-Type: application/json", "-H", "Authorization: Bearer "+token, url)
	if r.Status != 200 || r.Proto != "HTTP/2.0" || !strings.Contains(r.Body, "two") {
		t.Errorf("Go over h2: %+v", r)
	}
	r = box.client(`{"query":"mutation Drop { projectDelete(id: 1) }"}`, "request", "-2", "-H", "Content-Type: application/json", url)
	if r.Status != 403 || refusal(t, r.Body).Code != "POLICY_DENIED" {
		t.Errorf("Go over h2, denied: %+v", r)
	}
	out, ok := box.exec("node", "/app/client.mjs", "ws", "wss://platform.example:444/graphql", "subscription Count { ticks(to: 3) }")
	if !ok || !strings.Contains(out, `{"ticks":3}`) {
		t.Errorf("subscription: %s", out)
	}
	out, _ = box.exec("node", "/app/client.mjs", "ws", "wss://platform.example:444/graphql", destructive)
	if !strings.Contains(out, `"closed":1008`) || !strings.Contains(out, "event ") {
		t.Errorf("denied mutation over WebSocket: %s", out)
	}

	got := yoga.text()
	if n := strings.Count(got, `"method":"POST"`); n != len(clients)+1 {
		t.Errorf("the server got %d requests, want %d:\n%s", n, len(clients)+1, got)
	}
	for _, never := range []string{"volumeDelete", "projectDelete", "vol_123", "Drop"} {
		if strings.Contains(got, never) {
			t.Errorf("the server got %q:\n%s", never, got)
		}
	}
	if !strings.Contains(got, `"http":"2.0"`) || !strings.Contains(got, `"http":"1.1"`) {
		t.Errorf("h1 and h2 were not both spoken:\n%s", got)
	}

	// One event for each request, with its operations.
	allowed := w.refusals(box.Name, "graphql", len(clients), func(e Event) bool {
		return e.Verdict == "allow" && e.operation("query", "project") && e.Operations[0].Name == "One" && slices.Contains(e.Operations[0].Fields, "me")
	})
	denied := w.refusals(box.Name, "graphql", len(clients), func(e Event) bool {
		return e.Verdict == "deny" && e.operation("mutation", "volumeDelete") && e.Operations[0].Name == "Drop"
	})
	for _, e := range append(allowed, denied...) {
		if e.Host != "platform.example" || e.Path != "/graphql" || e.Method != "POST" || e.RuleID == "" || e.Reason == "" || e.SessionID != box.Name {
			t.Errorf("event %+v", e)
		}
	}
	w.refusals(box.Name, "graphql", 1, func(e Event) bool { return e.Verdict == "allow" && e.operation("subscription", "ticks") })
	w.refusals(box.Name, "graphql", 1, func(e Event) bool {
		return e.Verdict == "deny" && e.Method == "WEBSOCKET_TEXT" && e.operation("mutation", "volumeDelete")
	})
	w.holdsNone(box.Name, token, variable, "vol_123", "project(id")
}

// The same clients and a server in Go.
func TestGraphQLClientsOfAGoServer(t *testing.T) {
	o := newOutside(t)
	o.addName("go.example", "198.51.100.23")
	outside := newAuthority(t)
	server := newGraphQLServer()
	requests := o.record("198.51.100.23:443", serverConfig(outside, "go.example"), server)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(guardrails("go.example"), "-v", npm(t)+":/app:ro")
	box.env = append(box.env, "TOKEN="+token)
	box.addClient()
	const url = "https://go.example/graphql"
	clients := append(graphQLClients(url), graphQLClient{"Go h2", func(d, v string) []string {
		text, _ := json.Marshal(map[string]any{"query": d, "variables": json.RawMessage(v)})
		return []string{"sh", "-c", `printf %s "$0" | ` + clientFile + ` request -2 -H "Content-Type: application/json" ` + url, string(text)}
	}})
	for _, c := range clients {
		out, ok := box.exec(c.args(`query One($id: ID!) { project(id: $id) { name } me }`, `{"id":"p-17"}`)...)
		if !ok || !strings.Contains(out, "project p-17") || !strings.Contains(out, "tester") {
			t.Errorf("%s, a query: %s", c.name, out)
		}
		if got, _ := requests.take(); len(got) != 1 {
			t.Errorf("%s, a query: the server saw %+v", c.name, got)
		}
		out, _ = box.exec(c.args(`mutation Drop($v: String!) { volumeDelete(volumeId: $v) }`, `{"v":"vol_123"}`)...)
		if !strings.Contains(out, "denied by policy") {
			t.Errorf("%s, a denied mutation shows as: %s", c.name, out)
		}
		if got, _ := requests.take(); len(got) > 0 {
			t.Errorf("%s, a denied mutation: the server saw %+v", c.name, got)
		}
	}
	if ran := server.executed(); len(ran) != 2*len(clients) || slices.Contains(ran, "volumeDelete") {
		t.Errorf("the server executed %v", ran)
	}
	if _, raw := requests.take(); strings.Contains(raw, "volumeDelete") || strings.Contains(raw, "vol_123") {
		t.Error("the server got a part of what was denied")
	}
}

// holdsNone fails the test when one of the secrets is in what Weir shows,
// stores or logs about a container.
func (w *Weir) holdsNone(container string, secrets ...string) {
	w.t.Helper()
	texts := map[string]string{
		"events":     w.run("events", "--container", container),
		"events -o":  w.run("events", "--container", container, "-o", "json"),
		"events ocs": w.run("events", "--container", container, "-o", "ocsf"),
	}
	for _, pattern := range []string{filepath.Join(w.dir, "data", "*"), w.log.Name()} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			w.t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil {
				texts[file] = string(text)
			}
		}
	}
	stored := false
	for where, text := range texts {
		stored = stored || strings.HasSuffix(where, "weir.db") || strings.HasSuffix(where, "weir.db-wal")
		for _, s := range secrets {
			if i := strings.Index(text, s); i >= 0 {
				w.t.Errorf("%s holds %q: %q", where, s, text[max(0, i-80):min(len(text), i+80)])
			}
		}
	}
	if !stored {
		w.t.Error(fmt.Sprint("no database among ", len(texts), " texts"))
	}
}
