package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"weir/audit"
)

const secretsPolicy = `
version: 1
network_policies:
  api:
    endpoints:
      - {host: api.example.com, ports: [80, 443], protocol: rest, rules: [{allow: {method: GET, path: "/ok/**", query: {kind: book}}}, {allow: {method: POST, path: "/ok/**"}}]}
      - {host: api.example.com, ports: [80, 443], path: /graphql, protocol: graphql, access: read-only}
      - {host: api.example.com, ports: [80, 443], path: /ws, protocol: websocket, access: read-only}
`

// Whatever a request is refused for, neither the event nor the answer nor the
// log repeats a header field, a query string, a variable or a value in a
// document. Each request here carries the secret everywhere it can.
func TestRefusalsRepeatNoSecrets(t *testing.T) {
	const secret = "s3cr3t77d1e0"
	fields := "Authorization: Bearer " + secret + "\r\nCookie: sid=" + secret + "\r\nX-Api-Key: " + secret + "\r\n"
	get := func(target, more string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: api.example.com\r\n" + fields + more + "\r\n"
	}
	post := func(target, kind, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: api.example.com\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", target, fields, kind, len(body), body)
	}
	gql := func(document string) string {
		body, err := json.Marshal(map[string]any{"query": document, "variables": map[string]string{"v": secret}})
		if err != nil {
			t.Fatal(err)
		}
		return post("/graphql?token="+secret, "application/json", string(body))
	}
	const q = "?token=" + secret
	upgrade := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: bearer." + secret + "\r\n"
	requests := []string{
		// REST.
		get("/no"+q, ""), get("/ok/a"+q, ""), get("/ok/a?kind="+secret, ""), get("/ok/a?x=%zz"+secret, ""),
		get("/ok/a#"+secret, ""), get("/ok/%zz"+q, ""), get("/ok/%2F"+q, ""), get("/ok/"+q+" "+secret, ""),
		post("/no"+q, "text/plain", secret), post("/ok/"+q, "text/plain", secret),
		"GET http://" + secret + "@api.example.com/ok/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
		"GET http://api.example.com/ok/?" + secret + " HTTP/1.1\r\nHost: " + secret + "@x\r\n\r\n",
		"GET gopher:" + secret + " HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
		"CONNECT " + secret + "@x:1 HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
		"GET /ok/a HTTP/1.1\r\nHost: other.example:" + secret + "\r\n\r\n",
		// Fields.
		get("/ok/a"+q, "X-HTTP-Method-Override: "+secret+"\r\n"), get("/ok/a"+q, "X-Http-Method: DELETE\r\n"),
		get("/ok/a"+q, "Content-Length: "+secret+"\r\n"), get("/ok/a"+q, "Transfer-Encoding: "+secret+"\r\n"),
		get("/ok/a"+q, "Expect: "+secret+"\r\n"), get("/ok/a"+q, "Upgrade: "+secret+"\r\nConnection: upgrade\r\n"),
		get("/ok/a"+q, "Connection: "+secret+"\r\nUpgrade: h2c\r\n"), get("/ok/a"+q, "X: "+secret+"\x01\r\n"),
		get("/ok/a"+q, " "+secret+"\r\n"), get("/ok/a"+q, secret+"\r\n"), get("/ok/a"+q, "X: "+secret+"\n"),
		get("/ok/a"+q, strings.Repeat("X: "+secret+"\r\n", 300)), get("/ok/a"+q, "X: "+strings.Repeat(secret, 6000)+"\r\n"),
		"GET /ok/a" + q + " HTTP/" + secret + "\r\nHost: api.example.com\r\n\r\n",
		"GET /ok/a" + q + " HTTP/1.1\r\nHost: api.example.com\r\nHost: " + secret + "\r\n\r\n",
		// Bodies.
		"POST /graphql HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1;" + secret + "\n" + secret,
		"POST /graphql HTTP/1.1\r\nHost: api.example.com\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + secret + "\r\n\r\n",
		post("/graphql"+q, secret, "{}"), post("/graphql"+q, "application/json; boundary="+secret, "{}"),
		post("/graphql"+q, "application/json", secret), post("/graphql?query="+secret, "application/json", "{}"),
		post("/graphql"+q, "application/json\r\nContent-Encoding: "+secret, "{}"),
		post("/graphql"+q, "application/json", `{"query":"{a}","variables":{"`+secret+`":1,"`+secret+`":2}}`),
		post("/graphql"+q, "application/json", `{"query":"{a}","variables":"`+secret+`"}`),
		gql(`mutation { a(b: "` + secret + `") }`), gql(`{ a } "` + secret + `"`), gql(`{ a(b: "` + secret),
		gql(`{ a(b: """` + secret + `""") } # ` + secret + "\n}"), gql("{ a(b: 0" + secret + ") }"),
		get("/graphql?query="+secret+"%zz", ""), get("/graphql?query=mutation%7Ba(b:%22"+secret+"%22)%7D", ""),
		get("/graphql?query=%7Ba%7D&variables="+secret, ""), get("/graphql/"+q, ""),
		// Upgrades.
		get("/no"+q, upgrade), get("/graphql?query=%7Ba%7D&token="+secret, upgrade),
		get("/ws"+q, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: "+secret+"\r\nSec-WebSocket-Key: "+secret+"\r\n"),
		get("/ws"+q, upgrade), // the server answers with its own secrets
	}
	for _, port := range []uint16{80, 443} {
		t.Run(fmt.Sprint(port), func(t *testing.T) {
			var logged bytes.Buffer
			l := newRelayLab(t, port, secretsPolicy, func(l *relayLab) {
				l.relay.Limits.HeaderBytes = 32 << 10
				l.log = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
			})
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/ws" {
					return
				}
				c, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				fmt.Fprintf(rw, "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n", secret, secret)
				rw.Flush()
				c.Close()
			}))
			refused := 0
			for _, request := range requests {
				c := l.dial()
				go io.WriteString(c, request)
				res, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil { // clear HTTP that is none is reset, as a connection
					l.event(audit.Connect)
					refused++
					continue
				}
				text, _ := io.ReadAll(res.Body)
				c.Close()
				if res.StatusCode >= 400 {
					l.event(audit.HTTP, audit.GraphQL)
					refused++
				}
				if all := strings.ToLower(fmt.Sprint(res.Header, string(text))); strings.Contains(all, secret) {
					t.Errorf("%q is answered with the secret: %s", request, all)
				}
			}
			// "/ok/" by POST is what a policy lets pass.
			if refused < len(requests)-1 {
				t.Errorf("%d refusals of %d requests", refused, len(requests))
			}
			l.holdNone(t, secret)
			if strings.Contains(strings.ToLower(logged.String()), secret) {
				t.Errorf("logged: %s", &logged)
			}
		})
	}
}

