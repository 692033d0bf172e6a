package learn

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A sheet is a YAML document that is being written.
type sheet struct{ strings.Builder }

// line writes one line at an indentation, in steps of two spaces.
func (s *sheet) line(indent int, format string, args ...any) {
	s.WriteString(strings.Repeat("  ", indent))
	fmt.Fprintf(&s.Builder, format, args...)
	s.WriteByte('\n')
}

// list writes a list of values as one line.
func (s *sheet) list(indent int, key string, values []string) {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = scalar(v)
	}
	s.line(indent, "%s: [%s]", key, strings.Join(quoted, ", "))
}

// plain is text that no reader of YAML takes for anything but text, in a flow
// list either.
var plain = regexp.MustCompile(`^[A-Za-z/_][A-Za-z0-9/_.-]*$`)

// words are what readers of YAML, of one version or another, take for values
// of other types.
var words = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}

// scalar is s as YAML, in double quotes unless it needs none.
func scalar(s string) string {
	if plain.MatchString(s) && !slices.Contains(words, strings.ToLower(s)) {
		return s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return strconv.QuoteToASCII(s) // a string always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// seen counts what an entry of a policy was learned from.
type seen struct {
	count int
	last  time.Time
}

func (s *seen) add(o *Observation) {
	s.count += o.Count
	if o.Last.After(s.last) {
		s.last = o.Last
	}
}

// comment is what an entry's comment says: "12 connections, last 2026-05-01T12:00:00Z".
func (s seen) comment(what string) string {
	return fmt.Sprintf("# %s, last %s", plural(s.count, what), s.last.UTC().Format(time.RFC3339))
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}
