package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func mustLayer(t *testing.T, s Source, rs ...Rule) *Layer {
	t.Helper()
	l, err := NewLayer(s, rs)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestNextExpiry(t *testing.T) {
	at := func(s int) time.Time { return naiveNow.Add(time.Duration(s) * time.Second) }
	allow := func(s int) Rule {
		return Rule{Destination: "a.test", Action: ActionAllow, Expires: at(s)}
	}
	p := Compile(Stack{Layers: []*Layer{
		mustLayer(t, Session, allow(30), allow(10), Rule{Destination: "b.test", Action: ActionAllow}),
		mustLayer(t, Global, allow(20)), nil, BuiltinLayer(),
	}})
	for _, c := range []struct{ now, want int }{{0, 10}, {9, 10}, {10, 20}, {15, 20}, {20, 30}} {
		if got, ok := p.NextExpiry(at(c.now)); !ok || !got.Equal(at(c.want)) {
			t.Errorf("at %d: %v %v, want %d", c.now, got, ok, c.want)
		}
	}
	if got, ok := p.NextExpiry(at(30)); ok {
		t.Errorf("after all have expired: %v", got)
	}
}

func TestLayersInAnyOrder(t *testing.T) {
	p := Compile(Stack{Layers: []*Layer{BuiltinLayer(), mustLayer(t, Session), mustLayer(t, Global)}})
	var got []Source
	for _, l := range p.Layers() {
		got = append(got, l.Source())
	}
	if want := []Source{Global, Session, Builtin}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNoPolicyDenies(t *testing.T) {
	var none *Policy
	for name, p := range map[string]*Policy{"nil": none, "zero": {}, "empty": Compile(Stack{})} {
		for _, s := range []Stage{0, Resolve, Connect, Hello, HTTP, GraphQL, 99} {
			r := Request{Time: naiveNow, Stage: s, Names: []string{"a.test"}, Addr: netip.MustParseAddr("203.0.113.7"), Port: 443}
			if d := p.Decide(r); d.Verdict != Deny || d.Reason == "" {
				t.Errorf("%s at %d: %+v", name, s, d)
			}
			if d := p.Explain(r); d.Verdict != Deny {
				t.Errorf("%s at %d: %+v", name, s, d)
			}
		}
	}
}

func TestUnknownAddressIsDenied(t *testing.T) {
	for _, learning := range []bool{false, true} {
		p := Compile(Stack{AllowAll: learning, Layers: []*Layer{mustLayer(t, Session, Rule{Destination: "*", Action: ActionAllow})}})
		r := Request{Time: naiveNow, Stage: Connect, Port: 443, Captured: true}
		if d := p.Decide(r); d.Verdict != Deny {
			t.Errorf("learning %v: %+v", learning, d)
		}
		r.Names = []string{"bad name"}
		r.Addr = netip.MustParseAddr("169.254.169.254")
		if d := p.Decide(r); d.Verdict != Deny {
			t.Errorf("learning %v: a malformed name hides the address from the guard: %+v", learning, d)
		}
	}
}

func TestNewLayerRefuses(t *testing.T) {
	for _, c := range []struct {
		source Source
		rule   Rule
		want   string
	}{
		{Default, Rule{Destination: "a.test", Action: ActionAllow}, `layer "default" cannot hold rules`},
		{Session, Rule{ID: "r7", Destination: "a*b.test", Action: ActionAllow}, `session rule r7: destination "a*b.test"`},
		{Session, Rule{ID: "r7", Destination: "a.test", Container: "web", Action: ActionAllow}, `container "web"`},
		{Global, Rule{Destination: "a.test", Ports: "0", Action: ActionAllow}, `global rule for "a.test": ports "0"`},
	} {
		_, err := NewLayer(c.source, []Rule{c.rule})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q in it", c.rule, err, c.want)
		}
	}
}

func TestSuffixWarning(t *testing.T) {
	list := func(domain string) (string, bool) {
		if domain == "co.uk" || strings.HasSuffix(domain, ".co.uk") {
			return "co.uk", true
		}
		return domain[strings.LastIndexByte(domain, '.')+1:], true
	}
	for pattern, warned := range map[string]bool{
		"*.co.uk": true, "**.CO.UK.": true, "*.example.co.uk": false, "co.uk": false, "*.example.com": false, "*": false, "10.0.0.0/8": false, "a*b": false,
	} {
		if got := SuffixWarning(pattern, list); (got != "") != warned {
			t.Errorf("%s: %q", pattern, got)
		}
	}
}

func TestTraceSaysWhy(t *testing.T) {
	p := Compile(Stack{Layers: []*Layer{
		mustLayer(t, Global,
			Rule{ID: "old", Destination: "*", Action: ActionAllow, Expires: naiveNow},
			Rule{ID: "udp", Destination: "*", Action: ActionDeny, Transport: UDP}),
		mustLayer(t, Session,
			Rule{ID: "won", Destination: "api.a.test", Ports: "443", Action: ActionAllow},
			Rule{ID: "wide", Destination: "*.a.test", Action: ActionDeny},
			Rule{ID: "ports", Destination: "api.a.test", Ports: "80", Action: ActionAllow},
			Rule{ID: "elsewhere", Destination: "b.test", Action: ActionAllow}),
		mustLayer(t, Builtin, Rule{ID: "last", Destination: "*", Action: ActionAllow}),
	}})
	d := p.Explain(Request{
		Time: naiveNow, Stage: Hello, Transport: TCP, Captured: true, Port: 443,
		Names: []string{"api.a.test"}, Addr: netip.MustParseAddr("203.0.113.7"),
		Claim: Claim{Kind: ClaimTLS, Name: "api.a.test"},
	})
	var got []string
	for _, s := range d.Trace {
		got = append(got, fmt.Sprintf("%s %s %v %v: %s", s.Layer, s.Rule, s.Matched, s.Won, s.Why))
	}
	want := []string{
		"global  true false: 2 for api.a.test:443",
		"global udp false false: for another transport",
		"global old false false: expired at 2026-05-01T12:00:00Z",
		"session  true false: 3 for api.a.test:443",
		"session won true true: session rule won allows api.a.test on port 443",
		"session ports false false: for other ports",
		"session wide true false: less specific: the rule that won has a narrower destination",
		"builtin  true false: 1 for api.a.test:443",
		"builtin last true false: a rule of the session layer comes first",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A policy is read by every connection at once.
func TestConcurrentDecisions(t *testing.T) {
	p := benchPolicy(t, 1000)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, r := range allowed() {
				if d := p.Decide(r); d.Verdict != Allow {
					t.Error(d.Reason)
				}
				if d := p.Explain(r); len(d.Trace) == 0 {
					t.Error("no trace")
				}
			}
		})
	}
	wg.Wait()
}

