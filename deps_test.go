// Package weir_test holds the checks of the repository as a whole.
package weir_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the prefix of this repository's own packages.
const module = "weir/"

// mayImport is the import graph: what each package may know of the others.
// Imports point one way only,
//
//	cmd → web → api → session → {proxy, dnsmap, redirect, container, store} → audit → rules → graphql
//
// and what stands in braces does not know its neighbours.
var mayImport = map[string]struct {
	packages []string
	why      string
}{
	"graphql":    {nil, "it turns bytes into operations and needs nobody's help for that"},
	"rules":      {[]string{"graphql"}, "a decision depends on facts that are handed in, so it may not know where they come from"},
	"ask":        {[]string{"rules", "graphql"}, "it keeps who waits for which answer; what an answer does is up to who is told"},
	"audit":      {[]string{"rules", "graphql"}, "it records what was decided; whoever stores or shows it is handed in or comes above"},
	"migrations": {nil, "it is text for the database"},
	"store":      {[]string{"migrations", "audit", "rules", "graphql"}, "it remembers; it must not be able to act on what it remembers"},
	"container":  {nil, "it finds containers, for whatever purpose"},
	"redirect":   {nil, "it captures traffic and must not have an opinion about it"},
	"dnsmap":     {[]string{"audit", "rules", "graphql"}, "the shim asks a policy that it is handed"},
	"proxy":      {[]string{"ask", "audit", "rules", "graphql"}, "the data path takes small functions, so that it can be tested over plain sockets"},
	"trust":      {[]string{"container"}, "it writes into a container's files, through the one door there is to them"},
	"session": {[]string{"ask", "learn", "trust", "proxy", "dnsmap", "redirect", "container", "store", "audit", "rules", "graphql"},
		"the conductor is the one place where the parts meet"},
	"learn":      {[]string{"audit", "rules", "graphql"}, "events in, a policy out; who asks for it is handed the text"},
	"selftest":   {[]string{"api"}, "it attacks a running daemon as a client of its API"},
	"policytest": {[]string{"proxy", "dnsmap", "rules", "graphql"}, "a policy test runs the daemon's own code, without the daemon"},
	"api":        {[]string{"session", "ask", "learn", "trust", "store", "audit", "rules", "graphql"}, "it translates between HTTP and the conductor, and does nothing past the conductor"},
	"web":        {[]string{"api", "session", "learn", "audit", "rules", "graphql"}, "the dashboard shows what the API gives"},
	"cmd/weir": {[]string{"web", "selftest", "api", "session", "learn", "trust", "policytest", "proxy", "dnsmap", "redirect", "container", "store", "migrations", "audit", "rules", "graphql"},
		"the wiring knows everybody, and nobody knows the wiring"},
	"bench":         {nil, "what is measured is the binary, as its users meet it"},
	"e2e":           {nil, "end-to-end tests meet the binary as its users do"},
	"e2e/netlab":    {nil, "it is a network for tests, of whatever"},
	"docs/examples": {[]string{"policytest", "rules"}, "each example is run"},
	"docs":          {[]string{"api", "policytest", "rules"}, "the documentation's examples are run, and its lists compared"},
	"":              {nil, "checks of the repository read it from the outside"},
}

// forTests is the one package that only tests may import, and all of them may.
const forTests = "e2e/netlab"

// reserved are packages of others that only some of ours may import.
var reserved = []struct {
	prefix string
	only   []string // nil: nobody
	why    string
}{
	{"database/sql", []string{"store", "migrations"}, "store is the only package that speaks SQL"},
	{"modernc.org/sqlite", []string{"store"}, "store is the only package that speaks SQL"},
	{"github.com/google/nftables", []string{"redirect", "selftest"}, "rulesets are installed in one place, which can take them back; the self-test attacks with its own"},
	{"github.com/vishvananda/", []string{"redirect", "selftest"}, "namespaces are entered in one place, the only one that locks threads; the self-test makes its own"},
	{"github.com/moby/", []string{"container"}, "container is the only package that knows a container runtime"},
	{"github.com/danielgtaylor/huma", []string{"api"}, "api is the only package that speaks the API's HTTP"},
	{"github.com/spf13/cobra", []string{"cmd/weir"}, "flags are read in one place"},
	{"os/exec", []string{"cmd/weir", forTests}, "Weir runs no other programs (what nft or ip could do, netlink does, with errors instead of text); only weir oci-runtime becomes the one that it wraps"},
	{"testing", []string{forTests}, "test helpers belong into test files; what several packages' tests need is in one place"},
	{module + forTests, nil, "it is for tests"},
}

// pure packages give the same answer to the same facts, always.
var pure = []string{"rules", "graphql"}

