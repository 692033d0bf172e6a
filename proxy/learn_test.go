package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

// learn puts the lab into learning mode, looking into its host.
func (l *relayLab) learn() {
	l.t.Helper()
	inspect, err := rules.InspectLayer([]string{labHost})
	if err != nil {
		l.t.Fatal(err)
	}
	l.policy.Store(rules.Compile(rules.Stack{Layers: []*rules.Layer{rules.BuiltinLayer()}, AllowAll: true, Inspect: inspect, Session: "s1"}))
}

func TestLearningSeesRequestsAndChangesNothing(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		l := newRelayLab(t, 443, "version: 1\n")
		l.learn()
		l.who.Store(&rules.Program{Path: "/usr/bin/job"})
		type sent struct{ Method, Target, Type, Body string }
		got := make(chan sent, 1)
		l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got <- sent{r.Method, r.RequestURI, r.Header.Get("Content-Type"), string(body)}
		}), map[bool]string{true: "h2", false: "http/1.1"}[h2])
		client := l.client(h2)
		long := `{"query":"{ a }","x":"` + strings.Repeat("y", rules.LearnMaxBody) + `"}`
		for _, c := range []struct {
			name   string
			sent   sent
			kind   audit.Type
			ops    []graphql.Operation
			reason string
		}{
			{"a plain request", sent{"GET", "/a?b=c", "", ""}, audit.HTTP, nil, ""},
			{"a query", sent{"POST", "/graphql", "application/json; charset=utf-8", `{"query" : "query Q { b: a }"}`}, audit.GraphQL,
				[]graphql.Operation{{Type: "query", Name: "Q", Fields: []string{"a"}}}, ""},
			{"a query in the URL", sent{"GET", "/api?query=%7Ba%7D", "", ""}, audit.GraphQL, []graphql.Operation{{Type: "query", Fields: []string{"a"}}}, ""},
			{"malformed GraphQL", sent{"POST", "/graphql", "application/json", `{"query":"{ a"}`}, audit.HTTP, nil, "not readable as GraphQL"},
			{"no JSON", sent{"POST", "/graphql", "application/json", `{`}, audit.HTTP, nil, "not readable as GraphQL"},
			{"JSON with an id", sent{"POST", "/items", "application/json", `{"id":"7"}`}, audit.HTTP, nil, ""},
			{"a search", sent{"POST", "/search", "application/json", `{"query":"shoes"}`}, audit.HTTP, nil, ""},
			{"another type", sent{"POST", "/graphql", "application/graphql", `{ a }`}, audit.HTTP, nil, ""},
			{"a body too long to look at", sent{"POST", "/graphql", "application/json", long}, audit.HTTP, nil, "too long"},
		} {
			req, err := http.NewRequest(c.sent.Method, l.url(c.sent.Target), strings.NewReader(c.sent.Body))
			if err != nil {
				t.Fatal(err)
			}
			if c.sent.Type != "" {
				req.Header.Set("Content-Type", c.sent.Type)
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			res.Body.Close()
			if d := cmp.Diff(c.sent, <-got); res.StatusCode != 200 || d != "" {
				t.Errorf("%s, h2 %v: %d, changed on its way:\n%.500s", c.name, h2, res.StatusCode, d)
			}
			e := l.event(audit.HTTP, audit.GraphQL)
			if d := cmp.Diff(c.ops, e.Operations); e.Type != c.kind || d != "" || e.Verdict != "allow" || e.Layer != "allow_all" ||
				!strings.Contains(e.Reason, c.reason) || e.Would == nil || e.Host != labHost || e.Binary != "/usr/bin/job" {
				t.Errorf("%s, h2 %v: %+v\n%s", c.name, h2, e, d)
			}
		}
	}
}

