package session

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"weir/e2e/netlab"

	"github.com/google/go-cmp/cmp"

	"weir/rules"
	"weir/store"
)

func sessionRulesOf(id string) store.RuleFilter {
	return store.RuleFilter{Source: rules.Session, SessionID: id}
}

// askAt asks the policy in force about the lab's server.
func askAt(a *attachment, now time.Time) rules.Decision {
	return a.policy.Load().Decide(rules.Request{
		Time: now, Container: a.who(), Stage: rules.Connect, Transport: rules.TCP, Captured: true, Port: 7000,
		Addr: netip.MustParseAddr(netlab.ServerAddr),
	})
}

func TestSessionsThatAreRefused(t *testing.T) {
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	d.session(t, "taken", "web", time.Hour)
	for name, c := range map[string]struct {
		spec Spec
		kind Kind
		says string
	}{
		"ttl too long":     {Spec{Container: "web", TTL: MaxTTL + time.Second}, Invalid, "86400"},
		"ttl negative":     {Spec{Container: "web", TTL: -time.Second}, Invalid, "ttl"},
		"id":               {Spec{ID: "a/b", Container: "web"}, Invalid, `"a/b"`},
		"dead destination": {Spec{Container: "web", Rules: []rules.Rule{{Destination: "ok.example"}, {Destination: "a*.example"}}}, Invalid, `network_rules[1]: `},
		"ports":            {Spec{Container: "web", Rules: []rules.Rule{{Destination: "ok.example", Ports: "90-80"}}}, Invalid, "90-80"},
		"policy":           {Spec{Container: "web", Policy: []byte("version: 1\nrules:\n  - alow: x\n")}, Invalid, "policy:3:5:"},
		"other container":  {Spec{ID: "taken", Container: "db"}, Conflict, "web"},
		"host network":     {Spec{Container: "pid:1"}, Invalid, "host"},
	} {
		if _, err := d.CreateSession(ctx, c.spec); kind(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: kind %d: %v", name, kind(err), err)
		}
	}
	if list := d.Sessions(); len(list) != 1 {
		t.Errorf("a refused session is there: %+v", list)
	}
}

func TestOnlyTheNewestLiveSessionIsCurrent(t *testing.T) {
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	current := func() (ids []string) {
		for _, s := range d.Sessions() {
			if s.Current {
				ids = append(ids, s.ID)
			}
		}
		return ids
	}
	expect := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, current()); diff != "" {
			t.Error(diff)
		}
	}
	a := d.session(t, "a", "web", time.Hour)
	d.session(t, "b", "web", time.Hour)
	d.session(t, "other", "db", time.Hour)
	expect("b", "other")
	// Replacing keeps the place in the order, and the time of creation.
	again := d.session(t, "a", "web", 2*time.Hour)
	if again.Seq != a.Seq || !again.Created.Equal(a.Created) || again.Current {
		t.Errorf("replaced: %+v", again)
	}
	expect("b", "other")
	if err := d.EndSession(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	expect("a", "other")
	if err := d.EndSession(ctx, "b"); kind(err) != NotFound {
		t.Errorf("ended twice: %v", err)
	}
	// One that has expired and not been swept is no longer there, whatever
	// container it was for.
	d.mu.Lock() // keeps the clock's watcher away
	d.clock.Advance(time.Hour)
	d.mu.Unlock()
	if s := d.session(t, "other", "cache", time.Hour); s.Container != "cache" || !s.Current {
		t.Errorf("%+v", s)
	}
	expect("a", "other")
}

