package proxy

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/audit"
	"weir/rules"
)

// forms are the ways that a client can speak to the relay.
var forms = []struct {
	name string
	port uint16
	h2   bool
}{{"clear", 80, false}, {"h1", 443, false}, {"h2", 443, true}}

func protocolsOf(h2 bool) []string {
	if h2 {
		return []string{"h2", "http/1.1"}
	}
	return []string{"http/1.1"}
}

func TestRelayJudgesEveryRequest(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy)
			var server canary
			l.serve(&server, protocolsOf(form.h2)...)
			client := l.client(form.h2)
			if code, text, err := readRes(client.Get(l.url("/ok/./a/../b;x=1?q=a+b&r=%41"))); err != nil || code != 200 || text != `{"data":{}}` {
				t.Fatalf("allowed request: %d %q %v", code, text, err)
			}
			if got := server.text(); !strings.HasPrefix(got, "GET /ok/b?q=a%20b&r=A ") {
				t.Errorf("what was sent is not what was judged: %q", got)
			}
			e := l.event(audit.HTTP)
			want := audit.Event{ID: 1, Time: e.Time, Type: audit.HTTP, ContainerID: "c1", ContainerName: "web", SessionID: "s1", Verdict: "allow",
				Layer: "session", RuleID: "r0", Reason: e.Reason, Host: labHost, Address: "203.0.113.7", Port: form.port, Transport: "tcp",
				Method: "GET", Path: "/ok/b", BytesIn: e.BytesIn, BytesOut: e.BytesOut, DurationMS: e.DurationMS}
			if diff := cmp.Diff(want, e); diff != "" {
				t.Errorf("event: %s", diff)
			}
			if e.BytesIn < 11 {
				t.Errorf("bytes in %d", e.BytesIn)
			}
			for _, denied := range []struct{ method, path, judged string }{
				{"GET", "/other", "/other"}, {"DELETE", "/ok/a", "/ok/a"}, {"GET", "/ok/%73ecret/x", "/ok/secret/x"}, {"GET", "/ok/a/../../x", "/x"},
			} {
				req, _ := http.NewRequest(denied.method, l.url(denied.path), nil)
				res, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				var said map[string]any
				if err := json.NewDecoder(res.Body).Decode(&said); err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				e := l.event(audit.HTTP)
				wantSaid := map[string]any{"error": "policy_denied", "reason": e.Reason, "layer": "session", "rule": "r0", "container": "web",
					"host": labHost, "port": float64(form.port), "method": denied.method, "path": denied.judged, "operations": []any{}, "event": float64(e.ID)}
				if diff := cmp.Diff(wantSaid, said); diff != "" {
					t.Errorf("%s %s: %s", denied.method, denied.path, diff)
				}
				if res.StatusCode != 403 || res.Header.Get("X-Weir-Event") != fmt.Sprint(e.ID) || e.Verdict != "deny" || e.Path != denied.judged {
					t.Errorf("%s %s: %d, event header %q, event %+v", denied.method, denied.path, res.StatusCode, res.Header.Get("X-Weir-Event"), e)
				}
			}
			if server.hits != 1 {
				t.Errorf("the server saw %d requests", server.hits)
			}
			client.CloseIdleConnections()
			if e := l.event(audit.Connect); e.Verdict != "allow" {
				t.Errorf("connection: %+v", e)
			}
		})
	}
}

func TestRelayMalformedTarget(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	for _, path := range []string{"/ok/%zz", "/../x", "/ok/%00", "/ok/%2e%2e/%2e%2e/%2e%2e", "/ok/a%2fb", "/ok/a%5cb", "/ok/a?b=%z"} {
		res, text, closed := l.raw("GET " + path + " HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
		if res.StatusCode != 400 || !closed || !strings.Contains(text, `"malformed_request"`) {
			t.Errorf("%s: %d, closed %v, %s", path, res.StatusCode, closed, text)
		}
	}
	if server.hits != 0 {
		t.Errorf("the server saw %s", server.text())
	}
}

func TestRelayAuthority(t *testing.T) {
	l := newRelayLab(t, 8443, restPolicy)
	var server canary
	l.serve(&server, "h2", "http/1.1")
	cases := []struct {
		host string
		want int
	}{
		{"api.example.com:8443", 200}, {"API.Example.com.:8443", 200}, {"api.example.com", 200},
		{"other.example.com:8443", 421}, {"api.example.com:443", 421}, {"203.0.113.7:8443", 421}, {"xapi.example.com", 421},
	}
	for _, h2 := range []bool{false, true} {
		client := l.client(h2)
		for _, c := range cases {
			// One connection for all: keep-alive, or coalescing.
			req, _ := http.NewRequest("GET", l.url("/ok/"), nil)
			req.Host = c.host
			code, text, err := readRes(client.Do(req))
			if err != nil || code != c.want {
				t.Errorf("h2 %v, Host %q: %d %v %s", h2, c.host, code, err, text)
			}
			if e := l.event(audit.HTTP); (e.Verdict == "allow") != (c.want == 200) {
				t.Errorf("event: %+v", e)
			}
		}
	}
	for _, request := range []string{
		"GET https://other.example.com/ok/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
		"GET https://api.example.com:443/ok/ HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n",
	} {
		if res, _, _ := l.raw(request); res.StatusCode != 421 {
			t.Errorf("%q: %d", request, res.StatusCode)
		}
	}
	if res, _, _ := l.raw("GET https://api.example.com:8443/ok/ HTTP/1.1\r\nHost: api.example.com:8443\r\n\r\n"); res.StatusCode != 200 {
		t.Errorf("absolute form of its own: %d", res.StatusCode)
	}
	if res, _, closed := l.raw("CONNECT api.example.com:8443 HTTP/1.1\r\nHost: api.example.com:8443\r\n\r\n"); res.StatusCode != 403 || !closed {
		t.Errorf("CONNECT: %d, closed %v", res.StatusCode, closed)
	}
}

func TestRelayMethodOverride(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		l := newRelayLab(t, 443, restPolicy)
		var server canary
		l.serve(&server, protocolsOf(h2)...)
		client := l.client(h2)
		for _, c := range []struct {
			name, value string
			want        int
		}{
			{"X-HTTP-Method-Override", "DELETE", 403}, {"x-method-override", "delete", 403}, {"X-HTTP-Method", "PUT", 200},
			{"X_HTTP_Method_Override", "DELETE", 403}, {"X-HTTP-Method-Override", "POST", 200}, {"X-HTTP-Method-Override", "WEBSOCKET_TEXT", 400},
			{"X-HTTP-Method-Override", "DELETE, POST", 400},
		} {
			req, _ := http.NewRequest("POST", l.url("/ok/a"), strings.NewReader("x"))
			req.Header[c.name] = []string{c.value}
			code, text, err := readRes(client.Do(req))
			if err != nil || code != c.want {
				t.Errorf("h2 %v %s: %s: %d %v %s", h2, c.name, c.value, code, err, text)
			}
		}
		if server.hits != 2 {
			t.Errorf("the server saw %d requests", server.hits)
		}
	}
}

