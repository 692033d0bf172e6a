package rules

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestPathGlob(t *testing.T) {
	for _, c := range []struct {
		pattern    string
		yes, no    []string
		normalised string
	}{
		{pattern: "/graphql", yes: []string{"/graphql"}, no: []string{"/graphql/", "/GraphQL", "/graphqlx"}},
		{pattern: "/repos/*", yes: []string{"/repos/a", "/repos/"}, no: []string{"/repos", "/repos/a/b"}},
		{pattern: "/repos/**", yes: []string{"/repos", "/repos/", "/repos/a", "/repos/a/b"}, no: []string{"/repo", "/reposx"}},
		{pattern: "/**/info/refs*", yes: []string{"/info/refs", "/o/r/info/refs"}, no: []string{"/o/r/info/refs/x"}},
		{pattern: "/a/**/b", yes: []string{"/a/b", "/a/x/b", "/a/x/y/b"}, no: []string{"/a/xb", "/ab"}},
		{pattern: "**", yes: []string{"", "/", "/a/b"}},
		{pattern: "/v?/x", yes: []string{"/v1/x", "/vé/x"}, no: []string{"/v/x", "/v12/x", "/v//x"}},
		{pattern: "/[a-c]", yes: []string{"/a", "/c"}, no: []string{"/d", "/A"}},
		{pattern: "/[!a-c]", normalised: "/[!/a-c]", yes: []string{"/d"}, no: []string{"/a", "//", "/"}},
		{pattern: "/[!-a]x", normalised: "/[!-/a]x", yes: []string{"/bx"}, no: []string{"/-x", "/ax", "//x"}},
		{pattern: "/x[!a]y", normalised: "/x[!/a]y", no: []string{"/x/y"}},
		{pattern: "/{a,b/c}/d", yes: []string{"/a/d", "/b/c/d"}, no: []string{"/b/d"}},
		{pattern: "/{a,**}", yes: []string{"/a", "/b/c", ""}, no: []string{"x"}},
		{pattern: "/admin*/**", yes: []string{"/admin", "/admins", "/admin/x"}, no: []string{"/adm"}},
		{pattern: "/a/**/*", yes: []string{"/a/", "/a/b", "/a/b/c"}, no: []string{"/a"}},
		{pattern: "/foo{,s}", yes: []string{"/foo", "/foos"}, no: []string{"/foox"}},
		{pattern: "/[*]", yes: []string{"/*"}, no: []string{"/a"}},
	} {
		g, err := normalPathGlob(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		if c.normalised == "" {
			c.normalised = c.pattern
		}
		if g != c.normalised {
			t.Errorf("%s: normal form %s, want %s", c.pattern, g, c.normalised)
		}
		for _, s := range c.yes {
			if !matchPath(g, s) {
				t.Errorf("%s does not match %q", c.pattern, s)
			}
		}
		for _, s := range c.no {
			if matchPath(g, s) {
				t.Errorf("%s matches %q", c.pattern, s)
			}
		}
	}
}

func TestFlatGlob(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"*", []string{"", "a", "a/b", "a\x00b"}, nil},
		{"**", []string{"", "a/b"}, nil},
		{"repo*", []string{"repo", "repository", "repo/x"}, []string{"Repo"}},
		{"a/b", []string{"a/b"}, []string{"a\x00b", "a\ufffdb"}},
		{"v[12].*", []string{"v1.", "v2.3/4"}, []string{"v3.0"}},
		{"{get,list}*", []string{"getX", "list"}, []string{"put"}},
		{"?", []string{"/", "é"}, []string{"", "ab"}},
		{"[!a]", []string{"/", "b"}, []string{"a"}},
		{"a**b", []string{"ab", "a/b"}, []string{"a"}},
	} {
		g, err := normalFlatGlob(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, s := range c.yes {
			if !matchFlat(g, s) {
				t.Errorf("%s does not match %q", c.pattern, s)
			}
		}
		for _, s := range c.no {
			if matchFlat(g, s) {
				t.Errorf("%s matches %q", c.pattern, s)
			}
		}
	}
}

