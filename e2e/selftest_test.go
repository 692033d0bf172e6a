package e2e

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSelftestHoldsAndLeavesNothing(t *testing.T) {
	w := startWeir(t, "")
	// Its own names only: others come and go on this machine meanwhile.
	own := regexp.MustCompile(`(?m)^.*(weirst|weir-selftest-|weir-netns-).*$`)
	left := func() []string {
		return own.FindAllString(run(t, "ip", "-br", "link")+run(t, "ip", "netns")+run(t, "nft", "list", "tables"), -1)
	}
	before := left()
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
	eventually(t, "nothing is left", func() bool { return cmp.Equal(before, left()) })
	if out := w.run("ps"); strings.Contains(out, "selftest") {
		t.Errorf("still attached: %s", out)
	}
}
