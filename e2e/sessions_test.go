package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestExpiryCutsLiveConnectionsWithinASecond(t *testing.T) {
	o := newOutside(t)
	o.addName("echo.example", "198.51.100.30")
	echo(o, "198.51.100.30:7000")
	echo(o, "198.51.100.31:7000")
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name)

	create := func() Session {
		return w.session("create", box.Name, "--id", "work", "--ttl", "5s", "--allow", "echo.example:7000", "--allow", "198.51.100.31:7000")
	}
	first := create()
	if wait := time.Until(first.ExpiresAt); wait < 3*time.Second || wait > 5*time.Second || !first.Current {
		t.Errorf("a session of 5 s: %+v", first)
	}
	lives := []*Live{box.connect("echo.example", 7000, "silent"), box.connect("198.51.100.31", 7000, "busy")}

	var beat Session
	w.json(&beat, "session", "heartbeat", "work", "--ttl", "7s")
	if !beat.ExpiresAt.After(first.ExpiresAt) {
		t.Errorf("the heartbeat did not extend: %s, then %s", first.ExpiresAt, beat.ExpiresAt)
	}
	for _, l := range lives {
		// The client's clock is this machine's.
		at := l.cut()
		if late := at.Sub(beat.ExpiresAt); late < 0 || late > time.Second {
			t.Errorf("%s: cut %s after the expiry", l.what, late)
		}
	}
	if box.echoes("198.51.100.31", 7000) {
		t.Errorf("a new connection after the expiry")
	}
	if status, answer := w.api("POST", "/v1/sessions/work/heartbeat", "{}"); status != http.StatusNotFound {
		t.Errorf("heartbeat of an expired session: %d %s", status, answer)
	}
	if status, answer := w.api("POST", "/v1/sessions/never/heartbeat", "{}"); status != http.StatusNotFound {
		t.Errorf("heartbeat of an unknown session: %d %s", status, answer)
	}
	if out := w.run("session", "list") + w.run("rule", "list", "--source", "session"); strings.Contains(out, "work") || strings.Contains(out, "echo.example") {
		t.Errorf("the expired session is still listed: %s", out)
	}
	w.waitEvent(box.Name, "the expiry", func(e Event) bool {
		return e.Type == "lifecycle" && e.SessionID == "work" && strings.Contains(e.Reason, "expired")
	})
}

func TestOnlyTheNewestSessionCounts(t *testing.T) {
	o := newOutside(t)
	for _, address := range []string{"198.51.100.30:7000", "198.51.100.31:7000"} {
		echo(o, address)
	}
	w := startWeir(t, "")
	box := newBox(t)
	// Before the attach, and by name: the session waits for its container.
	old := w.session("create", box.Name, "--id", "old", "--allow", "198.51.100.30:7000")
	w.run("attach", box.Name)
	expect := func(when string, first, second bool) {
		t.Helper()
		if a, b := box.echoes("198.51.100.30", 7000), box.echoes("198.51.100.31", 7000); a != first || b != second {
			t.Errorf("%s: 198.51.100.30 open %v, want %v; 198.51.100.31 open %v, want %v", when, a, first, b, second)
		}
	}
	expect("one session", true, false)
	if !old.Current {
		t.Errorf("the only session is not the current one: %+v", old)
	}

	kept := box.connect("198.51.100.30", 7000, "silent")
	w.session("create", box.Name, "--id", "new")
	kept.cut()
	expect("a newer session without rules", false, false)

	// An upsert of the older one keeps its place, and its rules are replaced.
	if s := w.session("create", box.Name, "--id", "old", "--allow", "198.51.100.31:7000"); s.Current || s.RulesCreated != 1 {
		t.Errorf("an upsert of an older session: %+v", s)
	}
	expect("the older session replaced", false, false)
	w.run("session", "end", "new")
	expect("the newer session ended", false, true)
	if s := w.session("show", "old"); !s.Current {
		t.Errorf("the remaining session is not current: %+v", s)
	}

	// An upsert of the current one cuts what it no longer allows, and only that.
	w.session("create", box.Name, "--id", "old", "--allow", "198.51.100.30:7000", "--allow", "198.51.100.31:7000")
	lost, kept := box.connect("198.51.100.30", 7000, "busy"), box.connect("198.51.100.31", 7000, "busy")
	w.session("create", box.Name, "--id", "old", "--allow", "198.51.100.31:7000")
	lost.cut()
	expect("the current session replaced", false, true)
	kept.alive()

	// Equal specificity: deny beats allow, whatever comes first.
	w.session("create", box.Name, "--id", "both", "--allow", "198.51.100.31:7000", "--deny", "198.51.100.31:7000")
	kept.cut()
	expect("allow and deny of the same", false, false)
	w.session("create", box.Name, "--id", "both", "--allow", "198.51.100.31:7000", "--deny", "198.51.100.0/24")
	expect("a more specific allow", false, true)
	w.run("session", "end", "both")
	w.run("session", "end", "old")
	expect("no session", false, false)
	if out, code := w.try("session", "end", "old"); code != 1 || !strings.Contains(out, "old") {
		t.Errorf("ending an ended session: exit %d, %s", code, out)
	}
}