func TestRefusedGlobs(t *testing.T) {
	for _, p := range []string{
		"", "/a**", "/**b", "/**/**", "/a/**/", "/{**a,b}", `/a\*`, "/[", "/[]", "/[!]", "/[^a]", "/[b-a]", "/[+-9]",
		"/[[:alpha:]]", "/[a/b]", "/{a", "/a}", "/{a}", "/{a,{b,c}}", "/[a--b]", "/[a-c-e]", "/a\x00", "/a\x7f", "/[\n]", "/\xff", "/\ufffd", "/[{,}]",
		"/" + strings.Repeat("{a,b}", 7), strings.Repeat("a", maxGlob+1),
	} {
		if g, err := normalPathGlob(p); err == nil {
			t.Errorf("%q accepted as %q", p, g)
		}
	}
}

func TestGlobLiterals(t *testing.T) {
	for p, want := range map[string]int{
		"/graphql": 8, "**": 0, "/**": 1, "/a/*": 3, "/[ab]c": 2, "/{abc,d}": 2, "/{a,b}{c,dd}": 3, "/é?": 2, "/[*]x": 2,
	} {
		if got := globLiterals(p); got != want {
			t.Errorf("%s: %d, want %d", p, got, want)
		}
	}
}

// expression translates a normal glob by the grammar alone: the oracle.
func expression(branch string, path bool) string {
	out := "(?s)^"
	rest := branch
	any, one := ".*", "."
	if path {
		any, one = "[^/]*", "[^/]"
		if branch == "**" {
			return "(?s)^.*$"
		}
	}
	for rest != "" {
		switch {
		case path && rest == "/**":
			return out + "(/.*)?$"
		case path && strings.HasPrefix(rest, "/**/"):
			out, rest = out+"/([^/]*/)*", rest[4:]
		case path && len(rest) == len(branch) && strings.HasPrefix(rest, "**/"):
			out, rest = out+"([^/]*/)*", rest[3:]
		case rest[0] == '*':
			out, rest = out+any, rest[1:]
		case rest[0] == '?':
			out, rest = out+one, rest[1:]
		case rest[0] == '[':
			end := strings.IndexByte(rest, ']')
			body := rest[1:end]
			class := "["
			if strings.HasPrefix(body, "!") {
				class, body = "[^", body[1:]
			}
			for _, r := range body {
				if r == '-' {
					class += "-" // never first or last in the patterns made below
				} else {
					class += regexp.QuoteMeta(string(r))
				}
			}
			out, rest = out+class+"]", rest[end+1:]
		default:
			_, n := utf8.DecodeRuneInString(rest)
			out, rest = out+regexp.QuoteMeta(rest[:n]), rest[n:]
		}
	}
	return out + "$"
}

var anyGlob = rapid.Custom(func(t *rapid.T) string {
	return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{
		"/", "/", "a", "b", "ab", "*", "?", "/**", "**/", "/**/", "[ab]", "[!b]", "[a-c]", "{a,b}", "{/a,b*}", "{,b}",
	}), 1, 7).Draw(t, "parts"), "")
})

var anyText = rapid.StringOfN(rapid.SampledFrom([]rune("ab/c")), 0, 10, -1)

// Matching does what the grammar says, by an independent reading of it.
func TestGlobMeansTheGrammar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pattern, text := anyGlob.Draw(t, "pattern"), anyText.Draw(t, "text")
		path := rapid.Bool().Draw(t, "path")
		g, err := normalGlob(pattern, path)
		if err != nil {
			t.Skip(err)
		}
		want := false
		for _, b := range globBranches(g) {
			want = want || regexp.MustCompile(expression(b, path)).MatchString(text)
		}
		got := matchFlat(g, text)
		if path {
			got = matchPath(g, text)
		}
		if got != want {
			t.Fatalf("%s (path %v) on %q: %v, want %v", g, path, text, got, want)
		}
		if again, err := normalGlob(g, path); err != nil || again != g {
			t.Fatalf("normal form %q becomes %q: %v", g, again, err)
		}
	})
}

