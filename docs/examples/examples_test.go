// Package examples_test runs the policies of this directory against their
// tests, and the tests against policies that were spoiled on purpose.
package examples_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"weir/policytest"
	"weir/rules"
)

const testSuffix = ".test.yaml"

// policies returns the names of the policies here, without ".yaml".
func policies(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		if !strings.HasSuffix(file, testSuffix) {
			names = append(names, strings.TrimSuffix(file, ".yaml"))
		}
	}
	if len(names) < 10 {
		t.Fatalf("only %d policies here: %v", len(names), names)
	}
	return names
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// run runs a test file whose cases all have to be judged.
func run(t *testing.T, path string) policytest.Report {
	t.Helper()
	report, err := policytest.Run(path)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestPolicies(t *testing.T) {
	for _, name := range policies(t) {
		t.Run(name, func(t *testing.T) {
			_, warnings, err := rules.ParseDocument(name+".yaml", read(t, name+".yaml"))
			if err != nil {
				t.Error(err)
			}
			for _, w := range warnings {
				t.Error(w)
			}
			for _, f := range run(t, name+testSuffix).Failures {
				t.Error(f)
			}
		})
	}
}

// An example shows both what passes and what does not, and is about the policy
// beside it.
func TestCasesOfBothKinds(t *testing.T) {
	for _, name := range policies(t) {
		var file struct {
			Sessions []struct {
				PolicyFile string `yaml:"policy_file"`
			} `yaml:"sessions"`
			Cases []struct {
				Name   string `yaml:"name"`
				Expect string `yaml:"expect"`
			} `yaml:"cases"`
		}
		if err := yaml.Unmarshal(read(t, name+testSuffix), &file); err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		for _, c := range file.Cases {
			count[c.Expect]++
			if c.Name == "" {
				t.Errorf("%s%s: a case without a name", name, testSuffix)
			}
		}
		if count["allow"] < 3 || count["deny"] < 3 {
			t.Errorf("%s%s: %v; want at least three cases of each kind", name, testSuffix, count)
		}
		if len(file.Sessions) != 1 || file.Sessions[0].PolicyFile != name+".yaml" {
			t.Errorf("%s%s: want one session, with policy_file: %s.yaml", name, testSuffix, name)
		}
	}
}
