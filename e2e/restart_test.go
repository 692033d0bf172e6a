package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLabelsAttachAndContainersComeBack(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	o.serveHTTP("198.51.100.10:80", greet("shop"))
	o.serveHTTP("198.51.100.11:80", greet("other"))
	w := startWeir(t, "")
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("version: 1\nrules:\n  - allow: shop.example\n    ports: 80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	isAttached := func(b *Box) func() bool {
		return func() bool { a := w.attached(b.Name); return a != nil && a.State == "attached" }
	}
	expect := func(when string, b *Box, shop, other bool) {
		t.Helper()
		if out, ok := b.curl("http://shop.example/"); ok != shop {
			t.Errorf("%s: shop.example open: %v, want %v: %s", when, ok, shop, out)
		}
		if out, ok := b.curl("http://198.51.100.11/"); ok != other {
			t.Errorf("%s: 198.51.100.11 open: %v, want %v: %s", when, ok, other, out)
		}
	}

	enforced := newBox(t, "--label", "weir.attach=true", "--label", "weir.session.policy="+policy, "--label", "weir.session.ttl=1h")
	learning := newBox(t, "--label", "weir.attach=true", "--label", "weir.session.allow-all=true")
	bare := newBox(t, "--label", "weir.attach=true")
	broken := newBox(t, "--label", "weir.attach=true", "--label", "weir.session.policy=/nowhere.yaml")
	misspelt := newBox(t, "--label", "weir.attach=true", "--label", "weir.session.allowall=true")
	no := newBox(t, "--label", "weir.attach=false")
	for _, b := range []*Box{enforced, learning, bare, broken, misspelt} {
		eventually(t, "attached by its label: "+b.Name, isAttached(b))
	}
	for _, b := range []*Box{enforced, learning} {
		eventually(t, "a session by its labels", func() bool { return w.attached(b.Name).SessionID != "" })
	}
	expect("a policy by label", enforced, true, false)
	expect("learning by label", learning, true, true)
	expect("attached without a session", bare, false, false)
	expect("a policy that is not there", broken, false, false)
	expect("a misspelt label", misspelt, false, false)
	if a := w.attached(no.Name); a != nil {
		t.Errorf("weir.attach=false was attached: %+v", a)
	}
	for b, label := range map[*Box]string{broken: "weir.session.policy", misspelt: "weir.session.allowall"} {
		w.waitEvent(b.Name, "what is wrong with the label", func(e Event) bool { return strings.Contains(e.Reason, label) })
	}

	// A restart gives the container another namespace; it is attached again,
	// and its session counts on.
	first := w.attached(enforced.Name)
	run(t, "docker", "restart", "-t", "0", enforced.Name)
	eventually(t, "attached after the restart", func() bool {
		a := w.attached(enforced.Name)
		return a.State == "attached" && a.AttachedAt.After(first.AttachedAt)
	})
	expect("after a restart", enforced, true, false)
	if a := w.attached(enforced.Name); a.SessionID != first.SessionID {
		t.Errorf("another session after the restart: %s, then %s", first.SessionID, a.SessionID)
	}

	// The labels ask for a session again when none is left to count on.
	run(t, "docker", "stop", "-t", "0", enforced.Name)
	w.run("session", "end", first.SessionID)
	run(t, "docker", "start", enforced.Name)
	eventually(t, "a session by its labels after a later start", func() bool { return w.attached(enforced.Name).SessionID != "" })
	expect("a later start", enforced, true, false)

	// Without labels, too; and with the state in between.
	plain := newBox(t)
	w.run("attach", plain.Name, "--allow", "shop.example:80")
	run(t, "docker", "stop", "-t", "0", plain.Name)
	eventually(t, "waiting", func() bool { return w.attached(plain.Name).State == "waiting" })
	if out := w.run("ps"); !strings.Contains(out, "waiting") {
		t.Errorf("ps says nothing of a container that waits: %s", out)
	}
	if tables := run(t, "nft", "list", "tables"); strings.Contains(tables, plain.ID[:12]) {
		t.Errorf("a stopped container has a lock on the host: %s", tables)
	}
	w.run("session", "create", plain.Name, "--allow", "198.51.100.11:80")
	run(t, "docker", "start", plain.Name)
	eventually(t, "attached after the start", isAttached(plain))
	expect("after stop and start", plain, false, true)

	// A rename keeps everything.
	renamed := unique(t, "renamed")
	run(t, "docker", "rename", plain.Name, renamed)
	plain.Name = renamed
	t.Cleanup(func() { try("docker", "rm", "-f", renamed) })
	eventually(t, "attached under the new name", isAttached(plain))
	expect("after a rename", plain, false, true)

	run(t, "docker", "rm", "-f", renamed)
	eventually(t, "forgotten", func() bool { return w.attached(plain.ID) == nil })
	if out := w.run("session", "list", "-o", "json"); strings.Contains(out, plain.ID) {
		t.Errorf("a removed container has sessions: %s", out)
	}
	if tables := run(t, "nft", "list", "tables"); strings.Contains(tables, plain.ID[:12]) {
		t.Errorf("a removed container has a lock on the host: %s", tables)
	}
	if list := w.events(plain.ID); len(list) == 0 {
		t.Errorf("the trail of a removed container is gone")
	}
}

// A container belongs to one daemon, and comes free for the next when that ends.
func TestASecondDaemonDoesNotTakeWhatTheFirstHolds(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	first, second := startWeir(t, ""), startWeir(t, "")
	box := newBox(t)
	first.run("attach", box.Name, "--allow", "198.51.100.10:80")
	for range 2 {
		if out, code := second.try("attach", box.Name); code != 1 || !strings.Contains(out, "another daemon") || !strings.Contains(out, "--socket") {
			t.Errorf("the second attaches it: exit %d, %s", code, out)
		}
	}
	if out, ok := box.curl("http://198.51.100.10/"); !ok {
		t.Errorf("the first does not serve it any more: %s", out)
	}
	first.run("detach", box.Name)
	second.run("attach", box.Name, "--allow", "198.51.100.10:80")
	if out, ok := box.curl("http://198.51.100.10/"); !ok {
		t.Errorf("the second does not serve it: %s", out)
	}
}
