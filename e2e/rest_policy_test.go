package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

const restPolicy = `
version: 1
network_policies:
  items:
    endpoints:
      - host: rest.example
        ports: [80, 443]
        protocol: rest
        rules:
          - allow: {method: GET, path: "/v1/items/**"}
          - allow: {method: POST, path: /v1/items, query: {dry_run: "true"}}
          - allow: {method: PUT, path: "/v1/items/*"}
          - allow: {method: POST, path: "/pkg.Allowed/*"}
        deny_rules:
          - {method: "*", path: "/v1/items/secret/**"}
          - {method: GET, path: "/v1/items/**", query: {export: "*"}}
`

var statusLine = regexp.MustCompile(`HTTP/1\.1 (\d{3}) [A-Z]`)

// restWorld is a REST server outside, over TLS and in the clear, and a
// container that may use a part of it.
func restWorld(t *testing.T) (w *Weir, box *Box, secure, clear *Recorder) {
	t.Helper()
	o := newOutside(t)
	o.addName("rest.example", "198.51.100.40")
	o.addName("other.example", "198.51.100.40")
	outside := newAuthority(t)
	secure = o.record("198.51.100.40:443", serverConfig(outside, "rest.example", "other.example"), nil)
	clear = o.record("198.51.100.40:80", nil, nil)
	w = startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box = w.trustedBox(restPolicy)
	box.addClient()
	return w, box, secure, clear
}

// Row 65 of docs/security.md, and what REST rules say.
func TestRESTRequestsAreJudgedAndSentByTheirCanonicalPath(t *testing.T) {
	w, box, secure, clear := restWorld(t)
	type request struct {
		method, target string
		header         string
		status         int
		sent           string // what the server sees, if not the target
	}
	table := []request{
		{"GET", "/v1/items/1", "", 200, ""},
		{"HEAD", "/v1/items/1", "", 200, ""},
		{"GET", "/v1//items/./x/../2", "", 200, "/v1/items/2"},
		{"GET", "/v1/items;version=2/1", "", 200, "/v1/items/1"},
		{"GET", "/v1/%69tems/1?q=%41+b", "", 200, "/v1/items/1?q=A%20b"},
		{"PUT", "/v1/items/1", "", 200, ""},
		{"POST", "/v1/items?dry_run=true", "", 200, ""},
		{"POST", "/v1/items?%64ry_run=true", "", 200, "/v1/items?dry_run=true"},

		{"GET", "/v1/other", "", 403, ""},
		{"GET", "/V1/items/1", "", 403, ""},
		{"DELETE", "/v1/items/1", "", 403, ""},
		{"TRACE", "/v1/items/1", "", 403, ""},
		{"OPTIONS", "/v1/items/1", "", 403, ""},
		{"PURGE", "/v1/items/1", "", 403, ""},
		{"PUT", "/v1/items/1/2", "", 403, ""},
		{"GET", "/v1/items/secret/key", "", 403, ""},
		{"GET", "/v1/items/%73ecret/key", "", 403, ""},
		{"GET", "/v1/items/secret;a=b/key", "", 403, ""},
		{"GET", "/v1/items/x/..;/secret/key", "", 403, ""},
		{"GET", "/v1/items//secret//key", "", 403, ""},
		{"GET", "/v1/items/../../admin", "", 403, ""},
		{"GET", "/v1/items/%2e%2e/%2e%2e/admin", "", 403, ""},
		{"POST", "/v1/items", "", 403, ""},
		{"POST", "/v1/items?dry_run=false", "", 403, ""},
		{"POST", "/v1/items?dry_run=true&dry_run=false", "", 403, ""},
		{"GET", "/v1/items/1?export=all", "", 403, ""},
		{"GET", "/v1/items/1?%65xport=", "", 403, ""},
		{"PUT", "/v1/items/1", "X-HTTP-Method-Override: DELETE", 403, ""},
		{"POST", "/v1/items?dry_run=true", "X_Method_Override: PATCH", 403, ""},

		{"GET", "/v1/items/a%2fsecret", "", 400, ""},
		{"GET", "/v1/items/a%5csecret", "", 400, ""},
		{"GET", "/v1/items/a%00", "", 400, ""},
		{"GET", "/v1/items/a%0d%0aX:y", "", 400, ""},
		{"GET", "/v1/items/%zz", "", 400, ""},
		{"GET", "/v1/items/1?q=%z", "", 400, ""},
		{"GET", "/../../v1/items/1", "", 400, ""},
		{"GET", "/v1/items/" + strings.Repeat("a", 4100), "", 400, ""},
	}
	for _, version := range []string{"HTTP/1.1 clear", "HTTP/1.1", "HTTP/2.0"} {
		t.Run(version, func(t *testing.T) {
			server := secure
			if version == "HTTP/1.1 clear" {
				server = clear
			}
			denied := map[int64]request{}
			for _, r := range table {
				if version == "HTTP/2.0" && strings.Contains(r.target, "%zz") {
					continue // a reset, below
				}
				what := r.method + " " + r.target[:min(len(r.target), 60)]
				args := []string{"request", "-X", r.method, "-H", "Authorization: Bearer " + token}
				if version == "HTTP/2.0" {
					args = append(args, "-2")
				}
				if r.header != "" {
					args = append(args, "-H", r.header)
				}
				url := "https://rest.example/"
				if server == clear {
					url = "http://rest.example/"
				}
				got := box.client("", append(append(args, "-target", r.target), url)...)
				seen, _ := server.take()
				if got.Status != r.status || !strings.HasPrefix(version, got.Proto) {
					t.Errorf("%s: %+v, want %d", what, got, r.status)
					continue
				}
				if r.status == 200 {
					sent := r.sent
					if sent == "" {
						sent = r.target
					}
					if len(seen) != 1 || seen[0].Target != sent || seen[0].Method != r.method {
						t.Errorf("%s: the server saw %+v, want %s", what, seen, sent)
					}
					continue
				}
				if len(seen) > 0 {
					t.Errorf("%s: the server saw %+v", what, seen)
				}
				said := refusal(t, got.Body)
				want := map[int]string{400: "malformed_request", 403: "policy_denied"}[r.status]
				if said.Error != want || fmt.Sprint(said.Event) != got.Event || said.Method != r.method {
					t.Errorf("%s: the client was told %+v", what, said)
				}
				denied[said.Event] = r
			}
			for _, e := range w.refusals(box.Name, "http", len(denied), func(e Event) bool { _, ok := denied[e.ID]; return ok }) {
				if r := denied[e.ID]; e.Verdict != "deny" || e.Method != r.method || e.Reason == "" || e.Host != "rest.example" || r.status == 403 && e.RuleID == "" {
					t.Errorf("%s %s: event %+v", r.method, r.target, e)
				}
			}
			_, raw := server.take()
			for _, never := range []string{"secret", "admin", "export", "Override"} {
				if strings.Contains(raw, never) {
					t.Errorf("the server got %q", never)
				}
			}
		})
	}

	// What is no request is reset before anybody judges it, and recorded.
	if out, ok := box.curl("--http2", "--path-as-is", "https://rest.example/v1/items/%zz"); ok {
		t.Errorf("a bad escape over HTTP/2: %s", out)
	}
	w.waitEvent(box.Name, "a stream that is no request", func(e Event) bool {
		return e.Verdict == "deny" && strings.Contains(e.Reason, "HTTP/2 stream with a bad path")
	})

	// Row 36: one service of gRPC, told by :path.
	grpc := func(path string) Reply {
		return box.client("\x00\x00\x00\x00\x00", "request", "-2", "-H", "Content-Type: application/grpc", "-H", "TE: trailers", "https://rest.example"+path)
	}
	if r := grpc("/pkg.Allowed/Get"); r.Status != 200 || r.GRPC != "" {
		t.Errorf("gRPC: %+v", r)
	}
	secure.take()
	if r := grpc("/pkg.Admin/Get"); r.Status != 200 || r.GRPC != "7" {
		t.Errorf("gRPC, denied: %+v", r)
	}
	if seen, _ := secure.take(); len(seen) > 0 {
		t.Errorf("the server saw %+v", seen)
	}
	w.holdsNone(box.Name, token)
}