// impure is what a pure package must not import, each with its reason.
var impure = map[string]string{
	"net/http":     "HTTP is read by the proxy; what arrives here are its facts",
	"os":           "files and environment are read by the caller, who hands over bytes",
	"io/fs":        "files are read by the caller, who hands over bytes",
	"syscall":      "the kernel's word is a fact that is handed in",
	"database/sql": "the database is never on the path of a connection",
	"log":          "the decision itself says why; there is nothing to log beside it",
	"math/rand":    "the same facts give the same answer",
	"crypto/rand":  "the same facts give the same answer",
	"context":      "nothing here waits, so there is nothing to cancel",
}

// whyImpure returns why a pure package must not import a package, or "".
func whyImpure(imported string) string {
	for ; imported != "."; imported = path.Dir(imported) {
		if why, bad := impure[imported]; bad {
			return why
		}
	}
	return ""
}

// calls says of packages that are pure in part whether a function of theirs is
// not, and why.
var calls = map[string]struct {
	impure func(name string) bool
	why    string
}{
	"time": {func(name string) bool {
		return slices.Contains([]string{"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep"}, name)
	}, "time is a fact of the request and is handed in"},
	"net": {func(name string) bool {
		return name != "JoinHostPort" && name != "SplitHostPort"
	}, "resolving or dialling would make a decision depend on the network (net/netip is fine)"},
}

// goPackage is what `go list -json` says of a package.
type goPackage struct {
	Dir          string
	ImportPath   string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// short is the package's path inside the module; "" is the root.
func (p goPackage) short() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, strings.TrimSuffix(module, "/")), "/")
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,GoFiles,Imports,TestImports,XTestImports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < len(pure)+1 {
		t.Fatalf("go list found %d packages, which cannot be all", len(list))
	}
	return list
}

func TestImportsPointOneWay(t *testing.T) {
	for _, p := range listPackages(t) {
		row, ok := mayImport[p.short()]
		tests := below(p.short())
		if !ok {
			t.Errorf("package %s is not in the import graph: give it a row in mayImport, and one in ARCHITECTURE.md", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if own, ok := strings.CutPrefix(imported, module); ok && !slices.Contains(row.packages, own) {
				t.Errorf("%s imports %s, which it may not: %s", p.ImportPath, imported, row.why)
			}
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if own, ok := strings.CutPrefix(imported, module); ok && own != p.short() && own != forTests && !tests[own] {
				t.Errorf("tests of %s import %s, which is not below it: %s", p.ImportPath, imported, row.why)
			}
		}
	}
}

// below are the packages that a package knows, directly or not: its tests may
// build what it is handed.
func below(name string) map[string]bool {
	all := map[string]bool{}
	var add func(string)
	add = func(name string) {
		for _, next := range mayImport[name].packages {
			if !all[next] {
				all[next] = true
				add(next)
			}
		}
	}
	add(name)
	return all
}

// TestGraphHasNoCycle keeps the table itself honest.
func TestGraphHasNoCycle(t *testing.T) {
	var visit func(name string, path []string)
	visit = func(name string, path []string) {
		if slices.Contains(path, name) {
			t.Fatalf("mayImport allows a cycle: %s", strings.Join(append(path, name), " → "))
		}
		for _, next := range mayImport[name].packages {
			if _, ok := mayImport[next]; !ok {
				t.Errorf("mayImport of %q names %q, which has no row", name, next)
			}
			visit(next, append(path, name))
		}
	}
	for name := range mayImport {
		visit(name, nil)
	}
}

func TestReservedImports(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imported := range p.Imports {
			for _, r := range reserved {
				if strings.HasPrefix(imported, r.prefix) && !slices.Contains(r.only, p.short()) {
					t.Errorf("%s imports %s, which is for %v only: %s", p.ImportPath, imported, r.only, r.why)
				}
			}
		}
	}
}

func TestPurePackages(t *testing.T) {
	checked := 0
	for _, p := range listPackages(t) {
		if !slices.Contains(pure, p.short()) {
			continue
		}
		checked++
		for _, imported := range p.Imports {
			if why := whyImpure(imported); why != "" {
				t.Errorf("%s is pure and imports %s: %s", p.ImportPath, imported, why)
			}
		}
		for _, name := range p.GoFiles {
			for _, call := range impureCalls(t, filepath.Join(p.Dir, name)) {
				t.Errorf("package %s is pure: %s", p.short(), call)
			}
		}
	}
	if checked != len(pure) {
		t.Errorf("found %d of the pure packages %v", checked, pure)
	}
}

// impureCalls returns where a file uses what calls forbids.
func impureCalls(t *testing.T, path string) []string {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	ast.Inspect(file, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := s.X.(*ast.Ident)
		if !ok {
			return true
		}
		if c, ok := calls[x.Name]; ok && c.impure(s.Sel.Name) {
			found = append(found, fmt.Sprintf("%s uses %s.%s: %s", files.Position(s.Pos()), x.Name, s.Sel.Name, c.why))
		}
		return true
	})
	return found
}
