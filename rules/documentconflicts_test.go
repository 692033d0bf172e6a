package rules

import (
	"net/netip"
	"strings"
	"testing"
)

// What a document with inspected and uninspected rules for the same
// connections warns about is what then happens.
func TestUninspectedBesideInspected(t *testing.T) {
	const (
		open      = "connections that this"
		inspected = "inspected all the same"
	)
	rest := func(host string) string {
		return `{host: ` + host + `, port: 443, protocol: rest, access: read-only}`
	}
	for _, c := range []struct {
		name      string
		rules     string
		endpoints string
		binaries  string // of the uninspected endpoint's policy
		warning   string // part of the one warning; "": none
		passes    bool   // a POST
	}{
		{name: "an endpoint of the same host", endpoints: `{host: api.a.example, port: 443}, ` + rest("api.a.example"), warning: inspected},
		{name: "the same, in the other order", endpoints: rest("api.a.example") + `, {host: api.a.example, port: 443}`, warning: inspected},
		{name: "an exact host", endpoints: `{host: api.a.example, port: 443}, ` + rest(`"*.a.example"`), warning: open, passes: true},
		{name: "an exact host, in the other order", endpoints: rest(`"*.a.example"`) + `, {host: api.a.example, port: 443}`, warning: open, passes: true},
		{name: "a wider host", endpoints: `{host: "*.a.example", port: 443}, ` + rest("api.a.example"), warning: inspected},
		{name: "more ports", endpoints: `{host: api.a.example, ports: [443, 8443]}, ` + rest("api.a.example"), warning: inspected},
		{name: "other ports", endpoints: `{host: api.a.example, port: 8443}, ` + rest("api.a.example")},
		{name: "programs", endpoints: rest("api.a.example"), binaries: `{host: api.a.example, port: 443}`, warning: open, passes: true},
		{name: "an address", endpoints: `{host: 198.51.100.7, port: 443}, {allowed_ips: [198.51.100.0/24], port: 443, protocol: rest, access: read-only}`, warning: open, passes: true},
		{name: "one of several addresses", endpoints: `{allowed_ips: [198.51.100.7, 192.0.2.0/24], port: 443}, {allowed_ips: [198.51.100.0/24], port: 443, protocol: rest, access: read-only}`, warning: open, passes: true},

		{name: "a rule for the same host", rules: `{allow: api.a.example}`, endpoints: rest("api.a.example")},
		{name: "for its port too", rules: `{allow: api.a.example, ports: 443, transport: tcp}`, endpoints: rest("api.a.example")},
		{name: "and for programs", rules: `{allow: api.a.example, ports: 443, transport: tcp, binaries: [/bin/a]}`, endpoints: rest("api.a.example"), warning: open, passes: true},
		{name: "for other programs than the endpoint", rules: `{allow: api.a.example, ports: 443, binaries: [/bin/a]}`, endpoints: rest("api.a.example")},
		{name: "a rule for one host of many", rules: `{allow: api.a.example}`, endpoints: rest(`"*.a.example"`), warning: open, passes: true},
		{name: "for another host", rules: `{allow: a.example}, {allow: api.b.example}`, endpoints: rest(`"*.a.example"`)},
		{name: "for another port", rules: `{allow: api.a.example, ports: "1-442,444-65535"}`, endpoints: rest(`"*.a.example"`)},
		{name: "over UDP", rules: `{allow: api.a.example, transport: udp}`, endpoints: rest(`"*.a.example"`)},
		{name: "a narrower suffix", rules: `{allow: "**.api.a.example"}`, endpoints: rest(`"**.a.example"`), warning: open, passes: true},
		{name: "a narrower suffix, below", rules: `{allow: "*.api.a.example"}`, endpoints: rest(`"**.a.example"`), warning: open},
		{name: "a wider suffix", rules: `{allow: "*.example"}, {allow: "**.example"}, {allow: "*"}`, endpoints: rest("api.a.example")},
		{name: "a rule that denies", rules: `{deny: api.a.example}`, endpoints: rest(`"*.a.example"`)},
		{name: "a rule for an address", rules: `{allow: 198.51.100.7}`, endpoints: `{allowed_ips: [198.51.100.0/24], port: 443, protocol: rest, access: read-only}`, warning: open, passes: true},
		{name: "a rule for a wider network", rules: `{allow: 198.51.0.0/16}`, endpoints: `{allowed_ips: [198.51.100.0/24], port: 443, protocol: rest, access: read-only}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := "version: 1\nrules: [" + c.rules + "]\nnetwork_policies:\n  p: {endpoints: [" + c.endpoints + "]}\n"
			if c.binaries != "" {
				text += "  q: {endpoints: [" + c.binaries + "], binaries: [/bin/a]}\n"
			}
			doc, all, err := ParseDocument("", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			var warnings []Warning
			for _, w := range all {
				if strings.Contains(w.Message, "inspected") {
					warnings = append(warnings, w)
				}
			}
			switch {
			case c.warning == "" && len(warnings) > 0:
				t.Errorf("warnings: %v", warnings)
			case c.warning != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].Message, c.warning)):
				t.Errorf("warnings: %v, want one with %q", warnings, c.warning)
			}
			p := Compile(Stack{Layers: []*Layer{mustLayer(t, Session, doc.Rules...)}})
			d, _ := p.Judge(Attempt{Request: Request{
				Transport: TCP, Captured: true, Addr: netip.MustParseAddr("198.51.100.7"), Port: 443, Names: []string{"api.a.example"},
				Claim: Claim{Kind: ClaimTLS, Name: "api.a.example"}, Program: &Program{Path: "/bin/a"},
				HTTP: &HTTPRequest{Method: "POST", Target: "/"},
			}})
			if got := d.Verdict != Deny; got != c.passes {
				t.Errorf("passes %v, want %v: %s", got, c.passes, d.Reason)
			}
		})
	}
}
