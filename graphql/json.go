package graphql

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth limits the nesting of JSON and of GraphQL documents, in levels.
const maxDepth = 128

// A reader reads one JSON text by the letter of RFC 8259 and writes it anew,
// without insignificant space, as it goes. It exists because encoding/json
// takes duplicate keys, keys of another case, invalid UTF-8 and half
// surrogates, each of which another reader may understand differently.
// Numbers and the order of members are kept as they came.
type reader struct {
	text  string // valid UTF-8
	pos   int
	depth int
	out   []byte
}

func (r *reader) fail(problem string) error {
	if r.pos >= len(r.text) {
		return refuse(InvalidJSON, "JSON ends early: %s", problem)
	}
	return refuse(InvalidJSON, "JSON at byte %d: %s", r.pos, problem)
}

// peek skips space and returns the next byte, or 0 at the end.
func (r *reader) peek() byte {
	for ; r.pos < len(r.text); r.pos++ {
		switch c := r.text[r.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// end makes sure that nothing but space follows.
func (r *reader) end() error {
	if r.peek(); r.pos < len(r.text) {
		return refuse(TrailingBytes, "JSON at byte %d: %d more bytes after the end", r.pos, len(r.text)-r.pos)
	}
	return nil
}

// value reads any value.
func (r *reader) value() error {
	switch c := r.peek(); {
	case c == '{':
		return r.object(func(string) (bool, error) { return true, r.value() })
	case c == '[':
		return r.array(r.value)
	case c == '"':
		s, err := r.string()
		r.out = appendString(r.out, s)
		return err
	case c == '-' || c >= '0' && c <= '9':
		return r.number()
	}
	for _, word := range [...]string{"null", "true", "false"} {
		if strings.HasPrefix(r.text[r.pos:], word) {
			r.pos += len(word)
			r.out = append(r.out, word...)
			return nil
		}
	}
	return r.fail("a value should be here")
}

// enter steps over the bracket that opens an object or an array.
func (r *reader) enter() error {
	if r.depth++; r.depth > maxDepth {
		return refuse(TooDeep, "JSON at byte %d: more than %d levels", r.pos, maxDepth)
	}
	r.out = append(r.out, r.text[r.pos])
	r.pos++
	return nil
}

// next steps over what separates two members or elements, or over the closing
// bracket; more says which.
func (r *reader) next(closing byte, first bool) (more bool, err error) {
	switch c := r.peek(); {
	case c == closing:
		r.pos++
		r.depth--
		return false, nil
	case first:
		return true, nil
	case c == ',':
		r.pos++
		return true, nil
	}
	return false, r.fail("',' or '" + string(closing) + "' should be here")
}

// object reads an object. member reads one value and says whether the member
// is written. A key may not come twice, however it is escaped.
func (r *reader) object(member func(key string) (keep bool, err error)) error {
	if err := r.enter(); err != nil {
		return err
	}
	start := len(r.out)
	var seen keys
	for first := true; ; first = false {
		more, err := r.next('}', first)
		if err != nil {
			return err
		}
		if !more {
			r.out = append(r.out, '}')
			return nil
		}
		if r.peek() != '"' {
			return r.fail("a key should be here")
		}
		key, err := r.string()
		if err != nil {
			return err
		}
		if seen.add(key) {
			what := "a key"
			if isControl(key) { // any other may be data
				what = "key " + quote(key)
			}
			return refuse(DuplicateKey, "JSON at byte %d: %s comes twice in one object", r.pos, what)
		}
		if r.peek() != ':' {
			return r.fail("':' should be here")
		}
		r.pos++

		mark := len(r.out)
		if mark > start {
			r.out = append(r.out, ',')
		}
		r.out = append(appendString(r.out, key), ':')
		keep, err := member(key)
		if err != nil {
			return err
		}
		if !keep {
			r.out = r.out[:mark]
		}
	}
}

// keys are those of one object: a short list, of which most objects need no
// more, and beyond it a map.
type keys struct {
	few  [8]string
	n    int
	many map[string]struct{}
}

// add reports whether key was there already.
func (k *keys) add(key string) (twice bool) {
	if k.many == nil {
		if slices.Contains(k.few[:k.n], key) {
			return true
		}
		if k.n < len(k.few) {
			k.few[k.n] = key
			k.n++
			return false
		}
		k.many = make(map[string]struct{}, 4*len(k.few))
		for _, few := range k.few {
			k.many[few] = struct{}{}
		}
	}
	before := len(k.many)
	k.many[key] = struct{}{}
	return len(k.many) == before
}

// array reads an array, calling element for each value.
func (r *reader) array(element func() error) error {
	if err := r.enter(); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := r.next(']', first)
		if err != nil {
			return err
		}
		if !more {
			r.out = append(r.out, ']')
			return nil
		}
		if !first {
			r.out = append(r.out, ',')
		}
		if err := element(); err != nil {
			return err
		}
	}
}

// number copies a number digit by digit: no float64 comes between.
func (r *reader) number() error {
	start := r.pos
	r.accept("-")
	if !r.accept("0") && !r.digits() {
		return r.fail("a digit should be here")
	}
	if r.accept(".") && !r.digits() {
		return r.fail("a digit should be here")
	}
	if r.accept("eE") {
		r.accept("+-")
		if !r.digits() {
			return r.fail("a digit should be here")
		}
	}
	r.out = append(r.out, r.text[start:r.pos]...)
	return nil
}

func (r *reader) accept(any string) bool {
	if r.pos < len(r.text) && strings.IndexByte(any, r.text[r.pos]) >= 0 {
		r.pos++
		return true
	}
	return false
}

func (r *reader) digits() bool {
	start := r.pos
	for r.pos < len(r.text) && r.text[r.pos] >= '0' && r.text[r.pos] <= '9' {
		r.pos++
	}
	return r.pos > start
}

// string reads a string and returns what it means. It writes nothing.
func (r *reader) string() (string, error) {
	r.pos++ // the quote
	start := r.pos
	var decoded strings.Builder // empty while there is no escape
	for ; r.pos < len(r.text); r.pos++ {
		switch c := r.text[r.pos]; {
		case c == '"':
			run := r.text[start:r.pos]
			r.pos++
			if decoded.Len() == 0 {
				return run, nil
			}
			decoded.WriteString(run)
			return decoded.String(), nil
		case c < 0x20:
			return "", r.fail("a control character must be escaped")
		case c == '\\':
			if decoded.Len() == 0 {
				decoded.Grow(r.pos - start + max(strings.IndexByte(r.text[r.pos:], '"'), utf8.UTFMax))
			}
			decoded.WriteString(r.text[start:r.pos])
			char, err := r.escape()
			if err != nil {
				return "", err
			}
			decoded.WriteRune(char)
			start = r.pos + 1
		}
	}
	return "", r.fail("a string is not closed")
}

// escape reads what follows a backslash and stops on its last byte.
func (r *reader) escape() (rune, error) {
	if r.pos++; r.pos >= len(r.text) {
		return 0, r.fail("a string is not closed")
	}
	switch c := r.text[r.pos]; c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		char, err := r.hex()
		if err != nil || !utf16.IsSurrogate(char) {
			return char, err
		}
		if !strings.HasPrefix(r.text[r.pos+1:], `\u`) {
			return 0, r.fail("half of a surrogate pair")
		}
		r.pos += 2
		low, err := r.hex()
		if err != nil {
			return 0, err
		}
		if char = utf16.DecodeRune(char, low); char == utf8.RuneError {
			return 0, r.fail("half of a surrogate pair")
		}
		return char, nil
	}
	return 0, r.fail("unknown escape in a string")
}

// hex reads the four digits after \u and stops on the last.
func (r *reader) hex() (rune, error) {
	if r.pos+4 >= len(r.text) {
		return 0, r.fail("\\u needs four hexadecimal digits")
	}
	v, err := strconv.ParseUint(r.text[r.pos+1:r.pos+5], 16, 16)
	if err != nil {
		return 0, r.fail("\\u needs four hexadecimal digits")
	}
	r.pos += 4
	return rune(v), nil
}

// appendString writes a JSON string with as few escapes as RFC 8259 allows.
func appendString(out []byte, s string) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		out = append(out, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\n':
			out = append(out, '\\', 'n')
		case '\r':
			out = append(out, '\\', 'r')
		case '\t':
			out = append(out, '\\', 't')
		default:
			out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(append(out, s[start:]...), '"')
}
