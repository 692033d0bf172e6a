package proxy

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/audit"
)

// malformedRequests is the corpus in testdata.
func malformedRequests(t testing.TB) (requests []string) {
	t.Helper()
	text, err := os.ReadFile("testdata/requests/malformed.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSuffix(line, "\n"); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := strconv.Unquote(`"` + strings.ReplaceAll(line, `"`, `\"`) + `"`)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		requests = append(requests, strings.ReplaceAll(r, "HOST", labHost))
	}
	if len(requests) < 50 {
		t.Fatalf("only %d requests in the corpus", len(requests))
	}
	return requests
}

func TestReadRawRequestRefuses(t *testing.T) {
	for _, r := range malformedRequests(t) {
		if strings.Contains(r, "://") || strings.Contains(r, "#x") {
			continue // what is wrong is not in the request alone
		}
		got, err := ReadRawRequest(strings.NewReader(r), 1000)
		if _, ok := errors.AsType[*MalformedRequest](err); !ok {
			t.Errorf("%q: %+v, %v", r, got, err)
		}
	}
}

func TestReadRawRequest(t *testing.T) {
	text := "post https://A.example:8/x?y HTTP/1.1\r\nhost: a.EXAMPLE:8\r\nX-A:1\r\nConnection: x-b, keep-alive\r\nX-B: 2\r\n" +
		"Transfer-Encoding: Chunked\r\nProxy-Authorization: z\r\nX-A: \t3 \r\nTrailer: X-T\r\n\r\n5;a=b\r\nhello\r\n003\r\n wo\r\n0\r\nX-T: t\r\n\r\nGET"
	got, err := ReadRawRequest(strings.NewReader(text), 8)
	if err != nil {
		t.Fatal(err)
	}
	want := &RawRequest{Method: "POST", Target: "/x?y", Authority: "a.EXAMPLE:8", Body: []byte("hello wo"),
		Header: map[string][]string{"X-A": {"1", "3"}, "Trailer": {"X-T"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := ReadRawRequest(strings.NewReader(text), 7); err == nil {
		t.Error("a body over the limit was read")
	}
}

func TestRelayRefusesMalformed(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	requests := malformedRequests(t)
	requests = append(requests,
		"GET /ok/ HTTP/1.1\r\nHost: "+labHost+"\r\n"+strings.Repeat("X: y\r\n", 1000)+"\r\n",
		"GET /ok/ HTTP/1.1\r\nHost: "+labHost+"\r\nX: "+strings.Repeat("y", 70000)+"\r\n\r\n",
		"GET /ok/"+strings.Repeat("y", 70000)+" HTTP/1.1\r\nHost: "+labHost+"\r\n\r\n")
	for _, r := range requests {
		res, text, closed := l.raw(r)
		if res.StatusCode != 400 || !closed || !res.Close {
			t.Errorf("%.200q: %d, closed %v, %s", r, res.StatusCode, closed, text)
		}
		if e := l.event(audit.HTTP); e.Verdict != "deny" || !strings.HasPrefix(e.Reason, "malformed request: ") {
			t.Errorf("%.200q: event %+v", r, e)
		}
	}
	// A body that turns out to be malformed may have begun to go out, but never
	// as a whole request.
	server.mu.Lock()
	defer server.mu.Unlock()
	for line := range strings.Lines(server.got.String()) {
		if strings.HasPrefix(line, "G") || !strings.HasPrefix(line, "POST /ok/ ") && strings.TrimSpace(line) != "" && line != "hello\n" {
			t.Errorf("the server saw %q", line)
		}
	}
}

// FuzzHead: what is accepted has one reading, and is the same read again.
func FuzzHead(f *testing.F) {
	for _, r := range malformedRequests(f) {
		f.Add(r)
	}
	f.Add("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	f.Add("POST /x HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n3\r\nabc\r\n0\r\nT: x\r\n\r\n")
	f.Add("GET http://a/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		br := bufio.NewReader(strings.NewReader(text))
		raw, err := readHead(br, 1<<16, func() {})
		if err != nil {
			return
		}
		head, err := parseRequestHead(raw, 100)
		if err != nil {
			return
		}
		var out strings.Builder
		w := bufio.NewWriter(&out)
		h := &http1{c: &intercepted{host: "a.example", name: "a.example", nameAndPort: "a.example:443"}}
		h.writeRequest(w, head, ruling{target: head.target}, nil)
		w.Flush()
		again, err := parseRequestHead(out.String(), 110)
		if err != nil && head.method != "CONNECT" {
			t.Fatalf("%q was written as %q, which is refused: %v", raw, out.String(), err)
		}
		if err != nil {
			return
		}
		if again.method != head.method || again.target != head.target || again.length != head.length || again.chunked != head.chunked ||
			!cmp.Equal(again.fields, head.fields, cmp.AllowUnexported(field{})) && len(head.fields) > 0 {
			t.Fatalf("%q is %+v, and as sent %q it is %+v", raw, head, out.String(), again)
		}
		b := &body{br: br, left: max(head.length, 0), chunked: head.chunked, limits: &RelayLimits{HeaderBytes: 1000, Fields: 10}}
		got, err := io.ReadAll(b)
		if err == nil && !head.chunked && int64(len(got)) != max(head.length, 0) {
			t.Fatalf("%d bytes of body, not %d", len(got), head.length)
		}
	})
}
