package policytest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v: no files", pattern, err)
	}
	return list
}

func TestGoodFiles(t *testing.T) {
	for _, path := range files(t, "testdata/good/*.yaml") {
		report, err := Run(path)
		if err != nil {
			t.Error(err)
		}
		for _, f := range report.Failures {
			t.Error(f)
		}
		if report.Failed != len(report.Failures) {
			t.Errorf("%s: %d failed, %d failures", path, report.Failed, len(report.Failures))
		}
	}
}

// Every case of the good files fails when it expects the opposite.
func TestEveryCaseCanFail(t *testing.T) {
	swap := strings.NewReplacer("expect: allow", "expect: deny", "expect: deny", "expect: allow")
	for _, path := range files(t, "testdata/good/*.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		turned := filepath.Join(t.TempDir(), "good", filepath.Base(path))
		policy, err := os.ReadFile("testdata/graphql-policy.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{turned: swap.Replace(string(text)), filepath.Join(filepath.Dir(turned), "../graphql-policy.yaml"): string(policy)} {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		report, err := Run(turned)
		if err != nil {
			t.Fatal(err)
		}
		if cases := strings.Count(string(text), "expect: "); report.Passed > 0 || report.Failed != cases {
			t.Errorf("%s: %d passed, %d failed of %d", path, report.Passed, report.Failed, cases)
		}
	}
}

// The first line of a bad file is what its error says.
func TestBadFiles(t *testing.T) {
	for _, path := range files(t, "testdata/bad/*.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(text), "\n")
		want, ok := strings.CutPrefix(line, "# error: ")
		if !ok {
			t.Fatalf("%s: the first line does not say what the error is", path)
		}
		_, err = Run(path)
		if err == nil {
			t.Errorf("%s: no error", path)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "testdata/bad/") {
			t.Errorf("%s: want %q, got:\n%v", path, want, err)
		}
	}
	if _, err := Run("testdata/none.yaml"); err == nil {
		t.Error("a file that is not there")
	}
}

func TestFailures(t *testing.T) {
	report, err := Run("testdata/failing.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range report.Failures {
		if f.Why == "" {
			t.Errorf("%s: no reason", f)
		}
		lines = append(lines, strings.TrimSuffix(f.String(), ": "+f.Why))
	}
	want := []string{
		"testdata/failing.yaml: the verdict: want allow, got deny",
		"testdata/failing.yaml: case 2: want deny by session, got deny by default",
		"testdata/failing.yaml: the rule: want deny rule 1, got deny rule 0",
		"testdata/failing.yaml: no rule at all: want deny rule 0, got deny no rule",
		"testdata/failing.yaml: would: want allow, would allow, got allow, would deny",
	}
	if diff := cmp.Diff(want, lines); diff != "" || report.Passed != 1 || report.Failed != 5 {
		t.Errorf("%d passed, %d failed\n%s", report.Passed, report.Failed, diff)
	}
	var both Report
	both.Add(report)
	both.Add(report)
	if both.Passed != 2 || both.Failed != 10 || len(both.Failures) != 10 {
		t.Errorf("%+v", both)
	}
}
