package examples_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weir/rules"
)

// A mutant is a policy with one thing left out or widened.
type mutant struct {
	what   string // where, and what was done
	rule   bool   // a whole rule was left out: that must always be possible
	policy any
}

// TestMutants leaves out one piece of each policy at a time (a rule, a deny
// rule, an endpoint, a condition of a rule, an element of a list, a switch)
// and wants a case that notices. A piece that nothing notices is not tested,
// or has no effect and does not belong into an example.
func TestMutants(t *testing.T) {
	for _, name := range policies(t) {
		t.Run(name, func(t *testing.T) {
			var tree any
			if err := yaml.Unmarshal(read(t, name+".yaml"), &tree); err != nil {
				t.Fatal(err)
			}
			original := parse(t, write(t, tree)) // keys in another order
			if original == nil {
				t.Fatal("the policy itself is refused")
			}
			dir := t.TempDir()
			test := filepath.Join(dir, name+testSuffix)
			if err := os.WriteFile(test, read(t, name+testSuffix), 0o600); err != nil {
				t.Fatal(err)
			}
			tried, ruleless := 0, 0
			for _, m := range mutants("", tree) {
				text := write(t, m.policy)
				spoiled := parse(t, text)
				switch {
				case spoiled == nil && m.rule:
					t.Errorf("%s: not a policy any more:\n%s", m.what, text)
				case spoiled == nil || same(original, spoiled):
					continue
				}
				tried++
				if m.rule {
					ruleless++
				}
				if err := os.WriteFile(filepath.Join(dir, name+".yaml"), text, 0o600); err != nil {
					t.Fatal(err)
				}
				if report := run(t, test); report.Failed == 0 {
					t.Errorf("%s: no case notices", m.what)
				}
			}
			if tried < 3 || ruleless < 1 {
				t.Errorf("only %d mutants, %d of them without a rule", tried, ruleless)
			}
		})
	}
}

func write(t *testing.T, tree any) []byte {
	t.Helper()
	text, err := yaml.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// parse returns the rules of a policy, nil when it is refused.
func parse(t *testing.T, text []byte) []rules.Rule {
	t.Helper()
	doc, _, err := rules.ParseDocument("", text)
	if err != nil {
		return nil
	}
	return doc.Rules
}

// same: what a person reads does not count.
func same(a, b []rules.Rule) bool {
	return cmp.Equal(a, b, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}),
		cmpopts.IgnoreFields(rules.Rule{}, "Notes"), cmpopts.IgnoreFields(rules.Endpoint{}, "Policy"))
}

// ruleLists are the lists whose elements are rules.
var ruleLists = []string{"rules", "deny_rules"}

// mutants returns the mutants of a value; key is where it stands.
func mutants(key string, value any) []mutant {
	var out []mutant
	nested := func(at string, inner []mutant, put func(any) any) {
		for _, m := range inner {
			m.what, m.policy = at+": "+m.what, put(m.policy)
			out = append(out, m)
		}
	}
	switch v := value.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			put := func(changed any) any {
				if list, ok := changed.([]any); ok && len(list) == 0 {
					return without(key, v, k)
				}
				c := maps.Clone(v)
				c[k] = changed
				return c
			}
			out = append(out, mutant{"without " + k, false, without(key, v, k)})
			nested(k, mutants(k, v[k]), put)
		}
	case []any:
		for i, element := range v {
			rest := slices.Delete(slices.Clone(v), i, i+1)
			out = append(out, mutant{fmt.Sprintf("without %v", element), slices.Contains(ruleLists, key), rest})
			nested(fmt.Sprintf("[%d]", i), mutants(key, element), func(changed any) any {
				c := slices.Clone(v)
				c[i] = changed
				return c
			})
		}
	case string:
		for _, other := range slices.Concat(others(key, v), globs(key, v)) {
			out = append(out, mutant{"now " + other, false, other})
		}
	}
	return out
}

// without returns a mapping without a key, and with what then keeps it a
// policy: as wide as can be.
func without(key string, v map[string]any, k string) map[string]any {
	c := maps.Clone(v)
	delete(c, k)
	switch {
	case k == "rules" && v["protocol"] != nil, k == "access":
		c["access"] = "full"
	case len(c) == 0 && (k == "operation_type" || k == "operation_name" || k == "fields"):
		c["operation_type"] = "*"
	case len(c) == 0 && (k == "method" || k == "methods" || k == "path" || k == "query"):
		c["method"] = "*"
	}
	return c
}

// others are the other values that a switch has.
func others(key, value string) []string {
	values := map[string][]string{
		"access":            {"read-only", "read-write", "full"},
		"enforcement":       {"enforce", "audit"},
		"persisted_queries": {"deny", "allow_registered"},
		"operation_type":    {"query", "mutation", "subscription"},
	}[key]
	return slices.DeleteFunc(slices.Clone(values), func(other string) bool { return other == value })
}

// globs are wider and narrower forms of a glob over paths: one star for two
// and two for one, and one alternative of a list in braces less.
func globs(key, value string) []string {
	if key != "path" {
		return nil
	}
	var out []string
	parts := strings.Split(value, "/")
	for i, part := range parts {
		if other := map[string]string{"*": "**", "**": "*"}[part]; other != "" {
			changed := slices.Clone(parts)
			changed[i] = other
			out = append(out, strings.Join(changed, "/"))
		}
	}
	before, rest, found := strings.Cut(value, "{")
	inner, after, closed := strings.Cut(rest, "}")
	alternatives := strings.Split(inner, ",")
	for i := range alternatives {
		if found && closed && len(alternatives) > 1 {
			fewer := slices.Delete(slices.Clone(alternatives), i, i+1)
			out = append(out, before+"{"+strings.Join(fewer, ",")+"}"+after)
		}
	}
	return out
}
