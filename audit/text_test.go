package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"weir/graphql"
)

// samples has an event of every kind, with all that such an event can have.
func samples() map[string]Event {
	at := time.Date(2026, 5, 1, 12, 0, 0, 123_000_000, time.UTC)
	base := Event{
		ID: 1777636800123000, Time: at, ContainerID: strings.Repeat("ab", 32), ContainerName: "web", SessionID: "s1",
		Verdict: "deny", Layer: "default", Reason: "no rule matched",
		Host: "api.example.com", Address: "203.0.113.7", Port: 443, Transport: "tcp", Binary: "/usr/bin/curl",
	}
	with := func(change func(*Event)) Event {
		e := base
		change(&e)
		return e
	}
	return map[string]Event{
		"connect-deny": with(func(e *Event) { e.Type = Connect }),
		"connect-allow": with(func(e *Event) {
			e.Type, e.Verdict, e.Layer, e.RuleID, e.Reason = Connect, "allow", "global", "r7", "allow *.example.com"
			e.BytesIn, e.BytesOut, e.DurationMS = 2048, 512, 1500
		}),
		"connect-learned": with(func(e *Event) {
			e.Type, e.Verdict, e.Layer, e.Reason = Connect, "allow", "allow_all", "learning mode"
			e.Host, e.Address = "", "2001:db8::7"
			e.Would = &Would{Verdict: "deny", RuleID: "r9", Reason: "no rule matched"}
		}),
		"dns-deny": with(func(e *Event) {
			e.Type, e.Address, e.Port, e.Transport, e.Binary = DNS, "", 0, "udp", ""
		}),
		"dns-allow": with(func(e *Event) {
			e.Type, e.Verdict, e.Layer, e.RuleID, e.Port, e.Transport = DNS, "allow", "session", "r2", 0, "udp"
		}),
		"http-deny": with(func(e *Event) {
			e.Type, e.Method, e.Path = HTTP, "DELETE", "/repos/a/b?force=true"
		}),
		"http-odd-method": with(func(e *Event) {
			e.Type, e.Method, e.Path, e.Verdict = HTTP, "PROPFIND", "/", "allow"
		}),
		"graphql-deny": with(func(e *Event) {
			e.Type, e.Method, e.Path = GraphQL, "POST", "/graphql"
			e.Operations = []graphql.Operation{{Type: "mutation", Name: "Drop", Fields: []string{"deleteRepository", "viewer"}}, {Persisted: "abc"}}
		}),
		"limit": with(func(e *Event) { e.Type, e.Layer, e.Reason = Limit, "", "more than 1000 connections" }),
		"tamper": with(func(e *Event) {
			e.Type, e.Verdict, e.Layer, e.Reason = Tamper, "", "", "ruleset was flushed and is back"
		}),
		"ask": with(func(e *Event) {
			e.Type, e.Verdict, e.Layer, e.Address, e.Reason = Ask, "", "asked", "", "question q-1: no rule matched"
		}),
		"ask-answered": with(func(e *Event) {
			e.Type, e.Verdict, e.Layer, e.Reason = Ask, "allow", "asked", "question q-1: allowed once by root"
		}),
		"lifecycle": {ID: 5, Time: at, Type: Lifecycle, Reason: "weir started"},
	}
}

