// Package docs_test holds the documentation to its word: what it shows is run,
// what it lists is compared with the code.
package docs_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"weir/api"
	"weir/policytest"
	"weir/rules"
)

// A block is a fenced piece of a page.
type block struct {
	page string
	line int    // of its first line
	info string // what stands behind the fence: "yaml policy-test"
	text string
}

func (b block) at() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// pages are the repository's pages, as paths from this directory.
func pages(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob("../*.md")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			list = append(list, path)
		}
		return err
	})
	if err != nil || len(list) < 10 {
		t.Fatalf("found %d pages: %v", len(list), err)
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks returns the fenced blocks of all pages, and prose, the pages without
// them.
func blocks(t *testing.T) (list []block, prose map[string]string) {
	t.Helper()
	prose = map[string]string{}
	for _, page := range pages(t) {
		var open *block
		var rest strings.Builder
		for i, line := range strings.Split(read(t, page), "\n") {
			info, fence := strings.CutPrefix(line, "```")
			switch {
			case fence && open == nil:
				open = &block{page: page, line: i + 2, info: info}
			case fence:
				list = append(list, *open)
				open = nil
			case open != nil:
				open.text += line + "\n"
			default:
				rest.WriteString(line + "\n")
			}
		}
		if open != nil {
			t.Errorf("%s: the block is not closed", open.at())
		}
		prose[page] = rest.String()
	}
	return list, prose
}

// only returns the blocks with an info string; there have to be some.
func only(t *testing.T, info string) []block {
	t.Helper()
	all, _ := blocks(t)
	some := slices.DeleteFunc(all, func(b block) bool { return b.info != info })
	if len(some) == 0 {
		t.Fatalf("no block %q in any page", info)
	}
	return some
}

func TestPolicyTestsOfThePagesPass(t *testing.T) {
	for _, b := range only(t, "yaml policy-test") {
		file := filepath.Join(t.TempDir(), "test.yaml")
		if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
			t.Fatal(err)
		}
		report, err := policytest.Run(file)
		if err != nil {
			t.Errorf("%s: %v", b.at(), err)
		}
		for _, f := range report.Failures {
			t.Errorf("%s: %s", b.at(), f)
		}
	}
}

func TestPoliciesOfThePagesAreValid(t *testing.T) {
	for _, b := range only(t, "yaml policy") {
		if _, warnings, err := rules.ParseDocument(b.at(), []byte(b.text)); err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v %v", b.at(), err, warnings)
		}
	}
}

func TestJSONOfThePagesIsJSON(t *testing.T) {
	for _, b := range only(t, "json") {
		if !json.Valid([]byte(b.text)) {
			t.Errorf("%s: not JSON: %s", b.at(), b.text)
		}
	}
}

var (
	link    = regexp.MustCompile(`\[[^\]]*\]\(([^)]*)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

func TestLinksLeadSomewhere(t *testing.T) {
	_, prose := blocks(t)
	for page, text := range prose {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(m[1], "https://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(prose[target]), anchor) {
				t.Errorf("%s: %s has no heading #%s", page, target, anchor)
			}
		}
	}
}

// TestReadmeLinksEveryPage: who starts there finds all of them.
func TestReadmeLinksEveryPage(t *testing.T) {
	text := read(t, "../README.md")
	for _, page := range pages(t) {
		if filepath.Dir(page) != ".." && !strings.Contains(text, "(docs/"+filepath.ToSlash(page)+")") {
			t.Errorf("README.md does not link docs/%s", page)
		}
	}
}

// anchors are the headings of a page as links name them.
func anchors(text string) []string {
	var list []string
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		list = append(list, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return list
}

var route = regexp.MustCompile("`(GET|POST|PUT|DELETE) (/v1/[^`]*)`")

func TestAPIReferenceListsEveryRoute(t *testing.T) {
	text, err := (&api.Server{}).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var described struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(text, &described); err != nil {
		t.Fatal(err)
	}
	var there, listed []string
	for path, methods := range described.Paths {
		for method := range methods {
			there = append(there, strings.ToUpper(method)+" "+path)
		}
	}
	for _, m := range route.FindAllStringSubmatch(read(t, "reference/api.md"), -1) {
		listed = append(listed, m[1]+" "+m[2])
	}
	compare(t, "reference/api.md", there, listed)
}

// compare reports what a page lacks, and what it has too much.
func compare(t *testing.T, page string, there, listed []string) {
	t.Helper()
	if len(there) == 0 {
		t.Fatalf("nothing to compare %s with", page)
	}
	for _, what := range there {
		if !slices.Contains(listed, what) {
			t.Errorf("%s does not say anything about %s", page, what)
		}
	}
	for _, what := range listed {
		if !slices.Contains(there, what) {
			t.Errorf("%s speaks of %s, which is not there", page, what)
		}
	}
}
