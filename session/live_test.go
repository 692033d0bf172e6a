package session

import (
	"testing"
	"time"
	"weir/e2e/netlab"

	"weir/rules"
)

func TestAConnectionIsListedAndCut(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	if _, err := d.Flows(ctx, l.Ref()); kind(err) != NotFound {
		t.Errorf("not attached: %v", err)
	}
	d.attach(l)
	d.session(t, "s", l.Ref(), time.Minute)
	if list, err := d.Flows(ctx, l.Ref()); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	held, ok := l.Dial()
	if !ok {
		t.Fatal("the session's rule does not count")
	}
	list, err := d.Flows(ctx, l.Ref())
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
	f := list[0]
	if f.Destination.String() != netlab.Server || !f.Live || f.Layer != rules.Session || f.Rule == nil || f.BytesOut == 0 {
		t.Errorf("%+v", f)
	}
	if err := d.Kill(ctx, l.Ref(), f.ID+1); kind(err) != NotFound || !held.Works() {
		t.Errorf("another id: %v", err)
	}
	if err := d.Kill(ctx, l.Ref(), f.ID); err != nil {
		t.Fatal(err)
	}
	held.WaitCut()
	if _, ok := l.Dial(); !ok {
		t.Error("cutting a connection kept the container from opening it again")
	}
}

func TestRulesSayWhoShadowsThem(t *testing.T) {
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	global, _, err := d.AddRule(ctx, rules.Rule{Destination: "**.a.example", Action: rules.ActionDeny})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateSession(ctx, Spec{ID: "s", Container: "web", Rules: []rules.Rule{{Destination: "x.a.example"}, {Destination: "b.example"}}}); err != nil {
		t.Fatal(err)
	}
	for _, shadows := range []bool{true, false} {
		list := d.Rules(RuleFilter{Source: rules.Session, Shadows: shadows})
		want := map[bool]string{true: global.ID}[shadows]
		if len(list) != 2 || list[0].ShadowedBy != want || list[1].ShadowedBy != "" {
			t.Errorf("%+v", list)
		}
	}
}