func TestLine(t *testing.T) {
	want := map[string]string{
		"connect-deny":    "2026-05-01T12:00:00.123Z deny connect web api.example.com:443 (203.0.113.7) by /usr/bin/curl: no rule matched [default]",
		"connect-allow":   "2026-05-01T12:00:00.123Z allow connect web api.example.com:443 (203.0.113.7) by /usr/bin/curl in=2048 out=512 1.5s: allow *.example.com [global r7]",
		"connect-learned": "2026-05-01T12:00:00.123Z allow connect web [2001:db8::7]:443 by /usr/bin/curl: learning mode [allow_all] (enforced: deny, no rule matched)",
		"dns-deny":        "2026-05-01T12:00:00.123Z deny dns web api.example.com udp: no rule matched [default]",
		"dns-allow":       "2026-05-01T12:00:00.123Z allow dns web api.example.com (203.0.113.7) udp by /usr/bin/curl: no rule matched [session r2]",
		"http-deny":       "2026-05-01T12:00:00.123Z deny http web api.example.com:443 (203.0.113.7) DELETE /repos/a/b?force=true by /usr/bin/curl: no rule matched [default]",
		"http-odd-method": "2026-05-01T12:00:00.123Z allow http web api.example.com:443 (203.0.113.7) PROPFIND / by /usr/bin/curl: no rule matched [default]",
		"graphql-deny":    "2026-05-01T12:00:00.123Z deny graphql web api.example.com:443 (203.0.113.7) POST /graphql mutation:Drop{deleteRepository,viewer} -:abc{-} by /usr/bin/curl: no rule matched [default]",
		"limit":           "2026-05-01T12:00:00.123Z deny limit web api.example.com:443 (203.0.113.7) by /usr/bin/curl: more than 1000 connections",
		"tamper":          "2026-05-01T12:00:00.123Z - tamper web api.example.com:443 (203.0.113.7) by /usr/bin/curl: ruleset was flushed and is back",
		"ask":             "2026-05-01T12:00:00.123Z - ask web api.example.com:443 by /usr/bin/curl: question q-1: no rule matched [asked]",
		"ask-answered":    "2026-05-01T12:00:00.123Z allow ask web api.example.com:443 (203.0.113.7) by /usr/bin/curl: question q-1: allowed once by root [asked]",
		"lifecycle":       "2026-05-01T12:00:00.123Z - lifecycle -: weir started",
	}
	got := map[string]string{}
	for name, e := range samples() {
		got[name] = Line(e)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("lines (-want +got):\n%s", d)
	}
}

// hostile fills every text of an event, however deep, with s.
func hostile(v reflect.Value, s string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(s)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			hostile(v.Field(i), s)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		hostile(v.Elem(), s)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			hostile(v.Index(i), s)
		}
	}
}

func TestNoControlCharacterComesThrough(t *testing.T) {
	for _, s := range []string{
		"a\nb", "a\rb", "\x1b[2J", "\x1b]0;title\a", "\u009b31m", "a\x00b", "a\x7fb", "\u202egnp", "\u200b", "\u2028",
		"\xff\x9b31m", "\U000e0041", "\ufeff", `back\slash "quoted"`,
	} {
		var e Event
		hostile(reflect.ValueOf(&e).Elem(), s)
		line := Line(e)
		for _, r := range line {
			if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
				t.Errorf("Line with %q: %q", s, line)
				break
			}
		}
		var b bytes.Buffer
		if err := NewEncoder(&b).Encode(e); err != nil {
			t.Fatal(err)
		}
		body, newline := strings.CutSuffix(b.String(), "\n")
		if !newline || strings.ContainsFunc(body, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("JSON with %q: %q", s, body)
		}
		var back Event
		if err := json.Unmarshal(b.Bytes(), &back); err != nil {
			t.Fatal(err)
		}
		if want := string([]rune(s)); back.Host != want {
			t.Errorf("host %q came back as %q", want, back.Host)
		}
	}
}

func TestLineCannotBeForged(t *testing.T) {
	e := Event{Type: Connect, Verdict: "deny", ContainerName: "web", Host: `x allow connect "db`, Reason: "no rule"}
	if got, want := Line(e), `deny connect web "x allow connect \"db": no rule`; !strings.HasSuffix(got, want) {
		t.Errorf("Line = %s, want an end of %s", got, want)
	}
	e = Event{Type: Connect, Host: "a\ufffdb", Reason: "ok"}
	if got := Line(e); !strings.Contains(got, "a\ufffdb") {
		t.Errorf("Line = %s: a replacement character that was sent is text like any other", got)
	}
}