func TestLearningSeesWebSockets(t *testing.T) {
	for _, sub := range []string{"", "graphql-transport-ws"} {
		l := newRelayLab(t, 443, "version: 1\n")
		l.learn()
		got := make(chan string, 10)
		l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{sub}})
			if err != nil {
				return
			}
			for {
				_, text, err := c.Read(r.Context())
				if err != nil {
					return
				}
				got <- string(text)
			}
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(ctx, "wss"+strings.TrimPrefix(l.url("/live"), "https"), &websocket.DialOptions{HTTPClient: l.client(false), Subprotocols: []string{sub}})
		if err != nil {
			t.Fatal(err)
		}
		messages := []string{`{"type":"connection_init"}`, `{"id":"1", "type":"subscribe","payload":{"query":"subscription S { events }"}}`, `no JSON`}
		for _, m := range messages {
			if err := c.Write(ctx, websocket.MessageText, []byte(m)); err != nil {
				t.Fatal(err)
			}
			if text := <-got; text != m {
				t.Errorf("%q: %q was changed to %q", sub, m, text)
			}
		}
		e := l.event(audit.HTTP, audit.GraphQL)
		if live := l.relay.Live(); len(live) != 1 || live[0].Upgrade != "websocket" || live[0].Path != "/live" {
			t.Errorf("%q: open WebSockets: %+v", sub, live)
		}
		if sub == "" {
			if e.Method != rules.MethodWebSocketText {
				t.Errorf("the first message: %+v", e)
			}
		} else {
			broken := l.event(audit.HTTP, audit.GraphQL)
			if len(e.Operations) != 1 || e.Operations[0].Name != "S" || !strings.Contains(broken.Reason, "not readable") || broken.Verdict != "allow" {
				t.Errorf("operations: %+v, %+v", e, broken)
			}
		}
		c.Close(websocket.StatusNormalClosure, "")
		if e := l.event(audit.HTTP, audit.GraphQL); e.Upgrade != "websocket" || e.Verdict != "allow" {
			t.Errorf("%q: %+v", sub, e)
		}
	}
}

// Who says nothing for long and then speaks TLS is let through unseen.
func TestLearningWaitsForNobody(t *testing.T) {
	l := newRelayLab(t, 443, "version: 1\n")
	l.learn()
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "seen") }))
	conn := l.dialPlain()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if fs := l.proxy.Flows(); len(fs) == 1 && fs[0].Live {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a silent client was not connected")
		}
		<-time.After(time.Millisecond)
	}
	if live := l.proxy.Live(); len(live) != 1 || live[0].Verdict != "allow" || live[0].Port != 443 {
		t.Errorf("open connections: %+v", live)
	}
	text, err := l.getOver(conn)
	if err != nil || text != "seen" {
		t.Errorf("%q, %v", text, err)
	}
}

// dialPlain opens a connection inside the container and says nothing.
func (l *relayLab) dialPlain() net.Conn {
	l.t.Helper()
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// getOver asks the server itself over a connection, end to end.
func (l *relayLab) getOver(c net.Conn) (string, error) {
	roots := x509.NewCertPool()
	roots.AddCert(l.server.Certificate())
	t := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: labHost})
	if _, err := io.WriteString(t, "GET / HTTP/1.1\r\nHost: "+labHost+"\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(t), nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

// A rule for the name would not let pass who leaves the name out where TLS has
// a place for it, so the event must not have a policy learn the name.
func TestLearningTellsOnlyNamesThatARuleWouldTake(t *testing.T) {
	for sni, want := range map[string]string{labHost: labHost, "": "", "other.example.com": ""} {
		l := newRelayLab(t, 443, "version: 1\n")
		l.policy.Store(rules.Compile(rules.Stack{Layers: []*rules.Layer{rules.BuiltinLayer()}, AllowAll: true}))
		l.serve(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		c := tls.Client(l.dialPlain(), &tls.Config{InsecureSkipVerify: true, ServerName: sni})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if e := l.event(audit.Connect); e.Host != want || e.Verdict != "allow" {
			t.Errorf("server name %q: %+v", sni, e)
		}
	}
}
