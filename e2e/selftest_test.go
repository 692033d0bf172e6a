package e2e

import (
	"strings"
	"testing"
)

func TestSelftestHoldsAndLeavesNothing(t *testing.T) {
	w := startWeir(t, "")
	before := run(t, "ip", "-br", "link") + run(t, "ip", "netns") + run(t, "nft", "list", "tables")
	var results []struct {
		Attack, Detail string
		Held           bool
	}
	w.json(&results, "selftest")
	if len(results) < 15 {
		t.Errorf("only %d attacks", len(results))
	}
	for _, r := range results {
		if !r.Held {
			t.Errorf("%s: %s", r.Attack, r.Detail)
		}
	}
	eventually(t, "nothing is left", func() bool {
		after := run(t, "ip", "-br", "link") + run(t, "ip", "netns") + run(t, "nft", "list", "tables")
		return after == before
	})
	if out := w.run("ps"); strings.Contains(out, "selftest") {
		t.Errorf("still attached: %s", out)
	}
}
