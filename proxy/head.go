package proxy

import (
	"bufio"
	"bytes"
	"io"
	"slices"
	"strconv"
	"strings"
)

// A field is one header line.
type field struct{ name, value string }

// A requestHead is the head of one HTTP/1 request, read in the only way that
// two readers could agree on. What it does not hold is not sent on.
type requestHead struct {
	method    string // upper case
	target    string // origin form (RFC 9112, 3.2.1), or "*"
	authority string // the Host field; "" only in HTTP/1.0
	scheme    string // of a target in absolute form, lower case; else ""
	minor     int    // HTTP/1.minor

	// fields are the end-to-end ones in the order sent, without Host and
	// without those that say how long the body is.
	fields   []field
	length   int64 // of the body; -1 when not said
	chunked  bool
	upgrade  string // lower case; "" without an Upgrade field
	upgrades bool   // Connection: upgrade
	expects  bool   // Expect: 100-continue
	persists bool   // the client wants to send another request
	trailers bool   // TE: trailers
}

// hasBody: the request may be followed by a body, empty or not.
func (h *requestHead) hasBody() bool { return h.chunked || h.length > 0 }

// values returns the values of a field, nil when it is not there.
func values(fs []field, name string) (vs []string) {
	for _, f := range fs {
		if strings.EqualFold(f.name, name) {
			vs = append(vs, f.value)
		}
	}
	return vs
}

// readHead returns the next head with the empty line that ends it; io.EOF
// when nothing comes any more. begun is called when the head has begun and is
// not complete, to set a deadline. The error of a head that is not one is a
// problem.
func readHead(br *bufio.Reader, limit int, begun func()) (string, error) {
	if _, err := br.Peek(1); err != nil {
		return "", err
	}
	if b, _ := br.Peek(br.Buffered()); len(b) <= limit {
		if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
			head := string(b[:i+4])
			br.Discard(i + 4)
			return head, nil
		}
	}
	begun()
	var head []byte
	for start := 0; ; {
		part, err := br.ReadSlice('\n')
		head = append(head, part...)
		switch {
		case len(head) > limit:
			return "", problem("the head is longer than " + strconv.Itoa(limit) + " bytes")
		case err == bufio.ErrBufferFull:
			continue
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case err != nil:
			return "", err
		}
		line := head[start:]
		if !bytes.HasSuffix(line, []byte("\r\n")) {
			return "", problem("a line of the head ends with a bare LF")
		}
		if len(line) == 2 {
			return string(head), nil
		}
		start = len(head)
	}
}

// parseRequestHead reads a whole head. Every error is a problem: a reason to
// answer 400 and to close.
func parseRequestHead(text string, maxFields int) (*requestHead, error) {
	text, ok := strings.CutSuffix(text, "\r\n\r\n")
	if !ok {
		return nil, problem("the request head is not complete")
	}
	line, rest, _ := strings.Cut(text, "\r\n")
	h := &requestHead{length: -1}
	if err := h.readLine(line); err != nil {
		return nil, err
	}
	lines, err := parseFields(rest, maxFields)
	if err != nil {
		return nil, err
	}
	if err := h.readFields(lines); err != nil {
		return nil, err
	}
	return h, h.readTarget()
}

// readLine reads METHOD SP target SP HTTP/1.x (RFC 9112, 3).
func (h *requestHead) readLine(line string) error {
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	switch {
	case !isToken([]byte(method)) || len(method) > maxMethod:
		return problem("malformed method in the request line")
	case target == "" || !visible([]byte(target)):
		return problem("malformed request target")
	case version == "HTTP/1.1":
		h.minor = 1
	case version != "HTTP/1.0":
		return problem("the request line does not end with HTTP/1.1 or HTTP/1.0")
	}
	h.method, h.target = strings.ToUpper(method), target
	if messageMethod(h.method) {
		return problem("the method " + h.method + " is kept for messages on a WebSocket")
	}
	return nil
}

// parseFields reads header or trailer lines, without the empty one.
func parseFields(text string, most int) ([]field, error) {
	if text == "" {
		return nil, nil
	}
	if n := strings.Count(text, "\r\n") + 1; n > most {
		return nil, problem("more than " + strconv.Itoa(most) + " header fields")
	}
	fs := make([]field, 0, strings.Count(text, "\r\n")+1)
	for line := range strings.SplitSeq(text, "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		switch {
		case line != "" && (line[0] == ' ' || line[0] == '\t'):
			return nil, problem("a header field goes on in the next line (obs-fold)")
		case !ok || !isToken([]byte(name)):
			return nil, problem("malformed header field name")
		}
		if !fieldValue(value) {
			return nil, problem("control character in the header field " + name)
		}
		fs = append(fs, field{name, strings.Trim(value, " \t")})
	}
	return fs, nil
}

