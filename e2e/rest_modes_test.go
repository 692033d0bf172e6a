package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// Learning and audit let requests pass and say what enforcement would have
// done; what is malformed stays refused where TLS is opened.
func TestLearningAndAuditRecordWhatEnforcementWouldSay(t *testing.T) {
	o := newOutside(t)
	o.addName("modes.example", "198.51.100.55")
	outside := newAuthority(t)
	server := o.record("198.51.100.55:443", serverConfig(outside, "modes.example"), nil)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	policy := func(enforcement string) string {
		return `
version: 1
network_policies:
  modes:
    endpoints:
      - {host: modes.example, port: 443, path: "/**", protocol: rest, access: read-only, enforcement: ` + enforcement + `}
      - {host: modes.example, port: 443, path: /graphql, protocol: graphql, access: read-only, enforcement: ` + enforcement + "}\n"
	}
	box := w.trustedBox(policy("audit"))
	box.addClient()
	send := func(method, path, body string) Reply {
		return box.client(body, "request", "-2", "-X", method, "-H", "Content-Type: application/json", "https://modes.example"+path)
	}
	reached := func(what string, want int) {
		t.Helper()
		if seen, _ := server.take(); len(seen) != want {
			t.Errorf("%s: the server saw %d requests, want %d: %+v", what, len(seen), want, seen)
		}
	}
	mutation := body(t, map[string]any{"query": destructive})
	if r := send("DELETE", "/thing", ""); r.Status != 200 {
		t.Errorf("audit, REST: %+v", r)
	}
	if r := send("POST", "/graphql", mutation); r.Status != 200 {
		t.Errorf("audit, GraphQL: %+v", r)
	}
	reached("audit", 2)
	e := w.waitEvent(box.Name, "an audited mutation", func(e Event) bool { return e.operation("mutation", "volumeDelete") })
	if e.Verdict != "allow" || e.Would == nil || e.Would.Verdict != "deny" {
		t.Errorf("event %+v", e)
	}
	w.waitEvent(box.Name, "an audited DELETE", func(e Event) bool {
		return e.Type == "http" && e.Method == "DELETE" && e.Verdict == "allow" && e.Would != nil && e.Would.Verdict == "deny"
	})
	if r := send("POST", "/graphql", `{"query":"{ me }","query":"mutation { volumeDelete }"}`); r.Status != 400 {
		t.Errorf("audit, malformed: %+v", r)
	}
	reached("audit, malformed", 0)

	// The same policy, enforced, for the connections that follow.
	w.setPolicy(box, policy("enforce"))
	if r := send("DELETE", "/thing", ""); r.Status != 403 {
		t.Errorf("enforced: %+v", r)
	}
	reached("enforced", 0)

	// Learning opens no TLS: the client has to know the server's own authority.
	w.run("session", "create", box.Name, "--id", box.Name, "--allow-all", "--policy", writeFile(t, "p.yaml", policy("enforce")))
	outside.install(box)
	if out, ok := box.curl("--cacert", "/outside.pem", "-X", "DELETE", "https://modes.example/thing"); !ok || !strings.Contains(out, `"ok":true`) {
		t.Errorf("learning: %s", out)
	}
	reached("learning", 1)
	w.waitEvent(box.Name, "a learned connection", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "allow" && e.Layer == "allow_all" && e.Would != nil
	})
}

// Which name a certificate is made for, and who gets none.
func TestInterceptionIsForTheJudgedNameOnly(t *testing.T) {
	o := newOutside(t)
	for name, address := range map[string]string{
		"a.wide.example": "198.51.100.56", "b.wide.example": "198.51.100.56", "deep.a.wide.example": "198.51.100.56",
		"wide.example": "198.51.100.56", "closed.example": "198.51.100.56",
	} {
		o.addName(name, address)
	}
	outside := newAuthority(t)
	cert := outside.certificate("a.wide.example", "b.wide.example", "deep.a.wide.example", "wide.example", "closed.example", "198.51.100.56", "198.51.100.57")
	server := o.record("198.51.100.56:443", tlsOf(cert), nil)
	bare := o.record("198.51.100.57:443", tlsOf(cert), nil)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(`
version: 1
network_policies:
  wide:
    endpoints:
      - {host: "*.wide.example", port: 443, protocol: rest, access: read-only}
      - {host: 198.51.100.57, port: 443, protocol: rest, access: read-only}
`)
	box.addClient()
	issuer := func(args string) string {
		out, _ := box.sh("openssl s_client " + args + " </dev/null 2>/dev/null | openssl x509 -noout -issuer -ext subjectAltName 2>&1")
		return out
	}
	for _, c := range []struct{ name, args, san string }{
		{"a name under the wildcard", "-connect a.wide.example:443 -servername a.wide.example", "DNS:a.wide.example\n"},
		{"another one", "-connect b.wide.example:443 -servername b.wide.example", "DNS:b.wide.example\n"},
		{"in capitals", "-connect a.wide.example:443 -servername A.Wide.EXAMPLE", "DNS:a.wide.example\n"},
		{"an address", "-connect 198.51.100.57:443 -noservername", "IP Address:198.51.100.57\n"},
	} {
		if out := issuer(c.args); !strings.Contains(out, "Weir interception CA") || !strings.Contains(out, c.san) {
			t.Errorf("%s: %s", c.name, out)
		}
	}
	for name, args := range map[string]string{
		"the apex":                   "-connect wide.example:443 -servername wide.example",
		"two labels":                 "-connect deep.a.wide.example:443 -servername deep.a.wide.example",
		"a name that is not allowed": "-connect closed.example:443 -servername closed.example",
		"a lie":                      "-connect a.wide.example:443 -servername closed.example",
		"no name":                    "-connect a.wide.example:443 -noservername",
		"an address of a name":       "-connect 198.51.100.56:443 -noservername",
		"a name for another address": "-connect 198.51.100.66:443 -servername a.wide.example",
	} {
		if out := issuer(args); strings.Contains(out, "issuer=") {
			t.Errorf("%s got a certificate: %s", name, out)
		}
	}
	if seen, raw := server.take(); len(seen) > 0 || raw != "" {
		t.Errorf("the server saw %+v", seen)
	}
	for _, url := range []string{"https://a.wide.example/", "https://b.wide.example/", "https://A.WIDE.example./", "https://198.51.100.57/"} {
		if out, ok := box.curl(url); !ok || !strings.Contains(out, `"ok":true`) {
			t.Errorf("%s: %s", url, out)
		}
	}
	if seen, _ := server.take(); len(seen) != 3 {
		t.Errorf("the server saw %+v", seen)
	}
	if seen, _ := bare.take(); len(seen) != 1 || seen[0].Host != "198.51.100.57" {
		t.Errorf("the server at an address saw %+v", seen)
	}
}