// holdNone fails the test when an event holds text, in whatever case.
func (l *relayLab) holdNone(t *testing.T, text string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		stored, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.ToLower(string(stored)), text) {
			t.Errorf("event: %s", stored)
		}
	}
}

func TestRefusalsOverHTTP2RepeatNoSecrets(t *testing.T) {
	const secret = "s3cr3t77d1e0"
	l := newRelayLab(t, 443, secretsPolicy)
	l.serve(new(canary), "h2")
	ok := []string{":method", "GET", ":scheme", "https", ":authority", labHost, ":path", "/no?token=" + secret, "authorization", secret}
	with := func(change ...string) []string {
		fields := append([]string(nil), ok...)
		for i := 0; i < len(change); i += 2 {
			found := false
			for k := 0; k < len(ok); k += 2 {
				if fields[k] == change[i] {
					fields[k+1], found = change[i+1], true
				}
			}
			if !found {
				fields = append(fields, change[i], change[i+1])
			}
		}
		return fields
	}
	streams := [][]string{
		ok, with(":method", "GET "+secret), with(":method", strings.Repeat(secret, 20)), with(":authority", secret+"@x"), with(":authority", "x.example"),
		with(":path", "https://"+secret+"@x/"), with(":path", "/ok/#"+secret), with(":path", secret), with("host", secret), with("x-method-override", secret),
		with(":path", "/graphql?query="+secret), with(":path", "/graphql?id=1&hash=%z"+secret), with(":scheme", secret), with("content-type", secret, ":method", "POST", ":path", "/graphql"),
	}
	for _, fields := range streams {
		t.Logf("%q", fields)
		c := l.dial("h2")
		if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		framer := http2.NewFramer(c, c)
		framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		framer.WriteSettings()
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		for i := 0; i < len(fields); i += 2 {
			encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		said := ""
		for over := false; !over; {
			frame, err := framer.ReadFrame()
			if err != nil {
				t.Fatalf("%q: %v", fields, err)
			}
			switch f := frame.(type) {
			case *http2.MetaHeadersFrame:
				said += fmt.Sprint(f.Fields)
			case *http2.DataFrame:
				said += string(f.Data())
			}
			over = frame.Header().StreamID == 1 && (frame.Header().Type == http2.FrameRSTStream || frame.Header().Flags.Has(http2.FlagDataEndStream) && frame.Header().Type <= http2.FrameHeaders)
		}
		if strings.Contains(strings.ToLower(said), secret) {
			t.Errorf("%q is answered with the secret: %s", fields, said)
		}
		if e := l.event(audit.HTTP, audit.GraphQL); e.Verdict != "deny" {
			t.Errorf("%q: %+v", fields, e)
		}
		c.Close()
	}
	l.holdNone(t, secret)
}

func TestRefusedMessagesRepeatNoSecrets(t *testing.T) {
	const secret = "s3cr3t77d1e0"
	l := newRelayLab(t, 80, secretsPolicy)
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: websocketSubprotocols(r), InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.Read(r.Context())
	}))
	for _, one := range []struct{ subprotocol, message string }{
		{"graphql-transport-ws", secret}, {"graphql-transport-ws", `{"type":"` + secret + `","id":"1"}`}, {"graphql-ws", `{"type":"start","id":"` + secret + `","payload":` + secret + `}`},
		{"graphql-transport-ws", `{"type":"subscribe","id":"1","payload":{"query":"mutation { a(b: \"` + secret + `\") }"}}`},
		{"graphql-transport-ws", `{"type":"subscribe","id":"1","payload":{"query":"{ a } \"` + secret + `\""}}`}, {"bearer." + secret, `{"type":"ping"}`},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		c, _, err := websocket.Dial(ctx, "ws://"+l.addr+"/graphql?token="+secret, &websocket.DialOptions{
			Host: labHost, Subprotocols: []string{one.subprotocol}, HTTPHeader: http.Header{"Authorization": {secret}},
		})
		if err != nil {
			t.Fatalf("%+v: %v", one, err)
		}
		if err := c.Write(ctx, websocket.MessageText, []byte(one.message)); err != nil {
			t.Fatal(err)
		}
		_, _, err = c.Read(ctx)
		if websocket.CloseStatus(err) != websocket.StatusPolicyViolation || strings.Contains(err.Error(), secret) {
			t.Errorf("%+v: closed with %v", one, err)
		}
		for e := l.event(audit.GraphQL); e.Verdict != "deny"; e = l.event(audit.GraphQL) {
		}
		c.CloseNow()
		cancel()
	}
	l.holdNone(t, secret)
}

func websocketSubprotocols(r *http.Request) []string {
	return strings.Split(r.Header.Get("Sec-WebSocket-Protocol"), ", ")
}