// fieldValue: RFC 9110, 5.5; bytes from 0x80 on are opaque.
func fieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// readFields takes out the fields that have a meaning on this connection only.
func (h *requestHead) readFields(lines []field) error {
	var options []string
	hosts, lengths, encodings := 0, 0, 0
	kept := lines[:0]
	for _, f := range lines {
		name := f.name
		if strings.IndexByte(name, '_') >= 0 {
			// Servers that hand fields on as variables read "_" as "-".
			name = strings.ReplaceAll(name, "_", "-")
			if framing(name) {
				return problem("the header field " + f.name + " can be taken for " + name)
			}
		}
		switch {
		case strings.EqualFold(name, "Host"):
			hosts++
			h.authority = f.value
		case strings.EqualFold(name, "Content-Length"):
			lengths++
			n, ok := parseLength(f.value)
			if !ok {
				return problem("malformed Content-Length")
			}
			h.length = n
		case strings.EqualFold(name, "Transfer-Encoding"):
			encodings++
			if !strings.EqualFold(f.value, "chunked") {
				return problem("a Transfer-Encoding other than chunked")
			}
			h.chunked = true
		case strings.EqualFold(name, "Connection"):
			options = append(options, tokens(f.value)...)
		case strings.EqualFold(name, "Upgrade"):
			if h.upgrade != "" {
				h.upgrade += ", "
			}
			h.upgrade += strings.ToLower(f.value)
			if f.value == "" {
				return problem("empty Upgrade field")
			}
		case strings.EqualFold(name, "TE"):
			h.trailers = h.trailers || slices.Contains(tokens(f.value), "trailers")
		case strings.EqualFold(name, "Expect"):
			if !strings.EqualFold(f.value, "100-continue") {
				return problem("an Expect other than 100-continue")
			}
			h.expects = h.minor == 1
		case hopByHop(name):
		default:
			kept = append(kept, f)
		}
	}
	switch {
	case hosts > 1:
		return problem("more than one Host field")
	case hosts == 0 && h.minor == 1:
		return problem("no Host field")
	case lengths > 1:
		return problem("more than one Content-Length field")
	case encodings > 1:
		return problem("more than one Transfer-Encoding field")
	case encodings == 1 && lengths == 1:
		return problem("both Content-Length and Transfer-Encoding")
	case encodings == 1 && h.minor == 0:
		return problem("Transfer-Encoding in an HTTP/1.0 request")
	}
	h.upgrades = slices.Contains(options, "upgrade")
	h.persists = h.minor == 1 && !slices.Contains(options, "close") || h.minor == 0 && slices.Contains(options, "keep-alive")
	h.expects = h.expects && h.hasBody()
	h.fields = withoutOptions(kept, options)
	return nil
}

// readTarget brings an absolute target into origin form. It has to name the
// same authority as the Host field: servers differ over which one counts.
func (h *requestHead) readTarget() error {
	if h.target[0] == '/' || h.target == "*" && h.method == "OPTIONS" || h.method == "CONNECT" {
		return nil
	}
	scheme, rest, ok := strings.Cut(h.target, "://")
	h.scheme = strings.ToLower(scheme)
	if !ok || h.scheme != "http" && h.scheme != "https" {
		return problem("malformed request target")
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if _, _, err := splitAuthority(authority); err != nil || authority == "" {
		return problem("malformed authority in the request target")
	}
	if h.authority == "" {
		h.authority = authority
	}
	if !strings.EqualFold(authority, h.authority) {
		return problem("the request target is for " + spoken(authority) + " and the Host field for " + spoken(h.authority))
	}
	h.target = rest[len(authority):]
	if h.target == "" || h.target[0] != '/' {
		h.target = "/" + h.target
	}
	return nil
}

// parseLength: 1*DIGIT, no sign, no list (RFC 9110, 8.6).
func parseLength(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// tokens splits a comma-separated list, in lower case.
func tokens(s string) []string {
	ts := strings.Split(strings.ToLower(s), ",")
	for i, t := range ts {
		ts[i] = strings.Trim(t, " \t")
	}
	return ts
}

// withoutOptions drops the fields that Connection names (RFC 9110, 7.6.1).
func withoutOptions(fs []field, options []string) []field {
	if len(options) == 0 {
		return fs
	}
	return slices.DeleteFunc(fs, func(f field) bool { return slices.Contains(options, strings.ToLower(f.name)) })
}

// framing: fields whose second reading would move the end of a message or
// change whom it is for.
func framing(name string) bool {
	return oneOf(name, "Host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer", "TE", "Expect")
}

// hopByHop: fields that end at Weir (RFC 9110, 7.6.1, and older usage).
func hopByHop(name string) bool {
	return oneOf(name, "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate",
		"TE", "Transfer-Encoding", "Upgrade", "HTTP2-Settings")
}

func oneOf(name string, names ...string) bool {
	for _, n := range names {
		if len(n) == len(name) && strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}