func TestGlobalRulesComeBeforeSessions(t *testing.T) {
	o := newOutside(t)
	o.addName("echo.example", "198.51.100.30")
	echo(o, "198.51.100.30:7000")
	w := startWeir(t, "")
	box, other := newBox(t), newBox(t)
	for _, b := range []*Box{box, other} {
		w.run("attach", b.Name, "--allow", "echo.example:7000")
	}
	connects := func(b *Box) bool { return b.echoes("echo.example", 7000) }
	rule := func(args ...string) string {
		var r struct{ ID string }
		w.json(&r, append([]string{"rule", "add"}, args...)...)
		return r.ID
	}
	live, untouched := box.connect("echo.example", 7000, "silent"), other.connect("echo.example", 7000, "silent")
	// Less specific than the session's rule, but of a layer before it.
	id := rule("deny", "*.example", "--container", box.Name)
	live.cut()
	if connects(box) {
		t.Errorf("a session's allow beat a global deny")
	}
	w.waitEvent(box.Name, "what the global rule cut", func(e Event) bool {
		return e.Type == "connect" && e.Layer == "global" && e.RuleID == id && strings.Contains(e.Reason, id)
	})
	if untouched.alive(); !connects(other) {
		t.Errorf("a rule for one container denied another's connection")
	}
	// A rule that is replaced counts as it is now, by the same id.
	if status, answer := w.api("PUT", "/v1/rules/"+id, `{"destination":"*.example","ports":"7001","action":"deny"}`); status != http.StatusOK || !connects(box) {
		t.Errorf("the deny moved to another port: %d %s", status, answer)
	}
	if status, answer := w.api("PUT", "/v1/rules/"+id, `{"destination":"*.example","action":"deny"}`); status != http.StatusOK || connects(box) {
		t.Errorf("the deny widened again: %d %s", status, answer)
	}
	w.run("rule", "rm", id)
	if !connects(box) {
		t.Errorf("still denied without the global rule")
	}
	id = rule("allow", "198.51.100.30")
	w.session("create", box.Name, "--deny", "198.51.100.30")
	if !box.echoes("198.51.100.30", 7000) {
		t.Errorf("a session's deny beat a global allow")
	}
	rule("deny", "198.51.100.30")
	if box.echoes("198.51.100.30", 7000) {
		t.Errorf("a global allow beat a global deny of the same")
	}
	// A rule that expires takes its flows with it.
	rule("deny", "198.51.100.31", "--expires", "1h")
	echo(o, "198.51.100.32:7000")
	var brief struct {
		ExpiresAt time.Time `json:"expires_at"`
	}
	w.json(&brief, "rule", "add", "allow", "198.51.100.32", "--expires", "4s")
	live = box.connect("198.51.100.32", 7000, "busy")
	if late := live.cut().Sub(brief.ExpiresAt); late < 0 || late > time.Second {
		t.Errorf("cut %s after the rule's expiry", late)
	}
}
