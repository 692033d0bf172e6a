package session

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"weir/e2e/netlab"

	"github.com/google/go-cmp/cmp"

	"weir/ask"
	"weir/rules"
)

// asking attaches the lab's container, with a session that asks.
func (d *daemon) asking(l *netlab.Lab) {
	l.T.Helper()
	d.attach(l)
	if _, err := d.CreateSession(l.T.Context(), Spec{ID: "asks", Container: l.Ref(), Ask: true, TTL: time.Hour}); err != nil {
		l.T.Fatal(err)
	}
}

// asked waits until n connections of the lab wait for an answer.
func (d *daemon) asked(l *netlab.Lab, n int) OpenQuestion {
	l.T.Helper()
	for deadline := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		list, err := d.Questions(l.T.Context(), l.Ref())
		if err != nil {
			l.T.Fatal(err)
		}
		if len(list) == 1 && list[0].Flows == n {
			return list[0]
		}
		if time.Now().After(deadline) {
			l.T.Fatalf("never %d connections at one question: %+v", n, list)
		}
	}
}

func (d *daemon) answer(l *netlab.Lab, q OpenQuestion, r Reply) Answered {
	l.T.Helper()
	r.By = "somebody"
	a, err := d.Answer(l.T.Context(), q.ID, r)
	if err != nil {
		l.T.Fatal(err)
	}
	return a
}

func TestAnAnswerCountsAtOnce(t *testing.T) {
	l := netlab.New(t)
	dir := t.TempDir()
	d := start(t, dir, &netlab.Clock{})
	d.asking(l)
	ctx := t.Context()
	first, second := l.Open(), l.Open()
	q := d.asked(l, 2)
	if q.Host != "" || q.Destination() != netlab.ServerAddr || q.Port != 7000 || q.Session != "asks" || !strings.Contains(q.Reason, netlab.Server) {
		t.Errorf("%+v", q)
	}
	want := []Choice{{Endpoint, netlab.ServerAddr, "7000"}, {Host, netlab.ServerAddr, "*"}}
	if diff := cmp.Diff(want, q.Choices); diff != "" {
		t.Error(diff)
	}
	for name, c := range map[string]struct {
		id   string
		r    Reply
		kind Kind
	}{
		"for ever":          {q.ID, Reply{For: "ever", What: Endpoint}, Invalid},
		"about everything":  {q.ID, Reply{For: Once, What: "all"}, Invalid},
		"about its suffix":  {q.ID, Reply{For: Once, What: Suffix}, Invalid},
		"to what never was": {"q-x", Reply{For: Once, What: Endpoint}, NotFound},
	} {
		if _, err := d.Answer(ctx, c.id, c.r); kind(err) != c.kind {
			t.Errorf("an answer %s: %v", name, err)
		}
	}
	if a := d.answer(l, q, Reply{Allow: true, For: Once, What: Endpoint}); a.Rule != nil || a.Question.Flows != 2 {
		t.Errorf("%+v", a)
	}
	if !first.Opened() || !second.Opened() {
		t.Error("what waited did not go on")
	}
	if _, err := d.Answer(ctx, q.ID, Reply{For: Once, What: Endpoint}); kind(err) != Conflict || !strings.Contains(err.Error(), "allowed once by somebody") {
		t.Errorf("answered again: %v", err)
	}

	// It is kept by whatever happens, but for a rule that denies.
	third := l.Open()
	a := d.answer(l, d.asked(l, 1), Reply{Allow: true, For: ForSession, What: Host})
	if r := a.Rule; r == nil || r.Source != rules.Session || r.SessionID != "asks" || r.Destination != netlab.ServerAddr || r.Ports != "*" || !strings.Contains(r.Notes, "by somebody") {
		t.Fatalf("%+v", a.Rule)
	}
	if !third.Opened() {
		t.Error("allowed for the session, and it does not go on")
	}
	if s, err := d.Session("asks"); err != nil || !s.Ask || s.RuleCount() != 1 {
		t.Errorf("%+v %v", s, err)
	}
	if err := d.EndSession(ctx, "asks"); err != nil {
		t.Fatal(err)
	}
	third.WaitCut()
	if !first.Works() {
		t.Error("what was allowed once ended with the session")
	}
	rule, _, err := d.AddRule(ctx, rules.Rule{Destination: netlab.ServerAddr, Action: rules.ActionDeny})
	if err != nil {
		t.Fatal(err)
	}
	first.WaitCut()
	second.WaitCut()
	if list := d.Rules(RuleFilter{Source: rules.Session}); len(list) > 0 {
		t.Errorf("rules that were answers outlive their session: %+v", list)
	}
	if _, _, err := d.AddSessionRule(ctx, "asks", rules.Rule{Destination: netlab.ServerAddr, Action: rules.ActionAllow}); kind(err) != NotFound {
		t.Errorf("a rule for a session that has ended: %v", err)
	}
	d.DeleteRule(ctx, rule.ID)

	// For good, and kept by a restart; so is that the session asks.
	d.CreateSession(ctx, Spec{ID: "asks", Container: l.Ref(), Ask: true, TTL: time.Hour})
	held := l.Open()
	a = d.answer(l, d.asked(l, 1), Reply{Allow: true, For: ForGood, What: Endpoint})
	if r := a.Rule; r == nil || r.Source != rules.Global || r.Container != l.Ref() || r.Ports != "7000" {
		t.Fatalf("%+v", a.Rule)
	}
	if !held.Opened() {
		t.Error("allowed for good, and it does not go on")
	}
	d.stop()
	d = start(t, dir, &netlab.Clock{})
	if again, ok := l.Dial(); !ok {
		t.Errorf("after a restart: %v", again)
	}
	if status, err := d.Attachment(ctx, l.Ref()); err != nil || !status.Ask {
		t.Errorf("after a restart nobody is asked: %+v %v", status, err)
	}
}

