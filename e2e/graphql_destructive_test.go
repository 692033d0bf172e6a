package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

// The names in the destructive mutation, and what must never be stored.
const (
	destructive = `mutation { volumeDelete(volumeId: "vol_123") }`
	token       = "tok_live_4d1f8a7c"
)

func sha(document string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(document))) }

// guardrails admits everything but what deletes.
func guardrails(host string) string {
	return fmt.Sprintf(`
version: 1
network_policies:
  platform:
    endpoints:
      - host: %s
        ports: [443, 444]
        path: /graphql
        protocol: graphql
        access: full
        persisted_queries: allow_registered
        graphql_persisted_queries:
          %s: {operation_type: query, fields: [me]}
          %s: {operation_type: mutation, fields: [volumeDelete]}
        deny_rules:
          - {operation_type: mutation, fields: [volumeDelete, "*Delete"]}
`, host, sha("{ me }"), sha(destructive))
}

// body is a JSON object with these members.
func body(t testing.TB, members map[string]any) string {
	t.Helper()
	text, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func persisted(hash string) map[string]any {
	return map[string]any{"persistedQuery": map[string]any{"version": 1, "sha256Hash": hash}}
}

// sockets answers WebSockets and keeps their messages in the recorder.
func sockets(r *Recorder) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") == "" {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"data":{"ok":true}}`)
			return
		}
		c, err := websocket.Accept(w, req, &websocket.AcceptOptions{Subprotocols: []string{"graphql-transport-ws", "graphql-ws"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			_, text, err := c.Read(req.Context())
			if err != nil {
				return
			}
			r.mu.Lock()
			r.requests = append(r.requests, Received{Method: "MESSAGE", Body: string(text)})
			r.mu.Unlock()
			if strings.Contains(string(text), "connection_init") {
				err = c.Write(req.Context(), websocket.MessageText, []byte(`{"type":"connection_ack"}`))
			} else {
				err = c.Write(req.Context(), websocket.MessageText, []byte(`{"id":"1","type":"next","payload":{"data":{"ok":true}}}`))
			}
			if err != nil {
				return
			}
		}
	})
}

// explained checks that weir explain says of a form what its client was told.
func explained(t testing.TB, w *Weir, box *Box, f form, reason string) {
	t.Helper()
	method, path := f.method, "/graphql"
	if method == "" {
		method = "POST"
	}
	if f.query != "" {
		path += "?" + f.query
	}
	args := []string{"explain", box.Name, "platform.example:443", "--method", method, "--path", path, "-o", "json"}
	if f.body != "" {
		args = append(args, "--header", "Content-Type: application/json", "--body", f.body)
	}
	out, _ := w.try(args...)
	var said struct {
		Verdict, Reason string
		Operations      []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		t.Errorf("%s: %v in %s", f.name, err, out)
	}
	if said.Verdict != "deny" || !strings.HasSuffix(reason, said.Reason) || f.named && len(said.Operations) == 0 {
		t.Errorf("%s: explained as %+v, its client was told %q", f.name, said, reason)
	}
}

// A form is one way to ask for the destructive mutation.
type form struct {
	name   string
	method string // POST when empty
	query  string // of the URL
	body   string
	args   []string
	status int    // 403 or 400
	reason string // part of it
	named  bool   // the operation is known: its type and field are told
}

