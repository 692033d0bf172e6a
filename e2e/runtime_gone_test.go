package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// A daemon that starts while the runtime is away cannot look at a container's
// namespace: it stays locked, a detach says so instead of leaving half of it
// behind, and when the runtime is back everything goes on by itself.
func TestDetachWhileTheRuntimeIsAway(t *testing.T) {
	o := newOutside(t)
	o.serveHTTP("198.51.100.10:80", greet("shop"))
	socket := filepath.Join(t.TempDir(), "docker.sock")
	appear := func() {
		t.Helper()
		if err := os.Symlink("/var/run/docker.sock", socket); err != nil {
			t.Fatal(err)
		}
	}
	appear()
	w := startWeir(t, "runtimes: ["+socket+"]\n")
	box := newBox(t)
	reaches := func() bool { _, ok := box.curl("http://198.51.100.10/"); return ok }
	w.run("attach", box.Name, "--allow", "198.51.100.10:80")
	if !reaches() {
		t.Fatal("what its session allows is refused")
	}

	w.kill()
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	w.start()
	if a := w.attached(box.Name); a == nil || a.State == "attached" {
		t.Errorf("without a runtime the attachment is %+v, want one that waits", a)
	}
	w.refuses(refused{[]string{"detach", box.Name}, 1, []string{box.Name, socket, "start docker"}})
	if w.attached(box.Name) == nil || reaches() {
		t.Error("a detach that was refused took away half of the capture")
	}

	appear()
	eventually(t, "attached again", func() bool { return w.attached(box.Name).State == "attached" })
	if !reaches() {
		t.Error("what its session allows is refused after the runtime came back")
	}
	w.run("detach", box.Name)
	if w.attached(box.Name) != nil || !reaches() {
		t.Error("not set free")
	}
}
