package examples_test

import (
	"regexp"
	"strings"
	"testing"
)

// The page about TLS names every variable that `weir ca install` prints.
func TestTrustVariables(t *testing.T) {
	page := string(read(t, "../tls.md"))
	printed := regexp.MustCompile(`\{"([A-Z_]{8,})", `).FindAllStringSubmatch(string(read(t, "../../trust/trust.go")), -1)
	if len(printed) < 5 {
		t.Fatalf("found only %d variables in the source", len(printed))
	}
	for _, m := range printed {
		if !strings.Contains(page, "`"+m[1]+"`") {
			t.Errorf("../tls.md does not mention %s", m[1])
		}
	}
}