func destructiveForms(t testing.TB) []form {
	t.Helper()
	const denied = "denied by deny_rules of network_policies.platform"
	del := map[string]any{"query": destructive}
	return []form{
		{name: "as a document", body: body(t, del), status: 403, reason: denied, named: true},
		{name: "under an alias", body: body(t, map[string]any{"query": `mutation { projects: volumeDelete(volumeId: "vol_123") }`}), status: 403, reason: denied, named: true},
		{name: "in a fragment", body: body(t, map[string]any{"query": `mutation M { ...a } fragment a on Mutation { ...b } fragment b on Mutation { volumeDelete(volumeId: "vol_123") }`}), status: 403, reason: denied, named: true},
		{name: "in an inline fragment", body: body(t, map[string]any{"query": `mutation { ... on Query { volumeDelete(volumeId: "vol_123") } }`}), status: 403, reason: denied, named: true},
		{name: "skipped by a directive", body: body(t, map[string]any{"query": `mutation M($no: Boolean!) { volumeDelete(volumeId: "vol_123") @skip(if: $no) projectCreate(name: "x") { id } }`, "variables": map[string]any{"no": true}}), status: 403, reason: denied, named: true},
		{name: "beside a harmless field", body: body(t, map[string]any{"query": `mutation { projectCreate(name: "x") { id } volumeDelete(volumeId: "vol_123") }`}), status: 403, reason: denied, named: true},
		{name: "behind comments and commas", body: body(t, map[string]any{"query": "#{ me }\n,,mutation#\n{,volumeDelete(volumeId:\"vol_123\")}"}), status: 403, reason: denied, named: true},
		{name: "in a batch behind a query", body: `[{"query":"{ me }"},` + body(t, del) + `]`, status: 403, reason: denied, named: true},
		{name: "chosen by operationName", body: body(t, map[string]any{"query": `query A { me } mutation B { volumeDelete(volumeId: "vol_123") }`, "operationName": "B"}), status: 403, reason: denied, named: true},
		{name: "without the operationName it needs", body: body(t, map[string]any{"query": `query A { me } mutation B { volumeDelete(volumeId: "vol_123") }`}), status: 400, reason: "malformed request"},
		{name: "by GET", method: "GET", query: "query=" + url.QueryEscape(destructive), status: 403, reason: denied, named: true},
		{name: "by GET with a body", method: "GET", query: "query=" + url.QueryEscape("{ me }"), body: body(t, del), status: 400, reason: "malformed request"},
		{name: "in chunks of one byte", body: body(t, del), args: []string{"-chunked"}, status: 403, reason: denied, named: true},
		{name: "with a duplicate key", body: `{"query":"{ me }","query":` + fmt.Sprintf("%q", destructive) + `}`, status: 400, reason: "malformed request"},
		{name: "with an escaped duplicate key", body: `{"query":"{ me }","quer\u0079":` + fmt.Sprintf("%q", destructive) + `}`, status: 400, reason: "malformed request"},
		{name: "with a key in another case", body: `{"query":"{ me }","Query":` + fmt.Sprintf("%q", destructive) + `}`, status: 400, reason: "malformed request"},
		{name: "in the URL of a POST", query: "query=" + url.QueryEscape(destructive), body: body(t, map[string]any{"query": "{ me }"}), status: 400, reason: "malformed request"},
		{name: "twice in the URL", method: "GET", query: "query=" + url.QueryEscape("{ me }") + "&query=" + url.QueryEscape(destructive), status: 400, reason: "malformed request"},
		{name: "as a registered hash", body: body(t, map[string]any{"extensions": persisted(sha(destructive))}), status: 403, reason: denied},
		{name: "as an unregistered hash", body: body(t, map[string]any{"extensions": persisted(sha(destructive + " "))}), status: 403, reason: "not registered"},
		{name: "under the hash of another document", body: body(t, map[string]any{"query": destructive, "extensions": persisted(sha("{ me }"))}), status: 400, reason: "malformed request"},
		{name: "as application/graphql", body: destructive, args: []string{"-H", "Content-Type: application/graphql"}, status: 403, reason: "content-type"},
		{name: "as a form", body: "query=" + url.QueryEscape(destructive), args: []string{"-H", "Content-Type: application/x-www-form-urlencoded"}, status: 403, reason: "content-type"},
		{name: "as a multipart upload", body: "--b\r\nContent-Disposition: form-data; name=\"operations\"\r\n\r\n" + body(t, del) + "\r\n--b--\r\n", args: []string{"-H", "Content-Type: multipart/form-data; boundary=b"}, status: 403, reason: "content-type"},
		{name: "under an encoding that is not one", body: body(t, del), args: []string{"-H", "Content-Encoding: gzip"}, status: 403, reason: "encoding"},
		{name: "with a byte order mark", body: "\ufeff" + body(t, del), status: 400, reason: "malformed request"},
		{name: "behind the JSON value", body: `{"query":"{ me }"}` + body(t, del), status: 400, reason: "malformed request"},
		{name: "by another method", method: "PUT", body: body(t, del), status: 403, reason: "GET and POST"},
		{name: "with a method override", method: "POST", body: body(t, del), args: []string{"-H", "X-HTTP-Method-Override: GET"}, status: 403, reason: "overrides the method POST"},
		{name: "padded beyond the limit", body: strings.Repeat(" ", 70_000) + body(t, del), status: 403, reason: "65536"},
	}
}