// Rows 24, 25, 30 to 35 and 62: what a connection could be made to carry.
func TestNothingIsSmuggledThroughAnInspectedConnection(t *testing.T) {
	w, box, secure, clear := restWorld(t)

	// Another authority, on each request of one HTTP/2 connection.
	replies := box.clientAll("", "authorities", "rest.example:443", "/v1/items/1", "rest.example", "other.example", "REST.example.", "rest.example:80", "198.51.100.40", "rest.example")
	var statuses []int
	for _, r := range replies[:len(replies)-1] {
		statuses = append(statuses, r.Status)
	}
	if fmt.Sprint(statuses) != "[200 421 200 421 421 200]" || replies[len(replies)-1].Connections != 1 {
		t.Errorf("authorities: %v over %d connections", statuses, replies[len(replies)-1].Connections)
	}
	if seen, _ := secure.take(); len(seen) != 3 {
		t.Errorf("the server saw %+v", seen)
	}
	w.refusals(box.Name, "http", 3, func(e Event) bool {
		return e.Verdict == "deny" && strings.Contains(e.Reason, "its connection was judged for")
	})

	const head = " HTTP/1.1\r\nHost: rest.example\r\n"
	const inner = "DELETE /v1/items/hidden HTTP/1.1\r\nHost: rest.example\r\n\r\n"
	put := "PUT /v1/items/1" + head
	for _, c := range []struct {
		name, bytes string
		status      string // of the answers, in order
		passes      int    // requests that may reach the server
	}{
		{"Content-Length and chunked", put + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner, "400", 0},
		{"chunked twice", put + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner, "400", 0},
		{"chunked, in disguise", put + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner, "400", 0},
		{"chunked behind a space", put + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner, "400", 0},
		{"two lengths", put + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + inner, "400", 0},
		{"signed length", put + "Content-Length: +0\r\n\r\n" + inner, "400", 0},
		{"folded field", put + "X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", "400", 0},
		{"bare line feeds", "GET /v1/items/1 HTTP/1.1\nHost: rest.example\n\n", "400", 0},
		{"HTTP/0.9", "GET /v1/items/1\r\n\r\n", "400", 0},
		{"HTTP/1.2", "GET /v1/items/1 HTTP/1.2\r\nHost: rest.example\r\n\r\n", "400", 0},
		{"two Hosts", "GET /v1/items/1" + head + "Host: other.example\r\n\r\n", "400", 0},
		{"no Host", "GET /v1/items/1 HTTP/1.1\r\n\r\n", "400", 0},
		{"NUL in a field", "GET /v1/items/1" + head + "X: a\x00b\r\n\r\n", "400", 0},
		{"bad chunk size", put + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", "400", 1},
		{"pipelined, the second denied", "GET /v1/items/1" + head + "\r\n" + inner, "200 403", 1},
		{"pipelined, the second for another", "GET /v1/items/1" + head + "\r\nGET /v1/items/1 HTTP/1.1\r\nHost: other.example\r\n\r\n", "200 421", 1},
		{"in a body", put + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(inner)) + inner + "GET /v1/items/2" + head + "\r\n", "200 200", 2},
		{"h2c upgrade", "GET /v1/items/1" + head + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n", "403", 0},
		{"upgrade to WebSocket", "GET /v1/items/1" + head + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", "403", 0},
		{"upgrade to anything", "GET /v1/items/1" + head + "Connection: Upgrade\r\nUpgrade: tunnel\r\n\r\n", "403", 0},
		{"CONNECT", "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n", "421", 0},
		{"CONNECT to itself", "CONNECT rest.example:443 HTTP/1.1\r\nHost: rest.example:443\r\n\r\n", "403", 0},
		{"absolute form for another", "GET https://other.example/v1/items/1 HTTP/1.1\r\nHost: other.example\r\n\r\n", "421", 0},
		{"absolute form, another Host", "GET https://other.example/v1/items/1" + head + "\r\n", "400", 0},
		{"many fields", "GET /v1/items/1" + head + strings.Repeat("X: y\r\n", 5000) + "\r\n", "400", 0},
		{"a long field", "GET /v1/items/1" + head + "X: " + strings.Repeat("y", 100_000) + "\r\n\r\n", "400", 0},
	} {
		r := box.client(c.bytes, "raw", "rest.example:443")
		var codes []string
		for _, line := range statusLine.FindAllStringSubmatch(r.Got, -1) {
			codes = append(codes, line[1])
		}
		if got := strings.Join(codes, " "); got != c.status {
			t.Errorf("%s: answered %q, want %q: %+v", c.name, got, c.status, r)
		}
		if c.status == "400" && r.Open {
			t.Errorf("%s: the connection stayed open", c.name)
		}
		seen, _ := secure.take()
		if len(seen) > c.passes {
			t.Errorf("%s: the server saw %+v", c.name, seen)
		}
		for _, s := range seen {
			if s.Method == "DELETE" || s.Host != "rest.example" {
				t.Errorf("%s: the server saw %+v", c.name, s)
			}
		}
	}

	// In the clear the first bytes say which name is meant.
	for name, bytes := range map[string]string{
		"HTTP/2 by prior knowledge": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"another Host":              "GET /v1/items/1 HTTP/1.1\r\nHost: other.example\r\n\r\n",
		"CONNECT":                   "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n",
		"absolute form":             "GET http://other.example/v1/items/1 HTTP/1.1\r\nHost: other.example\r\n\r\n",
		"two Hosts":                 "GET /v1/items/1 HTTP/1.1\r\nHost: rest.example\r\nHost: x\r\n\r\n",
	} {
		if r := box.client(bytes, "raw", "-plain", "rest.example:80"); strings.Contains(r.Got, "HTTP/1.1 200") || r.Open {
			t.Errorf("%s: %+v", name, r)
		}
		if seen, _ := clear.take(); len(seen) > 0 {
			t.Errorf("%s: the server saw %+v", name, seen)
		}
	}

	// Row 9: the name that counts is encrypted.
	before := secure.opened()
	if r := box.client("", "ech", "rest.example:443", "hidden.example"); r.Failed == "" {
		t.Errorf("an encrypted hello passed: %+v", r)
	}
	w.waitEvent(box.Name, "encrypted hello", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && strings.Contains(strings.ToLower(e.Reason), "encrypted")
	})
	if now := secure.opened(); now != before {
		t.Errorf("the server saw %d connections for an encrypted hello", now-before)
	}

	// Row 62: what is not judged by its body is not held.
	out, ok := box.sh(`head -c 32000000 /dev/zero | curl -sS --max-time 30 -T - https://rest.example/v1/items/big -w '%{http_code}'`)
	if !ok || !strings.HasSuffix(out, "200") {
		t.Errorf("a large upload: %s", out)
	}
	if seen, _ := secure.take(); len(seen) != 1 || len(seen[0].Body) != 32_000_000 {
		t.Errorf("the server saw %d requests of the large upload", len(seen))
	}
}