func TestRelayAuditMode(t *testing.T) {
	l := newRelayLab(t, 443, strings.Replace(restPolicy, "protocol: rest", "protocol: rest\n        enforcement: audit", 1))
	var server canary
	l.serve(&server)
	client := l.client(false)
	if code, text, err := readRes(client.Post(l.url("/no"), "text/plain", strings.NewReader("x"))); err != nil || code != 200 {
		t.Fatalf("%d %v %s", code, err, text)
	}
	if e := l.event(audit.HTTP); e.Verdict != "allow" || e.Would == nil || e.Would.Verdict != "deny" || e.Would.RuleID != "r0" {
		t.Errorf("event: %+v", e)
	}
	if code, _, err := readRes(client.Get(l.url("/%zz"))); err == nil && code != 400 {
		t.Errorf("malformed in audit mode: %d", code)
	}
}

func TestRelayPolicyChangesBetweenRequests(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy)
			var server canary
			l.serve(&server, protocolsOf(form.h2)...)
			client := l.client(form.h2)
			if code, _, err := readRes(client.Get(l.url("/ok/a"))); err != nil || code != 200 {
				t.Fatalf("before: %d %v", code, err)
			}
			l.setPolicy(strings.Replace(restPolicy, "/ok/**", "/new/**", 1))
			l.proxy.Rejudge()
			l.relay.Rejudge()
			if code, _, err := readRes(client.Get(l.url("/ok/a"))); err != nil || code != 403 {
				t.Errorf("after: %d %v", code, err)
			}
			if code, _, err := readRes(client.Get(l.url("/new/a"))); err != nil || code != 200 {
				t.Errorf("after, newly allowed: %d %v", code, err)
			}
			if n := len(l.proxy.Flows()); n != 1 {
				t.Errorf("%d connections, the first was to be kept", n)
			}
		})
	}
}

func TestRelayPolicyChangeCutsStreams(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy)
			gone := make(chan struct{})
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, "data: 1\n\n")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				close(gone)
			}), protocolsOf(form.h2)...)
			res, err := l.client(form.h2).Get(l.url("/ok/stream"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			br := bufio.NewReader(res.Body)
			if line, err := br.ReadString('\n'); err != nil || line != "data: 1\n" {
				t.Fatalf("%q %v", line, err)
			}
			l.relay.Rejudge() // nothing has changed
			l.setPolicy(strings.Replace(restPolicy, "/ok/**", "/new/**", 1))
			l.relay.Rejudge()
			if _, err := io.ReadAll(br); err == nil {
				t.Error("the stream ended as if it were whole")
			}
			<-gone
			if e := l.event(audit.HTTP); e.Verdict != "deny" || !strings.Contains(e.Reason, "not among") {
				t.Errorf("event: %+v", e)
			}
		})
	}
}

func TestRelayPolicyGoesPlain(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	client := l.client(false)
	readRes(client.Get(l.url("/ok/a")))
	l.setPolicy("version: 1\nrules: [{allow: api.example.com}]\n")
	l.proxy.Rejudge()
	l.relay.Rejudge()
	if code, _, err := readRes(client.Get(l.url("/anything?x=1"))); err != nil || code != 200 {
		t.Errorf("%d %v", code, err)
	}
	l.policy.Store(rules.Compile(rules.Stack{AllowAll: true, Session: "s2"}))
	if code, _, err := readRes(client.Get(l.url("/learning"))); err != nil || code != 200 {
		t.Errorf("%d %v", code, err)
	}
	var sessions []string
	for range 3 {
		sessions = append(sessions, l.event(audit.HTTP).SessionID)
	}
	if !slices.Equal(sessions, []string{"s1", "s1", "s2"}) {
		t.Errorf("sessions %v", sessions)
	}
	l.policy.Store(nil)
	if code, _, err := readRes(client.Get(l.url("/ok/a"))); err != nil || code != 403 {
		t.Errorf("without a policy: %d %v", code, err)
	}
}
