package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// NewEncoder writes values to w as encoding/json does, an Event in the form of
// the API, each ended by a newline. Everything that a terminal could act on is
// escaped: besides the control characters that JSON itself escapes, those above
// 0x7e (C1 controls, text direction).
func NewEncoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(escaper{w})
	enc.SetEscapeHTML(false)
	return enc
}

// escaper escapes what does not print in the JSON that passes through it, which
// must come in whole characters, as an encoder writes it. There such characters
// occur in strings only, newlines of the layout aside.
type escaper struct{ w io.Writer }

func (e escaper) Write(text []byte) (int, error) {
	out := make([]byte, 0, len(text))
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	if _, err := e.w.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}

// Printable is s as it may be shown on a terminal: s itself when all of its
// characters print, else s in double quotes with escapes as in Go.
func Printable(s string) string {
	for i, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd") {
			return strconv.Quote(s)
		}
	}
	return s
}

// field is Printable for a part of a line: text from outside that has a space
// or a quote in it could pass for several parts, and is quoted as well.
func field(s string) string {
	if s == "" {
		return "-"
	}
	if strings.ContainsAny(s, " \"") {
		return strconv.Quote(s)
	}
	return Printable(s)
}

// Line is e as one line for a person, without a newline and without control
// characters, whatever a container put into it:
//
//	2026-05-01T12:00:00.000Z deny connect web api.example.com:443 (203.0.113.7) GET /x: no rule matched [default]
func Line(e Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s", e.Time.UTC().Format("2006-01-02T15:04:05.000Z07:00"), field(e.Verdict), field(string(e.Type)), field(container(e)))
	if to := destination(e); to != "" {
		b.WriteString(" " + field(to))
		if e.Host != "" && e.Address != "" {
			b.WriteString(" (" + field(e.Address) + ")")
		}
	}
	if e.Transport != "" && e.Transport != "tcp" {
		b.WriteString(" " + field(e.Transport))
	}
	if e.Method != "" || e.Path != "" {
		b.WriteString(" " + field(e.Method) + " " + field(e.Path))
	}
	for _, op := range e.Operations {
		name := op.Name
		if op.Persisted != "" {
			name = op.Persisted
		}
		b.WriteString(" " + field(op.Type) + ":" + field(name) + "{" + field(strings.Join(op.Fields, ",")) + "}")
	}
	if e.Binary != "" {
		b.WriteString(" by " + field(e.Binary))
	}
	if e.BytesIn != 0 || e.BytesOut != 0 {
		fmt.Fprintf(&b, " in=%d out=%d", e.BytesIn, e.BytesOut)
	}
	if e.DurationMS != 0 {
		fmt.Fprintf(&b, " %s", time.Duration(e.DurationMS)*time.Millisecond)
	}
	b.WriteString(": " + Printable(e.Reason))
	if e.Layer != "" {
		b.WriteString(" [" + strings.TrimSpace(Printable(e.Layer)+" "+Printable(e.RuleID)) + "]")
	}
	if e.Would != nil {
		b.WriteString(" (enforced: " + field(e.Would.Verdict) + ", " + Printable(e.Would.Reason) + ")")
	}
	return b.String()
}

// container is the name of an event's container, or the short form of its id.
func container(e Event) string {
	if e.ContainerName != "" {
		return e.ContainerName
	}
	return e.ContainerID[:min(12, len(e.ContainerID))]
}

func destination(e Event) string {
	to := e.Host
	if to == "" {
		to = e.Address
	}
	if e.Port == 0 {
		return to
	}
	return net.JoinHostPort(to, strconv.Itoa(int(e.Port)))
}
