package learn

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/audit"
	"weir/rules"
)

var update = flag.Bool("update", false, "write the golden files anew")

func readEvents(t *testing.T, file string) []Observation {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var log Log
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" || strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var e audit.Event
		dec := json.NewDecoder(strings.NewReader(lines.Text()))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil {
			t.Fatalf("%s: %v in %s", file, err, lines.Text())
		}
		log.Add(&e)
	}
	return log.Observations()
}

// publicSuffix knows the few that the tests use.
func publicSuffix(name string) (string, bool) {
	if name == "co.example" || strings.HasSuffix(name, ".co.example") {
		return "co.example", true
	}
	return name[strings.LastIndexByte(name, '.')+1:], true
}

// Each testdata/NAME.events.jsonl has the policy learned from it beside it;
// names that end in .suffix are learned with that option.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.events.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".events.jsonl")
		t.Run(name, func(t *testing.T) {
			o := Options{Container: "web", Suffix: strings.HasSuffix(name, ".suffix"), PublicSuffix: publicSuffix}
			learned, err := Learn(readEvents(t, file), o)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".events.jsonl") + ".policy.yaml"
			if *update {
				if err := os.WriteFile(golden, learned.Text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(learned.Text)); d != "" {
				t.Errorf("policy (-want +got):\n%s", d)
			}
			if _, warnings, err := rules.ParseDocument(golden, learned.Text); err != nil || len(warnings) > 0 {
				t.Errorf("what was learned does not load: %v %v", err, warnings)
			}
		})
	}
}

func TestFoldPaths(t *testing.T) {
	for _, c := range []struct {
		name  string
		paths []string
		want  []string // in the order of paths
	}{
		{"words stay", []string{"/", "/a/b", "/a/b/"}, []string{"/", "/a/b", "/a/b/"}},
		{"one short number stays", []string{"/v1/7/x"}, []string{"/v1/7/x"}},
		{"short numbers that vary", []string{"/user/7", "/user/8", "/users"}, []string{"/user/*", "/user/*", "/users"}},
		{"years beside words", []string{"/2024/report", "/2024/all"}, []string{"/2024/report", "/2024/all"}},
		{"two places, one varies", []string{"/o/1/p/7", "/o/1/p/8"}, []string{"/o/1/p/*", "/o/1/p/*"}},
		{"long number", []string{"/user/1234567"}, []string{"/user/*"}},
		{"uuid", []string{"/u/0190a3c4-0000-7000-8000-00000000abcd/x"}, []string{"/u/*/x"}},
		{"ulid", []string{"/u/01ARZ3NDEKTSV4RRFFQ69G5FAV"}, []string{"/u/*"}},
		{"sha", []string{"/c/6dcb09b5b57875f334f61aebed695e2e4193db5e"}, []string{"/c/*"}},
		{"one short sha stays", []string{"/c/6dcb09b"}, []string{"/c/6dcb09b"}},
		{"short shas that vary", []string{"/c/6dcb09b", "/c/ab12345"}, []string{"/c/*", "/c/*"}},
		{"digest", []string{"/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, []string{"/blobs/sha256:*"}},
		{"token", []string{"/f/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpH"}, []string{"/f/*"}},
		{"a long word is none", []string{"/f/internationalization-and-localization"}, []string{"/f/internationalization-and-localization"}},
		{"stars are text", []string{"/a*b/{x}/[y]/c?"}, []string{"/a[*]b/?x?/[[]y]/c[?]"}},
		{"encoded", []string{"/%40scope%2Fpkg/%25zz"}, []string{"/@scope%2Fpkg/?zz"}},
	} {
		globs, reduced := foldPaths(append([]string(nil), c.paths...))
		var got []string
		for _, p := range c.paths {
			got = append(got, globs[p])
		}
		if d := cmp.Diff(c.want, got); d != "" || reduced {
			t.Errorf("%s (-want +got):\n%s reduced: %v", c.name, d, reduced)
		}
	}
}

// A crawler's paths must not make a document that nobody can load.
func TestManyPaths(t *testing.T) {
	var folders, flat []string
	for i := range 1000 {
		n := strings.Repeat("x", i%26) + strings.Repeat("y", i/26)
		folders = append(folders, "/pkg/"+n+"z")
		flat = append(flat, "/"+n+"z/a")
	}
	globs, reduced := foldPaths(folders)
	if globs[folders[0]] != "/pkg/*" || !reduced {
		t.Errorf("a full folder became %q, reduced %v", globs[folders[0]], reduced)
	}
	if globs, reduced = foldPaths(flat); globs[flat[0]] != "/**" || !reduced {
		t.Errorf("many folders became %q, reduced %v", globs[flat[0]], reduced)
	}
}

func TestScalar(t *testing.T) {
	for in, want := range map[string]string{
		"a.example": "a.example", "*.example": `"*.example"`, "/usr/bin/x": "/usr/bin/x", "yes": `"yes"`, "Null": `"Null"`,
		"": `""`, "1.2.3.4": `"1.2.3.4"`, "2001:db8::1": `"2001:db8::1"`, "a\nb: c": `"a\nb: c"`, `"`: `"\""`, "é": `"é"`, "a # b": `"a # b"`,
	} {
		if got := scalar(in); got != want {
			t.Errorf("scalar(%q) = %s, want %s", in, got, want)
		}
	}
}
