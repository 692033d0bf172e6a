package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"weir/audit"
	"weir/graphql"
)

const graphQLPolicy = `
version: 1
network_policies:
  gql:
    endpoints:
      - host: api.example.com
        port: 443
        path: /graphql
        protocol: graphql
        rules:
          - allow: {operation_type: query, fields: [viewer, "repo*"]}
          - allow: {operation_type: mutation, fields: [addStar]}
          - allow: {operation_type: subscription, fields: [events]}
        deny_rules:
          - {operation_type: mutation, fields: ["delete*"]}
        persisted_queries: allow_registered
        graphql_persisted_queries:
          "0000000000000000000000000000000000000000000000000000000000000001": {operation_type: query, operation_name: Viewer, fields: [viewer]}
        graphql_max_body_bytes: 4096
`

// destructive is what must never leave: a mutation in every form.
func destructive() map[string]string {
	doc := "mutation { deleteRepository(id: 1) { id } }"
	sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
	q := func(doc string) string { b, _ := json.Marshal(map[string]any{"query": doc}); return string(b) }
	persisted := func(doc, hash string) string {
		m := map[string]any{"extensions": map[string]any{"persistedQuery": map[string]any{"version": 1, "sha256Hash": hash}}}
		if doc != "" {
			m["query"] = doc
		}
		b, _ := json.Marshal(m)
		return string(b)
	}
	return map[string]string{
		"document":             q(doc),
		"alias":                q("mutation { addStar: deleteRepository(id: 1) { id } }"),
		"beside another":       q("mutation { addStar { id } deleteRepository { id } }"),
		"fragment":             q("mutation { ...F } fragment F on Mutation { deleteRepository { id } }"),
		"inline fragment":      q("mutation { addStar { id } ... on Nothing @skip(if: true) { deleteRepository { id } } }"),
		"batch":                "[" + q("{ viewer { id } }") + "," + q(doc) + "]",
		"operationName":        `{"query":"query A { viewer { id } } mutation B { deleteRepository { id } }","operationName":"B"}`,
		"no operationName":     q("query A { viewer { id } } mutation B { deleteRepository { id } }"),
		"duplicate key":        `{"query":"{ viewer { id } }","query":"` + doc + `"}`,
		"escaped duplicate":    `{"query":"{ viewer { id } }","qu\u0065ry":"` + doc + `"}`,
		"case variant":         `{"query":"{ viewer { id } }","Query":"` + doc + `"}`,
		"unregistered hash":    persisted("", sum(doc)),
		"hash of another":      persisted(doc, "0000000000000000000000000000000000000000000000000000000000000001"),
		"harmless, wrong hash": persisted("{ viewer { id } }", sum(doc)),
		"byte order mark":      "\ufeff" + q(doc),
		"trailing":             q("{ viewer { id } }") + q(doc),
		"too long":             q("{ viewer { id } }" + strings.Repeat(" ", 5000) + "#deleteRepository"),
		"not json":             doc,
		"empty":                "",
	}
}

