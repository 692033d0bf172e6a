package e2e

import (
	"slices"
	"strings"
	"testing"
)

func TestCompletionOffersContainers(t *testing.T) {
	w := startWeir(t, "")
	box := newBox(t)
	offered := func(command string) bool {
		t.Helper()
		return slices.Contains(strings.Split(w.run("__complete", command, ""), "\n"), box.Name)
	}
	if !offered("attach") || offered("detach") {
		t.Error("attach must offer a running container, detach only an attached one")
	}
	w.run("attach", box.Name)
	if !offered("detach") || !offered("explain") {
		t.Error("an attached container is not offered")
	}
}

func TestAttachAgainSaysWhichSessionCounts(t *testing.T) {
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--session", "work", "--allow", "shop.example:443")
	if out := w.run("attach", box.Name); !strings.Contains(out, "work") || strings.Contains(out, "none") {
		t.Errorf("the current session is work, attach says: %s", out)
	}
}
