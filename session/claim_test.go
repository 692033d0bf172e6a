package session

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"weir/e2e/netlab"
)

// TestClaimsOfTheDeadAreCleared kills itself, run anew, while it holds a claim.
func TestClaimsOfTheDeadAreCleared(t *testing.T) {
	const dead, alive = "0:1", "0:2" // no device 0 has namespaces
	if os.Getenv("WEIR_TEST_CLAIM") != "" {
		if _, err := claimNetNS(dead); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-t.Context().Done() // it comes at once
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestClaimsOfTheDeadAreCleared$")
	cmd.Env = append(os.Environ(), "WEIR_TEST_CLAIM=1")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("it was to be killed: %s", out)
	}
	left := filepath.Join(claims, "0-1")
	if _, err := os.Stat(left); err != nil {
		t.Fatalf("a killed daemon leaves no claim, so this test sees nothing: %v", err)
	}
	held, err := claimNetNS(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer held.giveUp()

	start(t, t.TempDir(), &netlab.Clock{})
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the claim of a killed daemon is still there: %v", err)
	}
	if second, err := claimNetNS(alive); err == nil {
		t.Error("a claim that is held was cleared away")
		second.giveUp()
	}
}
