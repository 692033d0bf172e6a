package rules

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func TestTarget(t *testing.T) {
	for raw, want := range map[string][2]string{ // judged path, text to send
		"/":                                  {"/", "/"},
		"/a/b":                               {"/a/b", "/a/b"},
		"/a/b/":                              {"/a/b/", "/a/b/"},
		"//a///b":                            {"/a/b", "/a/b"},
		"/a/./b/../c":                        {"/a/c", "/a/c"},
		"/a/..":                              {"/", "/"},
		"/a/.":                               {"/a/", "/a/"},
		"/a/%2e%2E/b":                        {"/b", "/b"},
		"/a;x=1/b;y":                         {"/a/b", "/a/b"},
		"/a/..;/b":                           {"/b", "/b"},
		"/a/;x/b":                            {"/a/b", "/a/b"},
		"/%61%3Bb":                           {"/a;b", "/a%3Bb"},
		"/a%20b":                             {"/a b", "/a%20b"},
		"/a+b":                               {"/a+b", "/a+b"},
		"/%252e%252e/x":                      {"/%2e%2e/x", "/%252e%252e/x"},
		"/caf%C3%A9":                         {"/café", "/caf%C3%A9"},
		"/a%3Fb%23c%25":                      {"/a?b#c%", "/a%3Fb%23c%25"},
		"/@scope%2fname":                     {"/@scope%2Fname", "/@scope%2Fname"},
		"/a[1]{2}|\"<>`^":                    {"/a[1]{2}|\"<>`^", "/a%5B1%5D%7B2%7D%7C%22%3C%3E%60%5E"},
		"/?":                                 {"/", "/"},
		"/x?a=1&b":                           {"/x", "/x?a=1&b"},
		"/x?&&a=1&":                          {"/x", "/x?a=1"},
		"/x?a=1;b=2":                         {"/x", "/x?a=1%3Bb%3D2"},
		"/x?q=a+b%2Bc":                       {"/x", "/x?q=a%20b%2Bc"},
		"/x?%61=%26%3d":                      {"/x", "/x?a=%26%3D"},
		"/x?a=b=c&=d&e=":                     {"/x", "/x?a=b%3Dc&=d&e="},
		"/x?a=1?2/3":                         {"/x", "/x?a=1?2/3"},
		"/x?next=/../admin":                  {"/x", "/x?next=/../admin"},
		"/" + strings.Repeat("a", maxPath-1): {"/" + strings.Repeat("a", maxPath-1), "/" + strings.Repeat("a", maxPath-1)},
	} {
		got, err := parseTarget(raw)
		if err != nil || got.path != want[0] || got.text != want[1] {
			t.Errorf("%q: path %q text %q (%v), want %q", raw, got.path, got.text, err, want)
		}
	}
}

func TestRefusedTargets(t *testing.T) {
	for _, raw := range []string{
		"", "a", "*", "http://a.example.com/", "example.com:443", "/..", "/a/../..", "/a/%2e%2e/%2e%2e", "/..;/", "/a/../;/..",
		"/a#b", "/a?b#c", "/a%", "/a%2", "/a%zz", "/%u0041", "/a%00b", "/a%0d%0a", "/a%7f", "/a b", "/a\tb", "/a\x00", "/é", "/a\x7f",
		`/a\b`, "/a%5Cb", "/%C0%AF", "/%FF", "/a%2F..%2Fb", "/a%2f.", "/%2F", "/a%2f%2fb", "/a%2F", "/x?a=%", "/x?%zz=1", "/x?a=\xff", "/x?a= b",
		"/" + strings.Repeat("a", maxPath),
	} {
		if got, err := parseTarget(raw); err == nil {
			t.Errorf("%q accepted: path %q text %q", raw, got.path, got.text)
		}
	}
}

func TestQueryValues(t *testing.T) {
	got, err := parseTarget("/x?a=1&a=2&b=%20+&c&%C3%A9=%C3%A9")
	want := url.Values{"a": {"1", "2"}, "b": {"  "}, "c": {""}, "é": {"é"}}
	if diff := cmp.Diff(want, got.query); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// checkTarget holds for everything that is accepted: the text to send reads
// as the same target again, also by another parser, and is plain ASCII
// without anything that has to be resolved.
func checkTarget(t interface{ Fatalf(string, ...any) }, raw string) {
	a, err := parseTarget(raw)
	if err != nil {
		return
	}
	b, err := parseTarget(a.text)
	if err != nil {
		t.Fatalf("%q: its text %q is refused: %v", raw, a.text, err)
	}
	if diff := cmp.Diff(a, b, cmp.AllowUnexported(target{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%q: its text %q reads otherwise:\n%s", raw, a.text, diff)
	}
	u, err := url.ParseRequestURI(a.text)
	if err != nil {
		t.Fatalf("%q: text %q: %v", raw, a.text, err)
	}
	decoded := a.path
	if a.slashed != "" {
		decoded = a.slashed
	}
	if u.Path != decoded {
		t.Fatalf("%q: net/url reads %q from %q, judged was %q", raw, u.Path, a.text, decoded)
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		t.Fatalf("%q: query of %q: %v", raw, a.text, err)
	}
	for k, v := range values {
		if diff := cmp.Diff(a.query[k], v); diff != "" {
			t.Fatalf("%q: query of %q: %s", raw, a.text, diff)
		}
	}
	if len(values) != len(a.query) {
		t.Fatalf("%q: query of %q has other keys", raw, a.text)
	}
	path, _, _ := strings.Cut(a.text, "?")
	for i, s := range strings.Split(path, "/") {
		if s == "." || s == ".." || s == "" && i > 0 && i < strings.Count(path, "/") || strings.ContainsAny(s, ";#\\") {
			t.Fatalf("%q: text %q needs resolving", raw, a.text)
		}
	}
}

func TestTargetIsFixedPoint(t *testing.T) {
	parts := rapid.SampledFrom([]string{"/", "/", "a", "b", ".", "..", ";", "%2e", "%2F", "%2f", "%25", "%3b", "%41", "+", "?", "&", "=", "%C3%A9", "%20", "//", "@", ":", "~"})
	rapid.Check(t, func(t *rapid.T) {
		checkTarget(t, "/"+strings.Join(rapid.SliceOfN(parts, 0, 12).Draw(t, "parts"), ""))
	})
}

func FuzzCanonicalPath(f *testing.F) {
	for _, raw := range []string{"/a/../b", "/a;x/%2e%2e/b", "/@scope%2Fname", "/x?a=1+2&b;c", "/%252F", "//", "/?%3D=%26"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) { checkTarget(t, raw) })
}