func TestRelayGraphQLDestructive(t *testing.T) {
	for _, mode := range []string{"enforce", "audit"} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprint(mode, " h2 ", h2), func(t *testing.T) {
				l := newRelayLab(t, 443, graphQLPolicy)
				if mode == "audit" {
					l.setPolicy(strings.Replace(graphQLPolicy, "protocol: graphql", "protocol: graphql\n        enforcement: audit", 1))
				}
				var server canary
				l.serve(&server, protocolsOf(h2)...)
				client := l.client(h2)
				send := func(name, method, target, contentType, body string, length bool) {
					t.Helper()
					var r io.Reader = strings.NewReader(body)
					if !length {
						r = io.MultiReader(r) // chunked, or of unknown length
					}
					req, _ := http.NewRequest(method, l.url(target), r)
					req.Header.Set("Content-Type", contentType)
					before := server.hits
					code, text, err := readRes(client.Do(req))
					if err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
					e := l.event(audit.GraphQL)
					if mode == "audit" && e.Would != nil && code == 200 {
						return // readable, let through and noted
					}
					if code != 403 && code != 400 || server.hits != before || e.Verdict != "deny" {
						t.Errorf("%s: %d, the server saw %d more, event %+v", name, code, server.hits-before, e)
					}
					if (code == 400) != strings.HasPrefix(e.Reason, "malformed request: ") {
						t.Errorf("%s: %d for %s", name, code, e.Reason)
					}
					var said struct {
						Errors []struct {
							Message    string
							Extensions map[string]any
						}
					}
					if json.Unmarshal([]byte(text), &said) != nil || len(said.Errors) != 1 || said.Errors[0].Extensions["code"] != "POLICY_DENIED" ||
						said.Errors[0].Extensions["event"] != float64(e.ID) || said.Errors[0].Message == "" {
						t.Errorf("%s: answer %s", name, text)
					}
					if strings.Contains(e.Reason, "id: 1") || strings.Contains(e.Path, "?") {
						t.Errorf("%s: the event holds the document: %+v", name, e)
					}
				}
				for name, body := range destructive() {
					send(name, "POST", "/graphql", "application/json", body, true)
					send(name+", chunked", "POST", "/graphql", "application/json", body, false)
				}
				doc := "mutation { deleteRepository(id: 1) { id } }"
				harmless := `{"query":"{ viewer { id } }"}`
				send("GET", "GET", "/graphql?query="+url.QueryEscape(doc), "", "", true)
				send("GET, twice", "GET", "/graphql?query=%7Bviewer%7Bid%7D%7D&query="+url.QueryEscape(doc), "", "", true)
				send("GET, array", "GET", "/graphql?query[]="+url.QueryEscape(doc), "", "", true)
				send("GET with a body", "GET", "/graphql?query=%7Bviewer%7Bid%7D%7D", "application/json", harmless, true)
				send("URL of a POST", "POST", "/graphql?query="+url.QueryEscape(doc), "application/json", harmless, true)
				send("content type", "POST", "/graphql", "application/graphql", doc, true)
				send("charset", "POST", "/graphql", "application/json; charset=utf-16", harmless, true)
				send("multipart", "POST", "/graphql", "multipart/form-data; boundary=x", harmless, true)
				send("method", "PUT", "/graphql", "application/json", harmless, true)
				if text := server.text(); mode == "enforce" && text != "" || strings.Contains(text, "query\":\"{ viewer { id } }\",\"") {
					t.Errorf("the server saw %s", text)
				}
			})
		}
	}
}

func TestRelayGraphQLAllowed(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		l := newRelayLab(t, 443, graphQLPolicy)
		var server canary
		l.serve(&server, protocolsOf(h2)...)
		client := l.client(h2)
		body := `{ "unknown": 1, "variables": {"secret": 1.50}, "query": "query V($secret: Float) { v: viewer { id } }" }`
		req, _ := http.NewRequest("POST", l.url("/graphql"), io.MultiReader(strings.NewReader(body)))
		req.Header.Set("Content-Type", "application/json; charset=UTF-8")
		req.Header.Set("X-Kept", "k")
		if code, text, err := readRes(client.Do(req)); err != nil || code != 200 {
			t.Fatalf("h2 %v: %d %v %s", h2, code, err, text)
		}
		sent := server.text()
		for _, want := range []string{`"secret":1.50`, `"query":"query V($secret: Float) { v: viewer { id } }"`, "X-Kept:[k]", "Content-Type:[application/json]"} {
			if !strings.Contains(sent, want) {
				t.Errorf("h2 %v: %q is not in %s", h2, want, sent)
			}
		}
		if strings.Contains(sent, "unknown") {
			t.Errorf("what was not judged was sent: %s", sent)
		}
		e := l.event(audit.GraphQL)
		if diff := cmp.Diff([]graphql.Operation{{Type: "query", Name: "V", Fields: []string{"viewer"}}}, e.Operations); diff != "" {
			t.Error(diff)
		}
		if code, _, err := readRes(client.Get(l.url("/graphql?query=%7Bviewer%7Bid%7D%7D&x=1"))); err != nil || code != 200 {
			t.Errorf("GET: %d %v", code, err)
		}
		registered := `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"0000000000000000000000000000000000000000000000000000000000000001"}}}`
		if code, text, err := readRes(client.Post(l.url("/graphql"), "application/json", strings.NewReader(registered))); err != nil || code != 200 {
			t.Errorf("registered: %d %v %s", code, err, text)
		}
		l.event(audit.GraphQL)
		l.event(audit.GraphQL)
		// The budget for held bodies is given back.
		if n := l.relay.buffered.now.Load(); n != 0 {
			t.Errorf("%d bytes are still counted as held", n)
		}
	}
}

