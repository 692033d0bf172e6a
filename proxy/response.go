package proxy

import (
	"bufio"
	"slices"
	"strconv"
	"strings"
)

// A responseHead is the head of an HTTP/1 response.
type responseHead struct {
	status  int
	reason  string
	fields  []field // end to end, without those that frame the body
	length  int64   // -1 when not said
	chunked bool
	closes  bool // the server closes the connection after it
	options []string
	upgrade string // lower case
}

// parseResponseHead reads a whole head. Every error is a problem.
func parseResponseHead(text string, maxFields int) (*responseHead, error) {
	text, ok := strings.CutSuffix(text, "\r\n\r\n")
	if !ok {
		return nil, problem("the head is not complete")
	}
	line, rest, _ := strings.Cut(text, "\r\n")
	version, line, _ := strings.Cut(line, " ")
	code, reason, _ := strings.Cut(line, " ")
	status, err := strconv.ParseUint(code, 10, 16)
	if version != "HTTP/1.1" && version != "HTTP/1.0" || len(code) != 3 || err != nil || status < 100 || !fieldValue(reason) {
		return nil, problem("malformed status line")
	}
	lines, err := parseFields(rest, maxFields)
	if err != nil {
		return nil, err
	}
	h := &responseHead{status: int(status), reason: reason, length: -1}
	kept := lines[:0]
	for _, f := range lines {
		switch {
		case strings.EqualFold(f.name, "Content-Length"):
			n, ok := parseLength(f.value)
			if !ok || h.length >= 0 && h.length != n {
				return nil, problem("malformed Content-Length")
			}
			h.length = n
		case strings.EqualFold(f.name, "Transfer-Encoding"):
			if h.chunked || !strings.EqualFold(f.value, "chunked") {
				return nil, problem("a Transfer-Encoding other than chunked")
			}
			h.chunked = true
		case strings.EqualFold(f.name, "Connection"):
			h.options = append(h.options, tokens(f.value)...)
		case strings.EqualFold(f.name, "Upgrade"):
			h.upgrade = strings.ToLower(f.value)
		case hopByHop(f.name) && !strings.EqualFold(f.name, "Proxy-Authenticate"):
		default:
			kept = append(kept, f)
		}
	}
	if h.chunked && version == "HTTP/1.0" {
		return nil, problem("Transfer-Encoding in HTTP/1.0")
	}
	if h.chunked && h.length >= 0 {
		return nil, problem("both Content-Length and Transfer-Encoding")
	}
	h.closes = slices.Contains(h.options, "close") || version == "HTTP/1.0" && !slices.Contains(h.options, "keep-alive")
	h.fields = withoutOptions(kept, h.options)
	return h, nil
}

// write writes the head with extra fields.
func (h *responseHead) write(w *bufio.Writer, extra []field) {
	w.WriteString("HTTP/1.1 ")
	w.WriteString(strconv.Itoa(h.status))
	w.WriteByte(' ')
	w.WriteString(h.reason)
	w.WriteString("\r\n")
	for _, f := range h.fields {
		writeField(w, f)
	}
	for _, f := range extra {
		writeField(w, f)
	}
	w.WriteString("\r\n")
}
