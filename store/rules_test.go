package store

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/rules"
)

func TestRuleRoundTrip(t *testing.T) {
	s := fresh(t)
	at := noon.UTC().Truncate(time.Microsecond)
	r := rules.Rule{
		ID: "ignored", Source: rules.Session, SessionID: "ignored", Order: 77,
		Container: "web-*", Destination: "*.example.com", Ports: "80,443,8000-9000", Transport: rules.TCP,
		Binaries: []string{"/usr/bin/curl", "/usr/**/git"}, Action: rules.ActionAllow,
		Expires: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), Created: noon, Notes: "why\nnot",
	}
	added := must[Rule](t)(s.AddRule(t.Context(), r))
	want := Rule{Rule: r}
	want.ID, want.Source, want.SessionID, want.Order, want.Created = "r1", rules.Global, "", 1, at
	if d := cmp.Diff(want, added); d != "" {
		t.Errorf("added (-want +got):\n%s", d)
	}
	changed := rules.Rule{ID: "r1", Destination: "10.0.0.0/8", Action: rules.ActionDeny, Created: noon.Add(time.Hour), Order: 5}
	want.Rule = rules.Rule{ID: "r1", Source: rules.Global, Destination: "10.0.0.0/8", Action: rules.ActionDeny, Created: at, Order: 1}
	if d := cmp.Diff(want, must[Rule](t)(s.UpdateRule(t.Context(), changed))); d != "" {
		t.Errorf("updated (-want +got):\n%s", d)
	}
	used := map[string]time.Time{"r1": at.Add(time.Minute), "r99": at, "builtin-1": at, "r01": at, "r+1": at}
	if err := s.TouchRules(t.Context(), used); err != nil {
		t.Fatal(err)
	}
	if err := s.TouchRules(t.Context(), map[string]time.Time{"r1": at}); err != nil { // late news
		t.Fatal(err)
	}
	want.LastUsed = at.Add(time.Minute)
	s = reopen(t, s)
	if d := cmp.Diff(want, must[Rule](t)(s.Rule(t.Context(), "r1"))); d != "" {
		t.Errorf("touched (-want +got):\n%s", d)
	}
	if err := s.DeleteRule(t.Context(), "r1"); err != nil {
		t.Fatal(err)
	}
	if next := must[Rule](t)(s.AddRule(t.Context(), r)); next.ID != "r2" {
		t.Errorf("id %s after r1 was deleted, want r2: ids are not used again", next.ID)
	}
}

func TestRulesThatAreNotThere(t *testing.T) {
	s := fresh(t)
	session := putSession(t, s, "s1", "web", time.Hour, rules.Rule{Destination: "a.test", Action: rules.ActionAllow})
	ofSession := session.Rules[0].ID
	for _, id := range []string{"r99", "99", "r-1", "r01", "", "r1; DROP TABLE rules", ofSession} {
		if id != ofSession {
			if _, err := s.Rule(t.Context(), id); !errors.Is(err, ErrNotFound) {
				t.Errorf("Rule(%q) = %v, want ErrNotFound", id, err)
			}
		}
		if err := s.DeleteRule(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("DeleteRule(%q) = %v, want ErrNotFound", id, err)
		}
		if _, err := s.UpdateRule(t.Context(), rules.Rule{ID: id, Destination: "*", Action: rules.ActionAllow}); !errors.Is(err, ErrNotFound) {
			t.Errorf("UpdateRule(%q) = %v, want ErrNotFound", id, err)
		}
	}
	for _, r := range []rules.Rule{
		{Destination: "a.test", Created: noon},
		{Destination: "a.test", Created: noon, Action: "permit"},
		{Destination: "a.test", Action: rules.ActionAllow},
		{Destination: "a.test", Created: noon, Action: rules.ActionAllow, Endpoint: &rules.Endpoint{}},
	} {
		if got, err := s.AddRule(t.Context(), r); err == nil {
			t.Errorf("rule %+v was added as %+v", r, got)
		}
	}
}

func TestRuleFilter(t *testing.T) {
	s := fresh(t)
	add := func(container, destination string, expires time.Time) {
		must[Rule](t)(s.AddRule(t.Context(), rules.Rule{Container: container, Destination: destination, Action: rules.ActionDeny, Created: noon, Expires: expires}))
	}
	add("*", "a.test", time.Time{})                                                                                                                                      // r1
	add("web", "b.test", noon)                                                                                                                                           // r2: expired at noon
	add("web", "a.test", noon.Add(time.Hour))                                                                                                                            // r3
	putSession(t, s, "s1", "web", time.Hour, rules.Rule{Destination: "a.test", Action: rules.ActionAllow}, rules.Rule{Destination: "c.test", Action: rules.ActionAllow}) // r4, r5
	putSession(t, s, "s2", "db", time.Minute, rules.Rule{Destination: "a.test", Action: rules.ActionAllow})                                                              // r6
	for _, c := range []struct {
		name string
		f    RuleFilter
		want []string
	}{
		{"all", RuleFilter{}, []string{"r1", "r2", "r3", "r4", "r5", "r6"}},
		{"global", RuleFilter{Source: rules.Global}, []string{"r1", "r2", "r3"}},
		{"sessions", RuleFilter{Source: rules.Session}, []string{"r4", "r5", "r6"}},
		{"built-in", RuleFilter{Source: rules.Builtin}, nil},
		{"one session", RuleFilter{SessionID: "s1"}, []string{"r4", "r5"}},
		{"container", RuleFilter{Container: "web"}, []string{"r2", "r3", "r4", "r5"}},
		{"pattern, literally", RuleFilter{Container: "*"}, []string{"r1"}},
		{"destination", RuleFilter{Destination: "A.TEST"}, []string{"r1", "r3", "r4", "r6"}},
		{"live", RuleFilter{LiveAt: noon}, []string{"r1", "r3", "r4", "r5", "r6"}},
		{"live later", RuleFilter{LiveAt: noon.Add(time.Minute)}, []string{"r1", "r3", "r4", "r5"}},
		{"several", RuleFilter{Source: rules.Session, Container: "web", Destination: "a.test", LiveAt: noon}, []string{"r4"}},
	} {
		var got []string
		for _, r := range must[[]Rule](t)(s.Rules(t.Context(), c.f)) {
			got = append(got, r.ID)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	if r := must[Rule](t)(s.Rule(t.Context(), "r6")); r.SessionContainer != "db" || r.Source != rules.Session || r.SessionID != "s2" {
		t.Errorf("r6 = %+v, want a rule of session s2 of db", r)
	}
}
