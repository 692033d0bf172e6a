package proxy

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"weir/rules"
)

// maxMethod is the longest run of letters at the start of a connection that
// is still taken for an HTTP method.
const maxMethod = 64

var (
	errNotHTTP = errors.New("not http")
	errTooLong = errors.New("more than Weir reads before it has to decide")
)

// A problem is why an HTTP head is refused.
type problem string

func (p problem) Error() string { return string(p) }

// parseHead reads the head of the HTTP/1 request at the start of b and
// returns the host that it is for, "" when it names none (HTTP/1.0). port is
// the connection's: CONNECT and absolute-form targets must stay on it.
// Answers: errMore, errNotHTTP, or a problem.
//
// What a lenient server could read as a request is one here or a problem,
// never errNotHTTP: otherwise an odd form would be a way past the check.
func parseHead(b []byte, port uint16) (host string, err error) {
	text := bytes.TrimLeft(b, "\r\n\t ")
	padded := len(text) != len(b)
	line, rest, complete := bytes.Cut(text, []byte("\n"))
	method, target, _ := cutBlank(bytes.TrimRight(line, "\r"))
	if len(text) > 0 && !isToken(method) || len(method) > maxMethod {
		return "", errNotHTTP
	}
	if !complete {
		return "", errMore // the word may still grow into a method
	}
	if !requestLike(line) {
		return "", errNotHTTP
	}
	versioned := bytes.Contains(bytes.ToUpper(line), []byte("HTTP/"))
	if string(method) == "PRI" {
		return "", problem("clear-text HTTP/2, whose names cannot be confirmed; use TLS, or a rule for the address")
	}
	target, version, ok := bytes.Cut(target, []byte(" "))
	switch {
	case !versioned:
		return "", problem("an HTTP/0.9 request names no host")
	case padded || !ok || line[len(method)] != ' ' || !bytes.HasSuffix(line, []byte("\r")):
		return "", problem("malformed request line")
	case string(version) != "HTTP/1.1" && string(version) != "HTTP/1.0":
		return "", problem("malformed or unknown HTTP version")
	case len(target) == 0 || !visible(target):
		return "", problem("malformed request target")
	}
	head, err := headFields(rest)
	if err != nil {
		return "", err
	}
	name := ""
	if head.hosts == 1 {
		if name, _, err = splitAuthority(head.host); err != nil {
			return "", err
		}
	} else if head.hosts > 1 {
		return "", problem("more than one Host field")
	} else if string(version) == "HTTP/1.1" {
		return "", problem("no Host field")
	}
	if head.h2c {
		return "", problem("upgrade to clear-text HTTP/2, whose names cannot be confirmed")
	}
	return name, checkTarget(string(method), string(target), name, port)
}

// fields is what the header fields of a request say that matters here.
type fields struct {
	host  string
	hosts int
	h2c   bool
}

// headFields reads header lines up to the empty one.
func headFields(b []byte) (fields, error) {
	var f fields
	if bytes.IndexByte(b, 0) >= 0 {
		// Looked for in whatever is there: no complete head may hold one.
		if end := bytes.Index(b, []byte("\r\n\r\n")); end < 0 || bytes.IndexByte(b[:end], 0) >= 0 {
			return f, problem("NUL in the request head")
		}
	}
	for {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return f, errMore
		}
		line, ok = bytes.CutSuffix(line, []byte("\r"))
		if !ok || bytes.IndexByte(line, '\r') >= 0 {
			return f, problem("bare CR or LF in the request head")
		}
		if len(line) == 0 {
			return f, nil
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isToken(name) {
			return f, problem("malformed header field")
		}
		switch {
		case bytes.EqualFold(name, []byte("Host")):
			f.hosts++
			f.host = string(bytes.Trim(value, " \t"))
		case bytes.EqualFold(name, []byte("Upgrade")):
			f.h2c = f.h2c || bytes.Contains(bytes.ToLower(value), []byte("h2c"))
		}
		b = rest
	}
}

// checkTarget makes sure that a request which names its target in full asks
// for this very connection's host and port: anything else asks the server to
// be a proxy for a place that nobody judged.
func checkTarget(method, target, host string, port uint16) error {
	if method == "CONNECT" {
		name, p, err := splitAuthority(target)
		if err != nil {
			return err
		}
		if !strings.EqualFold(name, host) || p != port {
			return problem("CONNECT asks for " + spoken(target) + ", which is not where this connection goes")
		}
		return nil
	}
	if target[0] == '/' || target == "*" {
		return nil
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok {
		return problem("malformed request target")
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	name, p, err := splitAuthority(authority)
	if err != nil {
		return err
	}
	if p == 0 {
		switch strings.ToLower(scheme) {
		case "http", "ws":
			p = 80
		case "https", "wss":
			p = 443
		}
	}
	if name == "" || !strings.EqualFold(name, host) || p != port {
		return problem("the request asks for " + spoken(authority) + ", which is not where this connection goes")
	}
	return nil
}

// splitAuthority takes host[:port] apart (RFC 9110, 7.2). Brackets stay off
// the host of an address literal. A port of 0 stands for none.
func splitAuthority(s string) (host string, port uint16, err error) {
	bad := problem("malformed host")
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || strings.IndexByte("%@/\\?#,\"<>", c) >= 0 {
			return "", 0, bad
		}
	}
	host = s
	var text string
	if strings.HasPrefix(s, "[") {
		inner, after, ok := strings.Cut(s[1:], "]")
		if a, err := netip.ParseAddr(inner); !ok || err != nil || !a.Is6() {
			return "", 0, bad
		}
		host, text = inner, after
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, text = s[:i], s[i:]
		if host == "" {
			return "", 0, bad
		}
	}
	if text == "" {
		return host, 0, nil
	}
	p, err := strconv.ParseUint(text[1:], 10, 16)
	if text[0] != ':' || err != nil || p == 0 {
		return "", 0, bad
	}
	return host, uint16(p), nil
}

// spoken is how messages repeat an authority: only what is a host's name or
// address can be told from what else a client may have put there.
func spoken(authority string) string {
	host, _, err := splitAuthority(authority)
	if err == nil {
		if _, err = rules.CanonicalName(host); err != nil {
			_, err = netip.ParseAddr(host)
		}
	}
	if err != nil {
		return "something that is no host"
	}
	return strconv.Quote(authority)
}

// cutBlank cuts b at its first blank or tab.
func cutBlank(b []byte) (before, after []byte, found bool) {
	if i := bytes.IndexAny(b, " \t"); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}

// requestLike says whether a line, perhaps still without its end, is one that
// some server would take for the first of an HTTP request.
func requestLike(line []byte) bool {
	words := bytes.Fields(line)
	if len(words) < 2 {
		return false
	}
	if bytes.Contains(bytes.ToUpper(line), []byte("HTTP/")) {
		return true
	}
	// "OPTIONS rtsp://h/ RTSP/1.0", "OPTIONS sip:h SIP/2.0": other protocols
	// with the same verbs.
	_, version, foreign := bytes.Cut(words[len(words)-1], []byte("/"))
	foreign = foreign && len(words) == 3 && (string(version) == "1.0" || string(version) == "2.0")
	return commonMethod(words[0]) && !foreign
}

// commonMethod says whether m is a method that servers take in HTTP/0.9 or
// with a mangled version.
func commonMethod(m []byte) bool {
	switch strings.ToUpper(string(m)) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PRI":
		return true
	}
	return false
}

// isToken: RFC 9110, 5.6.2; not empty.
func isToken(b []byte) bool {
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return len(b) > 0
}

// visible: no byte outside printable ASCII.
func visible(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
