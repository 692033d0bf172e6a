package session

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
	"weir/e2e/netlab"

	"github.com/google/go-cmp/cmp"

	"weir/rules"
)

func TestAFlowLivesNoLongerThanWhatAllowsIt(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	status := d.attach(l)
	if _, ok := l.Dial(); ok {
		t.Fatal("a connection was let through that nothing allows")
	}

	d.session(t, "s1", l.Ref(), time.Minute)
	held, ok := l.Dial()
	if !ok {
		t.Fatal("the session's rule does not count")
	}
	if err := d.EndSession(ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	held.WaitCut()

	// A newer session says nothing of the server: the older one has no say.
	d.session(t, "old", l.Ref(), time.Hour)
	held, _ = l.Dial()
	if _, err := d.CreateSession(ctx, Spec{ID: "new", Container: l.Ref(), TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	held.WaitCut()
	d.pass(time.Minute)
	if s, err := d.Session("old"); err != nil || !s.Current {
		t.Errorf("old is not current again: %v %v", s.Current, err)
	}
	held, ok = l.Dial()
	if !ok {
		t.Fatal("the older session does not count again although the newer one has expired")
	}

	// A global rule comes first, also for what is open.
	r, _, err := d.AddRule(ctx, rules.Rule{Destination: "198.51.100.0/24", Action: rules.ActionDeny, Expires: d.clock.Now().Add(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	held.WaitCut()
	if err := d.DeleteRule(ctx, r.ID); err != nil {
		t.Fatal(err)
	}
	if held, ok = l.Dial(); !ok {
		t.Fatal("a deleted global rule still counts")
	}

	if err := d.Detach(ctx, l.Ref()); err != nil {
		t.Fatal(err)
	}
	held.WaitCut()
	if _, ok = l.Dial(); !ok {
		t.Error("a detached container has not got its network back")
	}
	reasons := d.reasons(t)
	for _, want := range []string{
		status.Name + "||attached; 0 connections from before were cut",
		status.Name + "|s1|session created: enforce, 1 rules",
		status.Name + "|s1|session ended",
		status.Name + "|new|session expired",
		"||global rule " + r.ID + " added: deny 198.51.100.0/24 ports * for *",
		"||global rule " + r.ID + " removed",
		status.Name + "||detached",
	} {
		if !strings.Contains(reasons, want) {
			t.Errorf("no lifecycle event %q in:\n%s", want, reasons)
		}
	}
}

func TestAHeartbeatExtendsTheRulesWithTheSession(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	d.attach(l)
	doc := []byte("version: 1\nrules: [{allow: 198.51.100.0/24, ports: \"7000\"}]\n")
	if _, err := d.CreateSession(ctx, Spec{ID: "s", Container: l.Ref(), TTL: time.Minute, Policy: doc}); err != nil {
		t.Fatal(err)
	}
	d.session(t, "s", l.Ref(), time.Minute) // replaced
	d.pass(40 * time.Second)
	expires, err := d.Heartbeat(ctx, "s", 0)
	if err != nil {
		t.Fatal(err)
	}
	if left := expires.Sub(d.clock.Now()); left > time.Minute || left < 50*time.Second {
		t.Errorf("expires in %s", left)
	}
	d.pass(40 * time.Second)
	held, ok := l.Dial()
	if !ok {
		t.Fatal("the rules of an extended session have expired")
	}
	for _, r := range d.Rules(RuleFilter{Source: rules.Session}) {
		if !r.Expires.Equal(expires) {
			t.Errorf("rule %s expires at %s, its session at %s", r.ID, r.Expires, expires)
		}
	}
	// An expiry equal to now has passed. Nobody calls expire here: the policy
	// in force knows by itself.
	a, err := d.attachment(ctx, l.Ref())
	if err != nil {
		t.Fatal(err)
	}
	if decision := askAt(a, expires.Add(-time.Microsecond)); decision.Verdict != rules.Allow {
		t.Errorf("just before: %v %s", decision.Verdict, decision.Reason)
	}
	if decision := askAt(a, expires); decision.Verdict != rules.Deny {
		t.Errorf("at the expiry: %v %s", decision.Verdict, decision.Reason)
	}
	d.pass(20 * time.Second)
	held.WaitCut()
	if _, err := d.Heartbeat(ctx, "s", 0); kind(err) != NotFound {
		t.Errorf("heartbeat of an expired session: %v", err)
	}
	if got := d.Rules(RuleFilter{Source: rules.Session}); len(got) > 0 {
		t.Errorf("rules of an expired session: %v", got)
	}
	stored, err := d.store.Rules(ctx, sessionRulesOf("s"))
	if err != nil || len(stored) > 0 {
		t.Errorf("stored rules of an expired session: %v %v", stored, err)
	}
	if err := d.Detach(ctx, l.Ref()); err != nil {
		t.Fatal(err)
	}
}

func TestARestartGoesOn(t *testing.T) {
	l := netlab.New(t)
	dir, clk := t.TempDir(), &netlab.Clock{}
	d := start(t, dir, clk)
	ctx := t.Context()
	attached := d.attach(l)
	before := d.session(t, "s", l.Ref(), time.Hour)
	rule, _, err := d.AddRule(ctx, rules.Rule{Destination: "evil.example", Action: rules.ActionDeny})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.SetPolicy(ctx, "base", []byte("version: 1\nrules: [{deny: 198.18.0.0/15}]\n")); err != nil {
		t.Fatal(err)
	}
	held, ok := l.Dial()
	if !ok {
		t.Fatal("not allowed")
	}
	d.stop()
	held.WaitCut()
	if _, ok := l.Dial(); ok {
		t.Fatal("without the daemon the container has egress")
	}

	d = start(t, dir, clk)
	list := d.Attachments()
	if len(list) != 1 || list[0].ContainerID != attached.ContainerID || list[0].Waiting || list[0].Session != "s" {
		t.Fatalf("restored: %+v", list)
	}
	if _, ok := l.Dial(); !ok {
		t.Error("the restored session does not count")
	}
	after, err := d.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	if !after.Expires.Equal(before.Expires) || after.Seq != before.Seq || !after.Current {
		t.Errorf("before %+v, after %+v", before, after)
	}
	var ids []string
	for _, r := range d.Rules(RuleFilter{Source: rules.Global}) {
		ids = append(ids, r.ID)
	}
	if diff := cmp.Diff([]string{rule.ID, "base/0"}, ids); diff != "" {
		t.Error(diff)
	}
	if err := d.Detach(ctx, l.Ref()); err != nil {
		t.Fatal(err)
	}
}

func TestDetachLeavesNothing(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	state := func() string {
		var all strings.Builder
		for _, at := range []string{"", "ip netns exec " + l.Box + " "} {
			for _, what := range []string{"nft list ruleset", "ip route show table all", "ip rule", "ip addr show dev lo"} {
				all.WriteString(netlab.Run(t, "sh", "-c", at+what))
			}
		}
		return all.String()
	}
	clean := state()
	d.attach(l)
	if cmp.Equal(clean, state()) {
		t.Fatal("attaching changed nothing, so this test sees nothing")
	}
	again, created, err := d.Attach(ctx, l.Ref())
	if err != nil || created || again.ContainerID == "" {
		t.Errorf("attached again: created %v, %v", created, err)
	}
	if err := d.Detach(ctx, again.ContainerID); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(clean, state()); diff != "" {
		t.Error(diff)
	}
	if err := d.Detach(ctx, l.Ref()); kind(err) != NotFound {
		t.Errorf("detached again: %v", err)
	}
	if stored, err := d.store.Attachments(ctx); err != nil || len(stored) > 0 {
		t.Errorf("stored: %v %v", stored, err)
	}
}

func TestAContainerThatStopsWaitsAndOneThatIsRemovedIsForgotten(t *testing.T) {
	l := netlab.New(t)
	dir, clk := t.TempDir(), &netlab.Clock{}
	d := start(t, dir, clk)
	ctx := t.Context()
	s := d.attach(l)
	d.session(t, "s", l.Ref(), time.Hour)

	// News of a stop that is not true changes nothing.
	d.stopped(ctx, s.ContainerID)
	if list := d.Attachments(); len(list) != 1 || list[0].Waiting {
		t.Fatalf("%+v", list)
	}
	if err := exec.Command("ip", "netns", "del", l.Box).Run(); err != nil {
		t.Fatal(err)
	}
	d.stopped(ctx, s.ContainerID)
	if list := d.Attachments(); len(list) != 1 || !list[0].Waiting || list[0].Session != "s" {
		t.Fatalf("%+v", list)
	}
	d.removed(ctx, s.ContainerID)
	if list := d.Attachments(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	if list := d.Sessions(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	if reasons := d.reasons(t); !strings.Contains(reasons, "container removed") || !strings.Contains(reasons, "|s|session ended: its container was removed") {
		t.Error(reasons)
	}
	d.stop()
	d = start(t, dir, clk)
	if list := d.Attachments(); len(list) != 0 {
		t.Errorf("after a restart: %+v", list)
	}
}

// A detach that failed half-way, or of a container that does not run.
func TestDetachOfOneThatDoesNotServe(t *testing.T) {
	l := netlab.New(t)
	dir, clk := t.TempDir(), &netlab.Clock{}
	d := start(t, dir, clk)
	ctx := t.Context()
	s := d.attach(l)
	a, err := d.attachment(ctx, s.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	d.attaching.Lock()
	d.dropForTakeover(a) // the kernel's part is left
	d.attaching.Unlock()
	if err := d.Detach(ctx, s.ContainerID); err != nil {
		t.Fatal(err)
	}
	if _, ok := l.Dial(); !ok {
		t.Error("the container is still locked in")
	}
	if list := d.Attachments(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	// Attached again, and gone while it waited.
	a, err = d.attachment(ctx, d.attach(l).ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	d.attaching.Lock()
	d.dropForTakeover(a)
	d.attaching.Unlock()
	if err := exec.Command("ip", "netns", "del", l.Box).Run(); err != nil {
		t.Fatal(err)
	}
	if err := d.Detach(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	if out := netlab.Run(t, "nft", "list", "tables"); strings.Contains(out, LockName(a.ID)) {
		t.Errorf("the lock is left: %s", out)
	}
}

// A namespace that went away while the daemon was not there.
func TestARestartForgetsWhatIsGone(t *testing.T) {
	l := netlab.New(t)
	dir, clk := t.TempDir(), &netlab.Clock{}
	d := start(t, dir, clk)
	s := d.attach(l)
	d.stop()
	if err := exec.Command("ip", "netns", "del", l.Box).Run(); err != nil {
		t.Fatal(err)
	}
	d = start(t, dir, clk)
	if list := d.Attachments(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	if out := netlab.Run(t, "nft", "list", "tables"); strings.Contains(out, LockName(s.ContainerID)) {
		t.Errorf("the lock is left: %s", out)
	}
}

func TestWhatCannotBeAttachedIsRefused(t *testing.T) {
	d := start(t, t.TempDir(), &netlab.Clock{})
	for ref, want := range map[string]Kind{
		"netns:there-is-none": NotFound,
		"pid:none":            Invalid,
		"pid:1":               Invalid, // the host's own
		"netns:":              Invalid,
		"web":                 Unavailable, // no runtime
	} {
		_, _, err := d.Attach(context.Background(), ref)
		if kind(err) != want {
			t.Errorf("attach %s: kind %d, want %d: %v", ref, kind(err), want, err)
		}
	}
	if stored, err := d.store.Attachments(t.Context()); err != nil || len(stored) > 0 {
		t.Errorf("left behind: %v %v", stored, err)
	}
}