func TestGlobalPolicies(t *testing.T) {
	l := netlab.New(t)
	dir, clk := t.TempDir(), &netlab.Clock{}
	d := start(t, dir, clk)
	ctx := t.Context()
	d.attach(l)
	d.session(t, "s", l.Ref(), time.Hour)
	held, ok := l.Dial()
	if !ok {
		t.Fatal("not allowed")
	}
	deny := []byte("version: 1\nrules:\n  - deny: 198.51.100.0/24\n  - allow: \"*.com\"\n")
	p, created, err := d.SetPolicy(ctx, "base", deny)
	if err != nil || !created || p.Rules != 2 {
		t.Fatalf("%+v %v %v", p, created, err)
	}
	held.WaitCut()
	a, err := d.Explain(ctx, Question{Container: l.Ref(), Destination: netlab.ServerAddr, Port: 7000})
	if err != nil {
		t.Fatal(err)
	}
	if a.Verdict != rules.Deny || a.Layer != rules.Global || a.Rule.ID != "base/0" || !strings.Contains(a.Hints[0], "weir policy unset base") {
		t.Errorf("%+v", a)
	}
	for name, text := range map[string]string{"base": "version: 1\nrules:\n  - dny: x\n", "a/b": string(deny), "": string(deny)} {
		if _, _, err := d.SetPolicy(ctx, name, []byte(text)); kind(err) != Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
	if list := d.Policies(); len(list) != 1 || list[0].Text != string(deny) {
		t.Errorf("%+v", list)
	}
	if err := d.DeleteRule(ctx, "base/0"); kind(err) != NotFound || !strings.Contains(err.Error(), "weir policy unset base") {
		t.Error(err)
	}
	if _, created, err = d.SetPolicy(ctx, "base", []byte("version: 1\nrules: [{deny: 198.18.0.0/15}]\n")); err != nil || created {
		t.Errorf("%v %v", created, err)
	}
	if _, ok := l.Dial(); !ok {
		t.Error("the rules of a replaced policy still count")
	}
	if err := d.DeletePolicy(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	if err := d.DeletePolicy(ctx, "base"); kind(err) != NotFound {
		t.Error(err)
	}
	if got := d.Rules(RuleFilter{Source: rules.Global}); len(got) > 0 {
		t.Errorf("%+v", got)
	}
	reasons := d.reasons(t)
	for _, want := range []string{"||global policy base set: 2 rules", "||global policy base replaced: 1 rules", "||global policy base removed"} {
		if !strings.Contains(reasons, want) {
			t.Errorf("no event %q in:\n%s", want, reasons)
		}
	}
	if err := d.Detach(ctx, l.Ref()); err != nil {
		t.Fatal(err)
	}
}

func TestGlobalRulesChangeAndExpire(t *testing.T) {
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	now := d.clock.Now()
	if _, _, err := d.AddRule(ctx, rules.Rule{Destination: "x.example", Action: rules.ActionDeny, Expires: now}); kind(err) != Invalid {
		t.Errorf("expired already: %v", err)
	}
	if _, _, err := d.AddRule(ctx, rules.Rule{Destination: "x.example"}); kind(err) != Invalid {
		t.Errorf("without action: %v", err)
	}
	first, warnings, err := d.AddRule(ctx, rules.Rule{Destination: "*.CoM", Action: rules.ActionAllow, Expires: now.Add(time.Minute)})
	if err != nil || first.Destination != "*.com" || len(warnings) == 0 {
		t.Fatalf("%+v %v %v", first, warnings, err)
	}
	second, _, err := d.AddRule(ctx, rules.Rule{Destination: "y.example", Action: rules.ActionDeny})
	if err != nil {
		t.Fatal(err)
	}
	changed, _, err := d.UpdateRule(ctx, second.ID, rules.Rule{Destination: "z.example", Action: rules.ActionAllow, Container: "ci-*"})
	if err != nil || changed.ID != second.ID || changed.Order != second.Order || !changed.Created.Equal(second.Created) {
		t.Fatalf("%+v %v", changed, err)
	}
	if _, _, err := d.UpdateRule(ctx, "r999", rules.Rule{Destination: "z.example", Action: rules.ActionAllow}); kind(err) != NotFound {
		t.Error(err)
	}
	d.pass(time.Minute)
	list := d.Rules(RuleFilter{Source: rules.Global})
	if len(list) != 1 || list[0].Destination != "z.example" {
		t.Errorf("%+v", list)
	}
	for container, want := range map[string]int{"ci-1": 1, "web": 0} {
		if got := d.Rules(RuleFilter{Source: rules.Global, Container: container}); len(got) != want {
			t.Errorf("%s: %+v", container, got)
		}
	}
	if stored, err := d.store.Rules(ctx, store.RuleFilter{}); err != nil || len(stored) != 1 {
		t.Errorf("%v %v", stored, err)
	}
	if err := d.DeleteRule(ctx, second.ID); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteRule(ctx, second.ID); kind(err) != NotFound {
		t.Error(err)
	}
}

// Everything at once: for the race detector, and for what is left afterwards.
func TestManyCallersAtOnce(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	d.attach(l)
	const callers, rounds = 6, 8
	var all sync.WaitGroup
	for n := range callers {
		all.Go(func() {
			id := fmt.Sprint("s", n)
			for i := range rounds {
				r, _, err := d.AddRule(ctx, rules.Rule{Destination: fmt.Sprintf("h%d-%d.example", n, i), Action: rules.ActionDeny})
				if err != nil {
					t.Error(err)
					return
				}
				// What AddRule returned from counts.
				a, err := d.Explain(ctx, Question{Container: l.Ref(), Destination: r.Destination})
				if err != nil || a.Layer != rules.Global {
					t.Errorf("%s: %v %v", r.Destination, a.Layer, err)
				}
				if _, err := d.CreateSession(ctx, Spec{ID: id, Container: l.Ref(), Rules: []rules.Rule{{Destination: "ok.example"}}}); err != nil {
					t.Error(err)
				}
				if _, err := d.Heartbeat(ctx, id, time.Minute); err != nil {
					t.Error(err)
				}
				d.Attachments()
				d.Rules(RuleFilter{})
				d.record(auditUse(r.ID))
				d.writeLate(ctx)
				if i%2 == 0 {
					if err := d.DeleteRule(ctx, r.ID); err != nil {
						t.Error(err)
					}
				}
				if n == 0 {
					if _, _, err := d.SetPolicy(ctx, "doc", []byte("version: 1\nrules: [{deny: x.example}]\n")); err != nil {
						t.Error(err)
					}
				}
			}
			if err := d.EndSession(ctx, id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := len(d.Rules(RuleFilter{Source: rules.Global})); got != callers*rounds/2+1 {
		t.Errorf("%d global rules are left", got)
	}
	if got := d.Sessions(); len(got) > 0 {
		t.Errorf("%+v", got)
	}
	if err := d.Detach(ctx, l.Ref()); err != nil {
		t.Fatal(err)
	}
}