// Two patterns that match one text are said to meet.
func TestGlobsMeet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, errA := normalPathGlob(anyGlob.Draw(t, "a"))
		b, errB := normalPathGlob(anyGlob.Draw(t, "b"))
		text := anyText.Draw(t, "text")
		if errA == nil && errB == nil && matchPath(a, text) && matchPath(b, text) && !pathGlobsMeet(a, b) {
			t.Fatalf("%s and %s both match %q", a, b, text)
		}
	})
	for _, c := range [][2]string{{"/a/*", "/b/*"}, {"/a/**", "/ab"}, {"/*a", "/*b"}, {"/a", "/a/b"}, {"/{a,b}", "/{c,d}"}} {
		if pathGlobsMeet(c[0], c[1]) || pathGlobsMeet(c[1], c[0]) {
			t.Errorf("%s and %s have nothing in common", c[0], c[1])
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("/repos/**", "/repos/a")
	f.Add("/[!a-c]{x,y}*", "/dx1")
	f.Add("**/{a,**}", "b/c")
	f.Add("[]-a]", "]")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		for _, path := range []bool{true, false} {
			g, err := normalGlob(pattern, path)
			if err != nil {
				continue
			}
			if again, err := normalGlob(g, path); err != nil || again != g {
				t.Fatalf("normal form %q of %q becomes %q: %v", g, pattern, again, err)
			}
			globLiterals(g)
			if !path {
				matchFlat(g, text)
				continue
			}
			if !utf8.ValidString(text) {
				continue // a class and an invalid byte: the two readings differ
			}
			matched := matchPath(g, text)
			either := false
			for _, b := range globBranches(g) {
				either = either || regexp.MustCompile(expression(b, true)).MatchString(text)
			}
			if matched != either {
				t.Fatalf("%q on %q: %v, by the grammar %v", g, text, matched, either)
			}
		}
	})
}

func TestEndpointHosts(t *testing.T) {
	for _, c := range []struct {
		pattern, canonical string
		yes, no            []string
	}{
		{"API.GitHub.com.", "api.github.com", []string{"api.github.com"}, []string{"github.com", "x.api.github.com", "apixgithub.com"}},
		{"*.example.com", "", []string{"a.example.com"}, []string{"example.com", "a.b.example.com", "aexample.com", "a.example.com.evil.test"}},
		{"**.example.com", "", []string{"a.example.com", "a.b.example.com"}, []string{"example.com", "xexample.com"}},
		{"*-aiplatform.googleapis.com", "", []string{"us-east1-aiplatform.googleapis.com"}, []string{"a.b-aiplatform.googleapis.com", "aiplatform.googleapis.com"}},
		{"a.*.example.com", "", []string{"a.b.example.com"}, []string{"a.example.com", "a.b.c.example.com"}},
		{"a.**.example.com", "", []string{"a.b.example.com", "a.b.c.example.com"}, []string{"a.example.com", "b.c.example.com"}},
		{"**.x.**.example.com", "", []string{"a.x.b.example.com", "x.x.x.example.com"}, []string{"x.b.example.com", "a.x.example.com"}},
		{"db-*", "", []string{"db-1"}, []string{"db-1.example.com", "xdb-1"}},
		{"*.Bücher.example", "*.xn--bcher-kva.example", []string{"a.xn--bcher-kva.example"}, nil},
	} {
		g, err := compileEndpointHost(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		if c.canonical == "" {
			c.canonical = c.pattern
		}
		if g.String() != c.canonical {
			t.Errorf("%s: canonical %s", c.pattern, g)
		}
		for _, n := range c.yes {
			if !g.match(n) {
				t.Errorf("%s does not match %s", c.pattern, n)
			}
		}
		for _, n := range append(c.no, "") {
			if g.match(n) {
				t.Errorf("%s matches %q", c.pattern, n)
			}
		}
	}
	for _, p := range []string{"", ".", "*", "**", "*.", "*.com", "**.com", "a*.com", "example.*", "*.*", "a.*.com", "*.**.com", "a..*.b.c", "**a.example.com",
		"*.exa mple.com", "*.example.com/x", "*.example.com:443", "é*.example.com", "*.1.2", "a\x00.example.com", "{a,b}.example.com", "*." + strings.Repeat("a.", 130) + "example.com"} {
		if g, err := compileEndpointHost(p); err == nil {
			t.Errorf("%q accepted as %s", p, g)
		}
	}
}

func TestHostSpecificity(t *testing.T) {
	for _, c := range []struct {
		pattern, suffix string
		literals        int
	}{{"*.example.com", "example.com", 12}, {"a.*.example.com", "example.com", 14}, {"db-*", "", 3}, {"a.example.com", "a.example.com", 13}} {
		g, err := compileEndpointHost(c.pattern)
		if err != nil || g.suffix() != c.suffix || g.specificity() != c.literals {
			t.Errorf("%s: suffix %q, %d literals (%v)", c.pattern, g.suffix(), g.specificity(), err)
		}
	}
}

func TestHostMatchDoesNotAllocate(t *testing.T) {
	g, err := compileEndpointHost("**.a*.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { g.match("x.y.abc.example.com") }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
