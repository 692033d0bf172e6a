package rules

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// maxPath bounds the path of a request target, in bytes as sent.
const maxPath = 4096

// target is a request target that was taken apart: what is judged, and the
// text to send, which every server takes apart in the same way.
type target struct {
	// path is decoded once and resolved. A slash that was encoded stays
	// "%2F" in it.
	path string
	// slashed is path with encoded slashes decoded too, for denials: some
	// servers take them for separators. "" when there are none.
	slashed string
	// bare is path without the slash it ends in, for denials: many servers
	// take the two for the same. "" when it does not end in one.
	bare string
	// literalEscape: after decoding, path holds "%2F" as text, as if it were
	// an encoded slash that was kept.
	literalEscape bool
	query         url.Values
	text          string
}

// parseTarget reads a request target in origin form (RFC 9112 3.2.1): a path
// and perhaps a query. Whatever two servers could read in two ways is either
// resolved or refused. Its text is a fixed point: parsed again it gives the
// same target.
func parseTarget(raw string) (target, error) {
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c <= 0x20 || c >= 0x7f:
			return target{}, fmt.Errorf("it contains the byte %#02x, which has to be percent-encoded", c)
		case c == '#':
			return target{}, errors.New(`it contains a fragment ("#")`)
		}
	}
	path, query, hasQuery := strings.Cut(raw, "?")
	if !strings.HasPrefix(path, "/") {
		return target{}, errors.New(`it does not start with "/"`)
	}
	if len(path) > maxPath {
		return target{}, fmt.Errorf("its path is %d bytes long, more than %d", len(path), maxPath)
	}
	segments, err := resolvePath(path)
	if err != nil {
		return target{}, err
	}
	t := target{}
	t.setPath(segments)
	if hasQuery {
		text, values, err := parseQuery(query)
		if err != nil {
			return target{}, err
		}
		t.query = values
		if text != "" {
			t.text += "?" + text
		}
	}
	return t, nil
}

// resolvePath returns the decoded segments of a path; the last one is "" when
// the path names a directory. A segment holds a "/" where it was encoded.
func resolvePath(path string) ([]string, error) {
	raw := strings.Split(path[1:], "/")
	var out []string
	for i, r := range raw {
		r, _, _ = strings.Cut(r, ";")
		segment, err := unescape(r, false)
		if err != nil {
			return nil, fmt.Errorf("its path %w", err)
		}
		if err := checkSegment(segment); err != nil {
			return nil, err
		}
		switch segment {
		case "", ".":
		case "..":
			if len(out) == 0 {
				return nil, errors.New(`its path climbs above the root with ".."`)
			}
			out = out[:len(out)-1]
		default:
			out = append(out, segment)
			continue
		}
		if i == len(raw)-1 {
			out = append(out, "")
		}
	}
	return out, nil
}

func checkSegment(s string) error {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < 0x20 || c == 0x7f:
			return fmt.Errorf("its path contains the control character %%%02X", c)
		case c == '\\':
			return errors.New("its path contains a backslash, which some servers take for a slash")
		}
	}
	if !utf8.ValidString(s) {
		return errors.New("its path is not UTF-8 after decoding")
	}
	if !strings.Contains(s, "/") {
		return nil
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("its path hides %q behind an encoded slash", part)
		}
	}
	return nil
}

func (t *target) setPath(segments []string) {
	var judged, slashed, text strings.Builder
	for _, s := range segments {
		if strings.Contains(strings.ToLower(s), "%2f") {
			t.literalEscape = true
		}
		judged.WriteString("/" + strings.ReplaceAll(s, "/", "%2F"))
		slashed.WriteString("/" + s)
		text.WriteByte('/')
		escape(&text, s, pathSafe)
	}
	t.path, t.text = judged.String(), text.String()
	if s := slashed.String(); s != t.path {
		t.slashed = s
	}
	if bare, ends := strings.CutSuffix(t.path, "/"); ends {
		t.bare = bare
	}
}

// could reports whether some server may take the path for one that matches a
// pattern from normalPathGlob.
func (t *target) could(pattern string) bool {
	if matchPath(pattern, t.path) || t.bare != "" && matchPath(pattern, t.bare) {
		return true
	}
	return t.slashed != "" && (matchPath(pattern, t.slashed) || matchPath(pattern, strings.TrimSuffix(t.slashed, "/")))
}

// parseQuery returns the query re-serialised and its values. Spaces become
// %20 and semicolons are encoded, because servers differ over "+" and ";".
func parseQuery(raw string) (string, url.Values, error) {
	var text strings.Builder
	values := url.Values{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		k, v, hasValue := strings.Cut(pair, "=")
		key, err := unescape(k, true)
		if err != nil {
			return "", nil, fmt.Errorf("its query %w", err)
		}
		value, err := unescape(v, true)
		if err != nil {
			return "", nil, fmt.Errorf("its query %w", err)
		}
		values[key] = append(values[key], value)
		if text.Len() > 0 {
			text.WriteByte('&')
		}
		escape(&text, key, querySafe)
		if hasValue {
			text.WriteByte('=')
			escape(&text, value, querySafe)
		}
	}
	return text.String(), values, nil
}

func unescape(s string, plus bool) (string, error) {
	if !strings.Contains(s, "%") && !(plus && strings.Contains(s, "+")) {
		return s, nil
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+' && plus:
			out.WriteByte(' ')
		case s[i] != '%':
			out.WriteByte(s[i])
		case i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]):
			return "", errors.New("has a bad percent escape")
		default:
			out.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		}
	}
	return out.String(), nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// What need not be encoded (RFC 3986 3.3 and 3.4), less what has a meaning of
// its own: ";" in a path, "+", ";", "&" and "=" in a query.
const (
	pathSafe  = "-._~!$&'()*+,=:@"
	querySafe = "-._~!$'()*,:@/?"
)

func escape(out *strings.Builder, s, safe string) {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		if '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || strings.IndexByte(safe, c) >= 0 {
			out.WriteByte(c)
			continue
		}
		out.WriteByte('%')
		out.WriteByte(hex[c>>4])
		out.WriteByte(hex[c&15])
	}
}