func TestDestructiveMutationNeverReachesTheServer(t *testing.T) {
	o := newOutside(t)
	o.addName("platform.example", "198.51.100.20")
	outside := newAuthority(t)
	config := serverConfig(outside, "platform.example")
	server := o.record("198.51.100.20:443", config, nil)
	server.handler = sockets(server)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(guardrails("platform.example"))
	box.addClient()

	ask := func(h2 bool, f form) Reply {
		args := []string{"request", "-H", "Authorization: Bearer " + token}
		if h2 {
			args = append(args, "-2")
		}
		if f.method != "" {
			args = append(args, "-X", f.method)
		}
		if !strings.Contains(strings.Join(f.args, " "), "Content-Type") && f.body != "" {
			args = append(args, "-H", "Content-Type: application/json")
		}
		target := "https://platform.example/graphql"
		if f.query != "" {
			target += "?" + f.query
		}
		return box.client(f.body, append(append(args, f.args...), target)...)
	}
	for _, h2 := range []bool{false, true} {
		proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]
		t.Run(proto, func(t *testing.T) {
			for _, f := range []form{
				{name: "query", body: `{"query":"{ me }"}`},
				{name: "query by GET", method: "GET", query: "query=" + url.QueryEscape("{ me }")},
				{name: "harmless mutation", body: `{"query":"mutation { projectCreate(name: \"x\") { id } }"}`},
				{name: "batch", body: `[{"query":"{ me }"},{"query":"{ projects { id } }"}]`},
				{name: "registered hash", body: body(t, map[string]any{"extensions": persisted(sha("{ me }"))})},
				{name: "document with its hash", body: body(t, map[string]any{"query": "{ me }", "extensions": persisted(sha("{ me }"))})},
				{name: "in chunks", body: `{"query":"{ me }"}`, args: []string{"-chunked"}},
			} {
				if r := ask(h2, f); r.Status != 200 || r.Body != `{"data":{"ok":true}}` || r.Proto != proto {
					t.Errorf("%s: %+v", f.name, r)
				}
			}
			requests, before := server.take()
			if len(requests) != 7 {
				t.Errorf("the server saw %d requests, want 7", len(requests))
			}
			for _, r := range requests {
				if r.Proto != proto || r.Host != "platform.example" || r.Header.Get("Authorization") != "Bearer "+token {
					t.Errorf("the server saw %+v", r)
				}
			}
			told := map[int64]Refusal{}
			forms := map[int64]form{}
			for _, f := range destructiveForms(t) {
				r := ask(h2, f)
				if r.Status != f.status || r.Proto != proto {
					t.Errorf("%s: %+v", f.name, r)
					continue
				}
				said := refusal(t, r.Body)
				if said.Code != "POLICY_DENIED" || fmt.Sprint(said.Event) != r.Event || !strings.Contains(strings.ToLower(said.Reason), strings.ToLower(f.reason)) ||
					said.Container != box.Name || said.Host != "platform.example" || said.Port != 443 {
					t.Errorf("%s: the client was told %+v", f.name, said)
				}
				told[said.Event], forms[said.Event] = said, f
				if !h2 && len(f.args) == 0 {
					explained(t, w, box, f, said.Reason)
				}
			}
			for _, e := range w.refusals(box.Name, "graphql", len(told), func(e Event) bool { _, ok := told[e.ID]; return ok }) {
				f, said := forms[e.ID], told[e.ID]
				if e.Verdict != "deny" || e.Reason != said.Reason || e.RuleID != said.Rule || e.Host != "platform.example" || e.Path != "/graphql" {
					t.Errorf("%s: event %+v", f.name, e)
				}
				if f.status == 403 && e.RuleID == "" {
					t.Errorf("%s: the event names no rule: %+v", f.name, e)
				}
				if f.named && (!e.operation("mutation", "volumeDelete") || cmp.Diff(e.Operations, said.Operations) != "") {
					t.Errorf("%s: the event's operations are %+v, the client's %+v", f.name, e.Operations, said.Operations)
				}
			}
			requests, raw := server.take()
			if len(requests) > 0 {
				t.Errorf("the server saw %+v", requests)
			}
			// Frames that are about an HTTP/2 connection itself are no part of a request.
			if got := strings.TrimPrefix(raw, before); !h2 && got != "" {
				t.Errorf("the server got %q", got)
			}
			for _, trace := range []string{"volumeDelete", "vol_123", sha(destructive)} {
				if strings.Contains(raw, trace) {
					t.Errorf("the server got %q", trace)
				}
			}
		})
	}

	t.Run("WebSocket", func(t *testing.T) {
		first := `{"type":"connection_init","payload":{"token":"` + token + `"}}` + "\n"
		subscribe := func(members map[string]any) string {
			return `{"id":"1","type":"subscribe","payload":` + body(t, members) + `}`
		}
		r := box.client(first+subscribe(map[string]any{"query": "subscription { ticks(to: 1) }"}), "ws", "wss://platform.example/graphql")
		if len(r.Messages) != 2 || r.Closed != -1 && r.Closed != 0 {
			t.Errorf("an allowed subscription: %+v", r)
		}
		requests, _ := server.take()
		if len(requests) != 3 || requests[1].Method != "MESSAGE" {
			t.Errorf("the server saw %+v", requests)
		}
		for name, message := range map[string]string{
			"mutation":          subscribe(map[string]any{"query": destructive}),
			"fragment":          subscribe(map[string]any{"query": `mutation { ...a } fragment a on Mutation { volumeDelete(volumeId: "vol_123") }`}),
			"unregistered hash": subscribe(map[string]any{"extensions": persisted(sha(destructive + " "))}),
			"duplicate key":     `{"id":"1","type":"subscribe","payload":{"query":"{ me }","query":` + fmt.Sprintf("%q", destructive) + `}}`,
			"binary":            "binary:" + subscribe(map[string]any{"query": destructive}),
			"not JSON":          destructive,
			"legacy start":      `{"id":"1","type":"start","payload":` + body(t, map[string]any{"query": destructive}) + `}`,
			"array":             `[` + subscribe(map[string]any{"query": destructive}) + `]`,
		} {
			r := box.client(first+message, "ws", "wss://platform.example/graphql")
			if r.Closed != 1008 || !strings.HasPrefix(r.Reason, "event ") {
				t.Errorf("%s: %+v", name, r)
				continue
			}
			var id int64
			fmt.Sscanf(r.Reason, "event %d:", &id)
			e := w.waitEvent(box.Name, name, func(e Event) bool { return e.ID == id })
			if e.Verdict != "deny" || !strings.HasPrefix(e.Method, "WEBSOCKET_") || e.RuleID == "" {
				t.Errorf("%s: event %+v", name, e)
			}
			if (name == "mutation" || name == "fragment") && !e.operation("mutation", "volumeDelete") {
				t.Errorf("%s: event %+v", name, e)
			}
		}
		r = box.client(`{"type":"connection_init"}`+"\n"+`{"id":"1","type":"start","payload":`+body(t, map[string]any{"query": destructive})+`}`,
			"ws", "-protocol", "graphql-ws", "wss://platform.example/graphql")
		if r.Closed != 1008 {
			t.Errorf("the legacy protocol: %+v", r)
		}
		requests, _ = server.take()
		for _, r := range requests {
			if strings.Contains(r.Body, "volumeDelete") || strings.Contains(r.Body, sha(destructive+" ")) {
				t.Errorf("the server saw %+v", r)
			}
		}
		// A server that does not upgrade answers the GET.
		for _, query := range []string{
			"query=" + url.QueryEscape(destructive), "a=b&%71uery=" + url.QueryEscape(destructive),
			"extensions=" + url.QueryEscape(body(t, persisted(sha(destructive)))), "documentId=doc-66",
		} {
			r := box.client("GET /graphql?"+query+" HTTP/1.1\r\nHost: platform.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", "raw", "platform.example:443")
			if requests, _ := server.take(); !strings.HasPrefix(r.Got, "HTTP/1.1 400 ") || len(requests) > 0 {
				t.Errorf("an upgrade that is also a request: %+v; the server saw %+v", r, requests)
			}
		}
	})
}