// Row 35: an upgrade needs a rule, so does each message, and bytes are counted.
func TestWebSocketMessagesNeedARule(t *testing.T) {
	o := newOutside(t)
	o.addName("live.example", "198.51.100.58")
	outside := newAuthority(t)
	var server *Recorder
	server = o.record("198.51.100.58:443", serverConfig(outside, "live.example"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"chat"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, text, err := c.Read(r.Context())
			if err != nil {
				return
			}
			server.mu.Lock()
			server.requests = append(server.requests, Received{Method: kind.String(), Target: r.RequestURI, Body: string(text)})
			server.mu.Unlock()
			if c.Write(r.Context(), kind, text) != nil {
				return
			}
		}
	}))
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(`
version: 1
network_policies:
  live:
    endpoints:
      - host: live.example
        port: 443
        protocol: websocket
        rules:
          - allow: {method: GET, path: "/v1/**"}
          - allow: {method: WEBSOCKET_TEXT, path: "/v1/talk/**"}
        deny_rules:
          - {method: GET, path: "/v1/admin/**"}
`)
	box.addClient()
	dial := func(path, lines string) Reply {
		return box.client(lines, "ws", "-protocol", "chat", "wss://live.example"+path)
	}
	if r := dial("/v1/talk/1", "one\ntwo"); fmt.Sprint(r.Messages) != "[one two]" {
		t.Errorf("allowed messages: %+v", r)
	}
	if seen, _ := server.take(); len(seen) != 3 {
		t.Errorf("the server saw %+v", seen)
	}
	e := w.waitEvent(box.Name, "a WebSocket", func(e Event) bool { return e.Type == "http" && e.Verdict == "allow" && e.Path == "/v1/talk/1" })
	if e.Method != "GET" || e.BytesIn < 6 || !strings.Contains(e.Reason, "2 messages") {
		t.Errorf("event %+v", e)
	}
	for name, c := range map[string]struct{ path, lines string }{
		"a text message without a rule":   {"/v1/listen/1", "one"},
		"a binary message without a rule": {"/v1/talk/1", "binary:one"},
	} {
		if r := dial(c.path, c.lines); r.Closed != 1008 || len(r.Messages) > 0 {
			t.Errorf("%s: %+v", name, r)
		}
		if seen, _ := server.take(); len(seen) > 1 {
			t.Errorf("%s: the server saw %+v", name, seen)
		}
	}
	for _, path := range []string{"/v1/admin/1", "/v2", "/v1/talk/../admin/1"} {
		if r := dial(path, "one"); r.Status != 403 {
			t.Errorf("%s: %+v", path, r)
		}
	}
	if r := box.client("", "request", "-X", "GET", "https://live.example/v1/talk/1"); r.Status != 403 {
		t.Errorf("a plain request: %+v", r)
	}
	if seen, _ := server.take(); len(seen) > 0 {
		t.Errorf("the server saw %+v", seen)
	}
}

// What "weir explain" says is what happens.
func TestExplainAgreesWithTheRelay(t *testing.T) {
	w, box, secure, _ := restWorld(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/v1/items/1", 200}, {"GET", "/v1/items/secret/1", 403}, {"DELETE", "/v1/items/1", 403},
		{"POST", "/v1/items?dry_run=true", 200}, {"POST", "/v1/items", 403}, {"GET", "/v1/items/a%2fb", 400},
	} {
		got := box.client("", "request", "-X", c.method, "-target", c.path, "https://rest.example/")
		secure.take()
		out, _ := w.try("explain", box.Name, "rest.example:443", "--method", c.method, "--path", c.path, "-o", "json")
		var said struct{ Verdict, Reason string }
		if err := json.Unmarshal([]byte(out), &said); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if got.Status != c.status || (said.Verdict == "allow") != (c.status == 200) {
			t.Errorf("%s %s: %d, explained as %+v", c.method, c.path, got.Status, said)
		}
		if c.status != 200 && refusal(t, got.Body).Reason != said.Reason {
			t.Errorf("%s %s: explained as %q, the client was told %q", c.method, c.path, said.Reason, refusal(t, got.Body).Reason)
		}
	}
}
