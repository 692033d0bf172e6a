package policytest

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"weir/proxy"
)

// sent is one request, or one WebSocket message, as the relay has read it.
type sent struct {
	proxy.RawRequest
	problem string // why it could not be read; "" when it was
}

// requests are what the connection carries; none when the case is about the
// connection alone.
func (r request) requests() ([]sent, error) {
	body, err := r.body()
	if err != nil {
		return nil, err
	}
	if r.Raw != "" {
		if r.Method != "" || r.Target != "" || r.Headers != nil || len(body) > 0 {
			return nil, errors.New("raw stands in the place of method, target, headers and body")
		}
		return readRaw(r.Raw)
	}
	if r.Method == "" {
		return nil, nil
	}
	one := sent{RawRequest: proxy.RawRequest{Method: r.Method, Target: cmp.Or(r.Target, "/"), Body: body}}
	if one.Header, err = header(r.Headers); err != nil {
		return nil, fmt.Errorf("headers: %w", err)
	}
	one.Authority = one.Header.Get("Host")
	one.Upgrade = strings.ToLower(strings.Join(one.Header.Values("Upgrade"), ", "))
	if len(one.Header.Values("Host")) > 1 {
		one.problem = "malformed request: more than one Host field"
	}
	return []sent{one}, nil
}

// header reads a mapping, or a list of [name, value] pairs.
func header(written any) (http.Header, error) {
	h := http.Header{}
	add := func(name, value any) error {
		switch value.(type) {
		case []any, map[string]any, nil:
			return fmt.Errorf("%v: want text; several lines of one name are a list of [name, value] pairs", name)
		}
		h.Add(fmt.Sprint(name), fmt.Sprint(value))
		return nil
	}
	switch w := written.(type) {
	case nil:
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(w)) {
			if err := add(name, w[name]); err != nil {
				return nil, err
			}
		}
	case []any:
		for _, item := range w {
			pair, ok := item.([]any)
			if !ok || len(pair) != 2 {
				return nil, fmt.Errorf("%v: want [name, value]", item)
			}
			if err := add(pair[0], pair[1]); err != nil {
				return nil, err
			}
		}
	default:
		return nil, fmt.Errorf("%v: want a mapping, or a list of [name, value] pairs", written)
	}
	return h, nil
}

// maxRawBody bounds the body of a raw request; every endpoint's own limit is
// below it.
const maxRawBody = 64 << 20

// readRaw reads requests from bytes, as the relay does, one after the other.
func readRaw(raw string) (all []sent, err error) {
	text := wire(raw)
	// All of it in one buffer, so that what is left over can be looked at.
	in := bufio.NewReaderSize(strings.NewReader(text), max(len(text), 4096))
	for {
		read, err := proxy.ReadRawRequest(in, maxRawBody)
		var bad *proxy.MalformedRequest
		switch {
		case errors.As(err, &bad):
			return append(all, sent{problem: bad.Error()}), nil
		case err != nil:
			return nil, err
		}
		all = append(all, sent{RawRequest: *read})
		rest, _ := in.Peek(in.Buffered())
		// The line break that ends a block of YAML is no request.
		if strings.Trim(string(rest), "\r\n") == "" {
			return all, nil
		}
	}
}

// wire makes the bytes on the wire of a raw request. Text with any CR in it is
// taken as it is. A block of YAML (raw: |) cannot hold one, and loses the empty
// lines at its end: there a line feed in a head, or in a chunked body, stands
// for CR LF, and a head that is all there is gets the empty line that ends it.
func wire(raw string) string {
	if strings.Contains(raw, "\r") {
		return raw
	}
	head, body, ends := strings.Cut(raw, "\n\n")
	if !ends {
		head = strings.TrimSuffix(head, "\n")
	}
	switch lower := strings.ToLower(head); {
	case strings.Contains(lower, "\ntransfer-encoding:"):
		if !strings.HasSuffix(body, "\n\n") {
			body += "\n" // the end of the last chunk, which YAML took
		}
		body = strings.ReplaceAll(body, "\n", "\r\n")
	case body != "" && !strings.Contains(lower, "\ncontent-length:"):
		body = wire(body) // no body, so another request
	}
	return strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n" + body
}
