package proxy

import (
	"bufio"
	"errors"
	"net/http"
	"strings"
	"testing"
)

func TestHTTPHead(t *testing.T) {
	const (
		ok = iota
		more
		other
		bad
	)
	crlf := func(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }
	cases := []struct {
		name, text string
		want       int
		host       string
	}{
		{"plain", crlf("GET / HTTP/1.1", "Host: a.example"), ok, "a.example"},
		{"port", crlf("GET / HTTP/1.1", "host:a.example:8080 "), ok, "a.example"},
		{"pipelined", crlf("GET / HTTP/1.1", "Host: a.example") + "GET /b HTTP/1.1\r\n", ok, "a.example"},
		{"body with NUL", crlf("POST / HTTP/1.1", "Host: a.example", "Content-Length: 1") + "\x00", ok, "a.example"},
		{"http/1.0 without host", crlf("GET / HTTP/1.0"), ok, ""},
		{"address literal", crlf("GET / HTTP/1.1", "Host: [2001:db8::1]:80"), ok, "2001:db8::1"},
		{"own method", crlf("PURGE / HTTP/1.1", "Host: a.example"), ok, "a.example"},
		{"options star", crlf("OPTIONS * HTTP/1.1", "Host: a.example"), ok, "a.example"},
		{"absolute", crlf("GET http://a.example/x HTTP/1.1", "Host: a.example"), ok, "a.example"},
		{"absolute, case", crlf("GET HTTP://A.example:80/x HTTP/1.1", "Host: a.example"), ok, "a.example"},
		{"connect to itself", crlf("CONNECT a.example:80 HTTP/1.1", "Host: a.example:80"), ok, "a.example"},

		{"nothing", "", more, ""},
		{"blank lines", "\r\n\r\n", more, ""},
		{"word", "GET", more, ""},
		{"line", "GET / HTTP/1.1\r\n", more, ""},
		{"half", "GET / HTTP/1.1\r\nHost: a.exam", more, ""},

		{"ssh", "SSH-2.0-OpenSSH_9.2\r\n", other, ""},
		{"smtp", "EHLO client.example\r\n", other, ""},
		{"rtsp", "OPTIONS rtsp://a.example/ RTSP/1.0\r\n", other, ""},
		{"binary", "\x00\x00\x00\x08\x04\xd2\x16\x2f", other, ""},
		{"redis", "*1\r\n$4\r\nPING\r\n", other, ""},
		{"long word", strings.Repeat("A", maxMethod+1), other, ""},

		{"absolute elsewhere", crlf("GET http://evil.example/ HTTP/1.1", "Host: a.example"), bad, ""},
		{"absolute, other port", crlf("GET http://a.example:22/ HTTP/1.1", "Host: a.example"), bad, ""},
		{"absolute https", crlf("GET https://a.example/ HTTP/1.1", "Host: a.example"), bad, ""},
		{"absolute without host", crlf("GET http:///x HTTP/1.1", "Host: a.example"), bad, ""},
		{"connect elsewhere", crlf("CONNECT evil.example:80 HTTP/1.1", "Host: a.example"), bad, ""},
		{"connect, other port", crlf("CONNECT a.example:22 HTTP/1.1", "Host: a.example"), bad, ""},
		{"connect without port", crlf("CONNECT a.example HTTP/1.1", "Host: a.example"), bad, ""},
		{"connect 1.0 without host", crlf("CONNECT evil.example:80 HTTP/1.0"), bad, ""},
		{"absolute userinfo", crlf("GET http://u@a.example/ HTTP/1.1", "Host: a.example"), bad, ""},
		{"userinfo", crlf("GET / HTTP/1.1", "Host: u@a.example"), bad, ""},
		{"two hosts", crlf("GET / HTTP/1.1", "Host: a.example", "Host: a.example"), bad, ""},
		{"no host", crlf("GET / HTTP/1.1", "Accept: x"), bad, ""},
		{"NUL in host", crlf("GET / HTTP/1.1", "Host: a.example\x00.b"), bad, ""},
		{"CR in host", crlf("GET / HTTP/1.1", "Host: a.example\rb"), bad, ""},
		{"space in host", crlf("GET / HTTP/1.1", "Host: a.example b"), bad, ""},
		{"percent in host", crlf("GET / HTTP/1.1", "Host: a%2eexample"), bad, ""},
		{"comma in host", crlf("GET / HTTP/1.1", "Host: a.example,b.example"), bad, ""},
		{"folded", crlf("GET / HTTP/1.1", "Host: a.example", " b"), bad, ""},
		{"blank before colon", crlf("GET / HTTP/1.1", "Host : a.example"), bad, ""},
		{"bare LF", "GET / HTTP/1.1\nHost: a.example\n\n", bad, ""},
		{"bare LF in fields", "GET / HTTP/1.1\r\nHost: a.example\nX: y\r\n\r\n", bad, ""},
		{"http/0.9", "GET /\r\n", bad, ""},
		{"http/0.9 mangled", "GET / HTXP\r\n", bad, ""},
		{"tab", crlf("GET\t/ HTTP/1.1", "Host: a.example"), bad, ""},
		{"two blanks", crlf("GET  / HTTP/1.1", "Host: a.example"), bad, ""},
		{"lower-case version", crlf("GET / http/1.1", "Host: a.example"), bad, ""},
		{"leading line", "\r\n" + crlf("CONNECT evil.example:80 HTTP/1.1", "Host: a.example"), bad, ""},
		{"h2 prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bad, ""},
		{"h2c", crlf("GET / HTTP/1.1", "Host: a.example", "Upgrade: foo, H2C"), bad, ""},
		{"raw bytes in target", crlf("GET /\x80 HTTP/1.1", "Host: a.example"), bad, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			host, err := parseHead([]byte(c.text), 80)
			got := bad
			switch err {
			case nil:
				got = ok
			case errMore:
				got = more
			case errNotHTTP:
				got = other
			}
			if got != c.want || host != c.host && got == ok {
				t.Errorf("got %d, host %q, error %v; want %d, %q", got, host, err, c.want, c.host)
			}
		})
	}
}

func FuzzHTTPHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
		"GET http://a.example/ HTTP/1.1\r\nHost: a.example:80\r\nUpgrade: h2c\r\n\r\n",
		"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n",
		"\r\nGET / HTTP/1.0\n\n", "EHLO x\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: [::1]:80\r\nHost: b\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		host, err := parseHead(b, 80)
		r, theirs := http.ReadRequest(bufio.NewReader(strings.NewReader(string(b))))
		if err == nil && theirs == nil {
			// In HTTP/1.0 without Host, and with absolute forms, what a
			// server takes for the host must be what was judged.
			want, _, err := splitAuthority(r.Host)
			if err != nil || !strings.EqualFold(want, host) {
				t.Fatalf("host %q, net/http reads %q", host, r.Host)
			}
		}
		if errors.Is(err, errNotHTTP) && theirs == nil && r.ProtoMajor == 1 {
			t.Fatalf("not HTTP to us, but net/http reads %s %s", r.Method, r.URL)
		}
	})
}