func TestTraceCountsRules(t *testing.T) {
	p := Compile(Stack{Layers: []*Layer{
		mustLayer(t, Global),
		mustLayer(t, Session, Rule{ID: "other", Destination: "b.test", Ports: "80,443", Action: ActionAllow}),
		BuiltinLayer(),
	}})
	d := p.Explain(Request{
		Time: naiveNow, Stage: Hello, Transport: TCP, Captured: true, Port: 443,
		Names: []string{"a.test"}, Addr: netip.MustParseAddr("203.0.113.7"), Claim: Claim{Kind: ClaimTLS, Name: "a.test"},
	})
	var got []string
	for _, s := range d.Trace {
		got = append(got, fmt.Sprintf("%s: %s: %s", s.Layer, s.Text, s.Why))
	}
	want := []string{
		"global: no rules: ",
		"session: 1 rule: none for a.test:443",
		"builtin: 3 rules: none for a.test:443",
		"default: deny: no rule of any layer allows a.test:443; default deny",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// However rules come, the layer holds them as they were given, in the order in
// which they win, and in two parts at most.
func TestRulesThatAreAddedToALayer(t *testing.T) {
	rs := manyRules(700)
	rs[500].Expires = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	whole, err := NewLayer(Global, rs)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLayer(Global, rs[:300])
	sizes := map[int]bool{}
	for i := 300; i < len(rs) && err == nil; i++ {
		before := slices.Collect(l.Rules())
		with, failed := l.With(rs[i : i+1])
		if l, err = with, failed; len(before) != i {
			t.Fatalf("%d rules after %d were given", len(before), i)
		}
		sizes[len(l.parts)] = true
	}
	if err != nil {
		t.Fatal(err)
	}
	if !sizes[1] || !sizes[2] || len(sizes) != 2 {
		t.Errorf("numbers of parts: %v", sizes)
	}
	if diff := cmp.Diff(slices.Collect(whole.Rules()), slices.Collect(l.Rules())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(whole.InOrder(), l.InOrder()); diff != "" {
		t.Error(diff)
	}
	if at, ok := l.nextExpiry(rs[500].Expires.Add(-1)); !ok || !at.Equal(rs[500].Expires) {
		t.Errorf("next expiry %v %v", at, ok)
	}
	if _, err := l.With([]Rule{{ID: "r9", Destination: "a..b"}}); err == nil || !strings.Contains(err.Error(), "global rule r9") {
		t.Errorf("a rule that cannot be read: %v", err)
	}
}