func TestAQuestionEndsWithItsSession(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	d.asking(l)
	for name, end := range map[string]func(){
		"it ends": func() { d.EndSession(t.Context(), "asks") },
		"it does not ask any more": func() {
			d.CreateSession(t.Context(), Spec{ID: "asks", Container: l.Ref(), TTL: time.Hour})
		},
		"it expires": func() { d.pass(2 * time.Hour) },
	} {
		d.CreateSession(t.Context(), Spec{ID: "asks", Container: l.Ref(), Ask: true, TTL: time.Hour})
		p := l.Open()
		q := d.asked(l, 1)
		end()
		if p.Opened() {
			t.Errorf("%s, and what waited goes on", name)
		}
		if _, err := d.Answer(t.Context(), q.ID, Reply{For: Once, What: Endpoint}); kind(err) != Conflict {
			t.Errorf("%s, and: %v", name, err)
		}
	}
	if questions, held := d.Asking(); questions+held > 0 {
		t.Errorf("%d questions, %d held", questions, held)
	}
}

func TestChoices(t *testing.T) {
	for host, want := range map[string]string{
		"api.github.com": "**.github.com", "github.com": "**.github.com", "a.b.shop.example": "**.b.shop.example", "b.shop.example": "**.shop.example",
		"shop.co.uk": "**.shop.co.uk", "www.shop.co.uk": "**.shop.co.uk", "co.uk": "", "me.github.io": "**.me.github.io", "github.io": "",
		"intranet": "", "": "",
	} {
		if got := suffixOf(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
		if want == "" {
			continue
		}
		q := ask.Question{Host: host, Port: 443}
		for _, c := range choices(&q) {
			r, warnings, err := (&Conductor{}).canonical(rules.Rule{Source: rules.Session, Destination: c.Destination, Ports: c.Ports, Action: rules.ActionAllow})
			if err != nil || len(warnings) > 0 || !c.covers(&q) {
				t.Errorf("%s: %+v: %v %v %v", host, c, r, warnings, err)
			}
		}
	}
	suffix := Choice{Suffix, "**.shop.example", "443"}
	for host, want := range map[string]bool{"shop.example": true, "a.b.shop.example": true, "workshop.example": false, "example": false} {
		if got := suffix.covers(&ask.Question{Host: host, Port: 443}); got != want || suffix.covers(&ask.Question{Host: host, Port: 80}) {
			t.Errorf("%s covers %s: %v", suffix.Destination, host, got)
		}
	}
	if _, err := choose(&ask.Question{Host: "co.uk", Port: 443}, Suffix); kind(err) != Invalid || !strings.Contains(fmt.Sprint(err), "public suffix") {
		t.Errorf("the names around co.uk: %v", err)
	}
}