func TestRelayGraphQLExpectContinue(t *testing.T) {
	l := newRelayLab(t, 443, graphQLPolicy)
	var server canary
	l.serve(&server)
	client := l.client(false)
	client.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
	req, _ := http.NewRequest("POST", l.url("/graphql"), strings.NewReader(`{"query":"{ viewer { id } }"}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Expect", "100-continue")
	if code, text, err := readRes(client.Do(req)); err != nil || code != 200 {
		t.Errorf("%d %v %s", code, err, text)
	}
}

func TestRelayGraphQLBudget(t *testing.T) {
	l := newRelayLab(t, 443, graphQLPolicy, func(l *relayLab) { l.relay.Limits.Buffered = 100 })
	var server canary
	l.serve(&server)
	body := `{"query":"{ viewer { id } }"}`
	if code, text, err := readRes(l.client(false).Post(l.url("/graphql"), "application/json", strings.NewReader(body))); err != nil || code != 503 {
		t.Errorf("%d %v %s", code, err, text)
	}
	if server.hits != 0 {
		t.Error("the server saw it")
	}
}

// webSocketServer echoes messages and keeps them.
func webSocketServer(got *bytes.Buffer, ended chan<- struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			Subprotocols: []string{graphql.TransportWS}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, text, err := c.Read(r.Context())
			if err != nil {
				return
			}
			got.Write(text)
			if c.Write(r.Context(), kind, text) != nil {
				return
			}
		}
	})
}

func (l *relayLab) webSocket(path string, protocols ...string) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return websocket.Dial(ctx, l.url(path), &websocket.DialOptions{HTTPClient: l.client(false), Subprotocols: protocols,
		CompressionMode: websocket.CompressionContextTakeover})
}

func TestRelayGraphQLWebSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	bad := map[string]string{
		"not json":         "mutation",
		"batch":            `[{"type":"ping"}]`,
		"unknown type":     `{"type":"next","id":"1"}`,
		"wrong subscribed": `{"type":"subscribe","id":"1","payload":"x"}`,
		"duplicate":        `{"type":"ping","type":"subscribe","id":"1","payload":{"query":"mutation { deleteRepository { id } }"}}`,
		"long":             `{"type":"ping","payload":{"x":"` + strings.Repeat("x", 5000) + `"}}`,
	}
	for name, envelope := range destructive() {
		if strings.HasPrefix(envelope, "{") {
			bad[name] = `{"type":"subscribe","id":"1","payload":` + envelope + `}`
		}
	}
	for name, message := range bad {
		t.Run(name, func(t *testing.T) {
			l := newRelayLab(t, 443, graphQLPolicy)
			var got bytes.Buffer
			ended := make(chan struct{})
			l.serve(webSocketServer(&got, ended))
			c, _, err := l.webSocket("/graphql", graphql.TransportWS)
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			harmless := `{"type":"subscribe","id":"1","payload":{"query":"subscription { events { id } }"}}`
			for _, m := range []string{`{"type":"connection_init"}`, harmless} {
				if err := c.Write(ctx, websocket.MessageText, []byte(m)); err != nil {
					t.Fatal(err)
				}
				if _, text, err := c.Read(ctx); err != nil || string(text) != m {
					t.Fatalf("%q %v", text, err)
				}
			}
			before := got.String()
			if e := l.event(audit.GraphQL); e.Verdict != "allow" || e.Method != "WEBSOCKET_TEXT" || len(e.Operations) != 1 || e.Operations[0].Type != "subscription" {
				t.Errorf("event: %+v", e)
			}
			if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
				t.Fatal(err)
			}
			_, _, err = c.Read(ctx)
			if closed, ok := errors.AsType[websocket.CloseError](err); !ok || closed.Code != websocket.StatusPolicyViolation || !strings.Contains(closed.Reason, "event ") {
				t.Errorf("%v", err)
			}
			<-ended
			if got.String() != before {
				t.Errorf("the server saw %s", got.String()[len(before):])
			}
			if e := l.event(audit.GraphQL); e.Verdict != "deny" || e.Method != "WEBSOCKET_TEXT" {
				t.Errorf("event: %+v", e)
			}
			if e := l.event(audit.GraphQL); e.Method != "GET" || e.Verdict != "allow" || !strings.Contains(e.Reason, "denied") {
				t.Errorf("event of the WebSocket: %+v", e)
			}
		})
	}
}

func TestRelayGraphQLWebSocketBinary(t *testing.T) {
	for _, protocol := range []string{graphql.TransportWS, "other"} {
		l := newRelayLab(t, 443, graphQLPolicy)
		var got bytes.Buffer
		ended := make(chan struct{})
		l.serve(webSocketServer(&got, ended))
		c, _, err := l.webSocket("/graphql", protocol)
		if err != nil {
			t.Fatal(err)
		}
		kind := websocket.MessageBinary
		if protocol == "other" {
			kind = websocket.MessageText // no GraphQL subprotocol was agreed on
		}
		ctx := context.Background()
		c.Write(ctx, kind, []byte(`{"type":"ping"}`))
		if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
			t.Errorf("%s: %v", protocol, err)
		}
		<-ended
		if got.Len() > 0 {
			t.Errorf("%s: the server saw %s", protocol, got.String())
		}
	}
}

const webSocketPolicy = `
version: 1
network_policies:
  ws:
    endpoints:
      - {host: api.example.com, port: 443, protocol: websocket, access: ACCESS}
`

func TestRelayWebSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l := newRelayLab(t, 443, strings.Replace(webSocketPolicy, "ACCESS", "full", 1))
	var got bytes.Buffer
	ended := make(chan struct{})
	l.serve(webSocketServer(&got, ended))
	c, res, err := l.webSocket("/chat")
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if res.Header.Get("Sec-WebSocket-Extensions") != "" {
		t.Error("compression was agreed on")
	}
	big := bytes.Repeat([]byte("x"), 1<<20)
	c.SetReadLimit(-1)
	w, err := c.Writer(ctx, websocket.MessageBinary)
	if err != nil {
		t.Fatal(err)
	}
	for part := range 4 { // in fragments
		w.Write(big[part<<18 : (part+1)<<18])
	}
	w.Close()
	if kind, text, err := c.Read(ctx); err != nil || kind != websocket.MessageBinary || !bytes.Equal(text, big) {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	// Messages are not allowed any more, the connection still is.
	l.setPolicy(strings.Replace(webSocketPolicy, "ACCESS", "read-only", 1))
	l.relay.Rejudge()
	c.Write(ctx, websocket.MessageText, []byte("more"))
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("%v", err)
	}
	<-ended
	if strings.Contains(got.String(), "more") {
		t.Error("the server saw a denied message")
	}
}

func TestRelayWebSocketClosesInOrder(t *testing.T) {
	l := newRelayLab(t, 443, strings.Replace(webSocketPolicy, "ACCESS", "full", 1))
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err == nil {
			c.Close(4321, "bye")
		}
	}))
	c, _, err := l.webSocket("/chat")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Read(context.Background())
	if closed, ok := errors.AsType[websocket.CloseError](err); !ok || closed.Code != 4321 || closed.Reason != "bye" {
		t.Errorf("%v", err)
	}
	if e := l.event(audit.HTTP); e.Verdict != "allow" {
		t.Errorf("event: %+v", e)
	}
}

func TestRelayWebSocketRefusedByServer(t *testing.T) {
	l := newRelayLab(t, 443, strings.Replace(webSocketPolicy, "ACCESS", "full", 1))
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "log in first", http.StatusUnauthorized) }))
	_, res, err := l.webSocket("/chat")
	if err == nil || res == nil || res.StatusCode != 401 {
		t.Fatalf("%v %+v", err, res)
	}
	if text, _ := io.ReadAll(res.Body); string(text) != "log in first\n" {
		t.Errorf("%q", text)
	}
}

func TestRelayWebSocketCutByPolicy(t *testing.T) {
	l := newRelayLab(t, 443, strings.Replace(webSocketPolicy, "ACCESS", "full", 1))
	var got bytes.Buffer
	ended := make(chan struct{})
	l.serve(webSocketServer(&got, ended))
	c, _, err := l.webSocket("/chat")
	if err != nil {
		t.Fatal(err)
	}
	l.setPolicy(restPolicy)
	l.relay.Rejudge()
	if _, _, err := c.Read(context.Background()); err == nil {
		t.Error("still open")
	}
	<-ended
	if e := l.event(audit.HTTP); e.Verdict != "deny" {
		t.Errorf("event: %+v", e)
	}
}
