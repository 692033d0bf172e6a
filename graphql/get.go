package graphql

import (
	"net/url"
	"slices"
	"strings"
)

// A parameter is one of a URL's, unescaped.
type parameter struct {
	key, value string
	bare       bool // written without "="
	control    bool
}

// readParameters splits a query string as the WHATWG URL standard does: at "&"
// only, with "+" for a space.
func readParameters(raw string) ([]parameter, error) {
	var params []parameter
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		key, value, found := strings.Cut(part, "=")
		key, err := unescape(key)
		if err != nil {
			return nil, err
		}
		if value, err = unescape(value); err != nil {
			return nil, err
		}
		p := parameter{key: key, value: value, bare: !found, control: isControl(key)}
		if !p.control {
			// Servers that read "query[]", "extensions[persistedQuery]" or
			// " query" fold them into the control parameter.
			stem, _, _ := strings.Cut(key, "[")
			stem, _, _ = strings.Cut(stem, ".")
			stem, _, _ = strings.Cut(stem, "\x00")
			stem = strings.TrimSpace(stem)
			if isControl(stem) {
				return nil, refuse(KeyVariant, "a parameter that some servers read as %q: write it plainly", stem)
			}
			if err := checkVariant(stem, isControl); err != nil {
				return nil, err
			}
		}
		params = append(params, p)
	}
	return params, nil
}

// InURL reports whether a URL's query string carries a request, or a part of
// one, or what some server could take for that. A request that is something
// else by its header, an upgrade say, is then two things at once.
func InURL(rawQuery string) bool {
	params, err := readParameters(rawQuery)
	if err != nil {
		return true
	}
	return slices.ContainsFunc(params, func(p parameter) bool { return p.control })
}

func unescape(s string) (string, error) {
	v, err := url.QueryUnescape(s)
	if err != nil {
		return "", refuse(InvalidEscape, "query string with a bad percent escape")
	}
	return v, nil
}

// encodeParameters writes a query string that every server reads alike: a
// space is %20, and a semicolon, which some take for "&", is escaped.
func encodeParameters(params []parameter) string {
	var b strings.Builder
	for i, p := range params {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(escape(p.key))
		if !p.bare {
			b.WriteByte('=')
			b.WriteString(escape(p.value))
		}
	}
	return b.String()
}

func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// parseGet reads the operation from a URL's parameters. Those that are not
// control parameters are kept: keys and tenants travel there.
func parseGet(params []parameter, read documentReader) (Result, error) {
	var e envelope
	var kept []parameter
	seen := map[string]bool{}
	for _, p := range params {
		if !p.control {
			kept = append(kept, p)
			continue
		}
		if seen[p.key] {
			return Result{}, refuse(DuplicateParameter, "parameter %q comes twice in the URL", p.key)
		}
		seen[p.key] = true
		if p.value == "" {
			continue
		}
		if err := checkText([]byte(p.value)); err != nil {
			return Result{}, err
		}
		if p.key == keyVariables || p.key == keyExtensions {
			r := &reader{text: p.value}
			r.peek()
			there, err := r.parameterObject(p.key, &e)
			if err != nil {
				return Result{}, err
			}
			if !there {
				continue
			}
			p.value = string(r.out)
		} else {
			e.set(p.key, p.value)
		}
		kept = append(kept, p)
	}
	if len(seen) == 0 {
		return Result{}, refuse(EmptyRequest, "GET without a query parameter")
	}
	op, err := e.operation(read)
	if err != nil {
		return Result{}, err
	}
	return Result{Operations: []Operation{op}, RawQuery: encodeParameters(kept)}, nil
}

// parameterObject reads the JSON of one parameter, all of it.
func (r *reader) parameterObject(key string, e *envelope) (there bool, err error) {
	if key == keyExtensions {
		there, err = readExtensions(r, e)
	} else {
		there, err = r.optionalObject(key, func(string) (bool, error) { return true, r.value() })
	}
	if err != nil {
		return false, err
	}
	return there, r.end()
}
