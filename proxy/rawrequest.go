package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
)

// A RawRequest is one HTTP/1 request as the relay reads it.
type RawRequest struct {
	Method    string // upper case
	Target    string // in origin form; what the policy makes of it is not applied
	Authority string // the Host field; "" only in HTTP/1.0
	Upgrade   string // lower case, "" without one
	// Header are the end-to-end fields: without Host, those that frame the
	// body, and those that end at the next hop.
	Header http.Header
	Body   []byte
}

// ReadRawRequest reads one HTTP/1 request exactly as the relay does, with the
// default limits, and at most maxBody bytes of its body. The error of a
// request that the relay would answer with 400 has a MalformedRequest in it.
func ReadRawRequest(r io.Reader, maxBody int) (*RawRequest, error) {
	limits := RelayLimits{}.withDefaults()
	br := bufio.NewReader(r)
	text, err := readHead(br, limits.HeaderBytes, func() {})
	if err != nil {
		return nil, rawError(err)
	}
	head, err := parseRequestHead(text, limits.Fields)
	if err != nil {
		return nil, rawError(err)
	}
	raw := &RawRequest{Method: head.method, Target: head.target, Authority: head.authority, Upgrade: head.upgrade, Header: make(http.Header)}
	for _, f := range head.fields {
		raw.Header.Add(f.name, f.value)
	}
	b := &body{br: br, left: max(head.length, 0), chunked: head.chunked, limits: &limits}
	if raw.Body, err = io.ReadAll(io.LimitReader(b, int64(maxBody)+1)); err != nil {
		return nil, rawError(err)
	}
	if len(raw.Body) > maxBody {
		return nil, fmt.Errorf("the body of the raw request is longer than %d bytes: %w", maxBody, os.ErrInvalid)
	}
	return raw, nil
}

// A MalformedRequest says why the relay answers a request with 400 and closes
// the connection.
type MalformedRequest struct{ Reason string }

func (m *MalformedRequest) Error() string { return "malformed request: " + m.Reason }

func rawError(err error) error {
	switch bad, ok := err.(problem); {
	case ok:
		return &MalformedRequest{string(bad)}
	case err == io.EOF:
		return &MalformedRequest{"the request is empty"}
	case err == io.ErrUnexpectedEOF:
		return &MalformedRequest{"the request breaks off"}
	}
	return err
}
