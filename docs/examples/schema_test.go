package examples_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/rules"
)

const schemaPage = "../policy-schema.md"

// A row is a key of a section of the page.
type row struct{ value, fallback string }

// schema reads the tables of the page: section → key → row. Sections are
// named as the parser's messages name the mappings.
func schema(t *testing.T) map[string]map[string]row {
	t.Helper()
	sections := map[string]map[string]row{}
	var current []string
	for line := range strings.SplitSeq(string(read(t, schemaPage)), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			current = strings.Split(strings.ToLower(title), ", and ")
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) != 6 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		key := strings.Trim(cells[1], " `")
		for _, section := range current {
			if sections[section] == nil {
				sections[section] = map[string]row{}
			}
			if _, twice := sections[section][key]; twice {
				t.Errorf("%s: %s: %s is there twice", schemaPage, section, key)
			}
			sections[section][key] = row{strings.TrimSpace(cells[2]), strings.TrimSpace(cells[3])}
		}
	}
	return sections
}

// complaints parses a document and returns what matches in each error.
func complaints(t *testing.T, document, pattern string) [][]string {
	t.Helper()
	_, _, err := rules.ParseDocument("", []byte(document))
	if err == nil {
		t.Fatalf("accepted:\n%s", document)
	}
	return regexp.MustCompile(pattern).FindAllStringSubmatch(err.Error(), -1)
}

// unknown has a key that nobody knows in every mapping.
const unknown = `
zzz: 1
rules:
  - {zzz: 1, allow: "*", binaries: [{zzz: 1, path: /a}]}
network_policies:
  p:
    zzz: 1
    endpoints:
      - zzz: 1
        host: a.example
        port: 443
        protocol: rest
        rules: [{zzz: 1, allow: {zzz: 1, query: {a: {zzz: 1}}}}]
        deny_rules: [{zzz: 1}]
      - host: a.example
        port: 443
        path: /graphql
        protocol: graphql
        access: full
        persisted_queries: allow_registered
        graphql_persisted_queries: {a: {zzz: 1}}
        deny_rules: [{zzz: 1}]
`

// The page lists the keys that the parser knows, mapping by mapping.
func TestSchemaKeys(t *testing.T) {
	want := map[string][]string{}
	all := map[string]bool{}
	for _, m := range complaints(t, unknown, `unknown key "zzz" in (.+?); known: (.+)`) {
		want[m[1]] = strings.Split(m[2], ", ")
		for _, key := range want[m[1]] {
			all[key] = true
		}
	}
	got := map[string][]string{}
	for section, rows := range schema(t) {
		got[section] = slices.Sorted(maps.Keys(rows))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-parser +%s:\n%s", schemaPage, diff)
	}
	// No mapping was left out of what was asked above.
	if diff := cmp.Diff(parserKeys(t), slices.Sorted(maps.Keys(all))); diff != "" {
		t.Errorf("-keys in the parser's source +keys of the mappings above:\n%s", diff)
	}
}

// parserKeys are the keys in every literal of type keys in the parser's source.
func parserKeys(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../rules/document*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	found := map[string]bool{}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			literal, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if typ, ok := literal.Type.(*ast.Ident); !ok || typ.Name != "keys" {
				return true
			}
			for _, element := range literal.Elts {
				key, err := strconv.Unquote(element.(*ast.KeyValueExpr).Key.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				found[key] = true
			}
			return true
		})
	}
	return slices.Sorted(maps.Keys(found))
}

// misspelled has a word that nobody knows wherever there is a choice of words.
var misspelled = map[string]string{
	"a rule":                 `{rules: [{allow: "*", transport: zzz}]}`,
	"an endpoint":            `{network_policies: {p: {endpoints: [{host: a.example, port: 1, protocol: zzz}, {host: a.example, port: 1, protocol: graphql, tls: zzz, enforcement: zzz, access: zzz, persisted_queries: zzz}]}}}`,
	"allow":                  `{network_policies: {p: {endpoints: [{host: a.example, port: 1, protocol: graphql, rules: [{allow: {operation_type: zzz}}]}]}}}`,
	"an entry of deny_rules": `{network_policies: {p: {endpoints: [{host: a.example, port: 1, protocol: graphql, access: full, deny_rules: [{operation_type: zzz}]}]}}}`,
	"a registered query":     `{network_policies: {p: {endpoints: [{host: a.example, port: 1, protocol: graphql, access: full, persisted_queries: allow_registered, graphql_persisted_queries: {a: {operation_type: zzz}}}]}}}`,
}

// Where the parser takes one of a few words, the page lists those words.
func TestSchemaWords(t *testing.T) {
	word := regexp.MustCompile("`([^`]+)`")
	sections := schema(t)
	for section, document := range misspelled {
		found := complaints(t, document, `(\w+) cannot be "zzz"; use one of: (.+)`)
		if len(found) == 0 {
			t.Errorf("%s: no complaint about a word", section)
		}
		for _, m := range found {
			var got []string
			for _, w := range word.FindAllStringSubmatch(sections[section][m[1]].value, -1) {
				got = append(got, w[1])
			}
			if diff := cmp.Diff(strings.Split(m[2], ", "), got); diff != "" {
				t.Errorf("%s: %s: -parser +%s:\n%s", section, m[1], schemaPage, diff)
			}
		}
	}
}

// No call of the parser that takes one of a few words was left out above.
func TestSchemaWordsAreAll(t *testing.T) {
	files, err := filepath.Glob("../../rules/document*.go")
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, name := range files {
		calls += strings.Count(string(read(t, name)), "d.choice(")
	}
	asked := 0
	for _, document := range misspelled {
		asked += len(complaints(t, document, `cannot be "zzz"`))
	}
	if asked-1 != calls { // allow and deny_rules are read by one call
		t.Errorf("the parser takes one of a few words in %d places, and %d were asked", calls, asked-1)
	}
}

func TestSchemaNumbers(t *testing.T) {
	if got, want := schema(t)["an endpoint"]["graphql_max_body_bytes"].fallback, fmt.Sprint(rules.DefaultMaxBody); got != want {
		t.Errorf("%s: graphql_max_body_bytes is %s by default, the page says %s", schemaPage, want, got)
	}
	block := regexp.MustCompile("(?s)```yaml policy\n(.*?)```")
	for _, m := range block.FindAllStringSubmatch(string(read(t, schemaPage)), -1) {
		if _, warnings, err := rules.ParseDocument(schemaPage, []byte(m[1])); err != nil || len(warnings) > 0 {
			t.Errorf("%v %v", err, warnings)
		}
	}
}
