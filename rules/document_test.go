package rules

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var sameRules = cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return names
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Each file under invalid lists the errors that it must give, all of them, as
// comments: "# error: LINE:COL: part of the message".
func TestInvalidDocuments(t *testing.T) {
	for _, name := range files(t, "testdata/documents/invalid/*.yaml") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text := readFile(t, name)
			var want []string
			for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
				if w, ok := strings.CutPrefix(s.Text(), "# error: "); ok {
					want = append(want, w)
				}
			}
			doc, _, err := ParseDocument("p.yaml", text)
			if err == nil || doc != nil {
				t.Fatalf("accepted, want %d errors", len(want))
			}
			got := strings.Split(err.Error(), "\n")
			for i := range max(len(got), len(want)) {
				switch {
				case i >= len(got):
					t.Errorf("missing error: %s", want[i])
				case i >= len(want):
					t.Errorf("unexpected error: %s", got[i])
				default:
					where, what, _ := strings.Cut(want[i], ": ")
					if !strings.HasPrefix(got[i], "p.yaml:"+where+": ") || !strings.Contains(got[i], what) {
						t.Errorf("error %d:\n got %s\nwant %s", i, got[i], want[i])
					}
				}
			}
		})
	}
}

// What FormatDocument writes says the same as what was read.
func TestValidDocuments(t *testing.T) {
	for _, name := range files(t, "testdata/documents/valid/*") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			doc, _, err := ParseDocument(name, readFile(t, name))
			if err != nil {
				t.Fatal(err)
			}
			text, err := FormatDocument(doc.Rules)
			if err != nil {
				t.Fatal(err)
			}
			again, warnings, err := ParseDocument("formatted", []byte(text))
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			for _, w := range warnings {
				if !strings.Contains(w.Message, "cloud metadata") && !strings.Contains(w.Message, "inspected") {
					t.Errorf("warning about what was formatted: %s", w)
				}
			}
			if diff := cmp.Diff(doc.Rules, again.Rules, sameRules); diff != "" {
				t.Errorf("-read +formatted and read again:\n%s\n%s", diff, text)
			}
			viaJSON, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			again, _, err = ParseDocumentJSON(name, viaJSON)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(doc, again, sameRules); diff != "" {
				t.Errorf("-read +through JSON:\n%s", diff)
			}
		})
	}
}

func TestDocumentRules(t *testing.T) {
	doc, warnings, err := ParseDocument("", readFile(t, "testdata/documents/valid/agent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range doc.Rules {
		got = append(got, fmt.Sprintf("%s %q %s/%s %s by %d", r.Endpoint.Policy, r.Destination, r.Ports, r.Transport, r.Endpoint.Protocol, len(r.Binaries)))
	}
	want := []string{
		`model "api.anthropic.com" 443/tcp rest by 2`,
		`model "statsig.anthropic.com" 443/tcp tcp by 2`,
		`model "telemetry.example.net" 443/tcp tcp by 2`,
		`clone "github.com" 443/tcp rest by 1`,
		`api "api.github.com" 443/tcp rest by 1`,
		`api "api.github.com" 443/tcp graphql by 1`,
		`live "realtime.example.com" 443,8443/tcp websocket by 0`,
		`packages "registry.packages.example" 443/tcp rest by 3`,
		`packages "*-aiplatform.googleapis.com" 443/tcp tcp by 3`,
		`packages "**.githubusercontent.com" 443/tcp tcp by 3`,
		`packages "host.openshell.internal" 8080/tcp tcp by 3`,
		`packages "152.53.34.214" 7100/tcp tcp by 3`,
		`packages "" 5432/tcp tcp by 3`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	text := fmt.Sprint(warnings)
	for _, w := range []string{"filesystem_policy", "landlock", "process", "tls: terminate", "tls: passthrough", "enforcement says nothing", "credentials"} {
		if !strings.Contains(text, w) {
			t.Errorf("no warning about %s in %s", w, text)
		}
	}
	api := doc.Rules[5].Endpoint
	if api.MaxBody != 131072 || !api.AllowRegistered || !cmp.Equal(api.Registry["abc123"], Registered{"query", "Viewer", []string{"viewer"}}) {
		t.Errorf("graphql endpoint: %+v", api)
	}
	if r := api.Allow[2]; r.OperationType != "" || r.OperationName != "Sync*" {
		t.Errorf(`operation_type "*": %+v`, r)
	}
}

func TestPlainRules(t *testing.T) {
	doc, warnings, err := ParseDocument("", readFile(t, "testdata/documents/valid/plain.yaml"))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	var got []string
	for _, r := range doc.Rules {
		got = append(got, fmt.Sprint(r.Action, " ", r.Destination, " ", r.Ports, " ", r.Transport, " ", r.Binaries, r.Notes))
	}
	want := []string{
		"allow *.packages.example 443 any []",
		"allow registry.example.com 443 tcp []",
		"allow 203.0.113.0/24 80,8000-9000 any []the office",
		"deny 10.0.0.0/8 * any []",
		"allow dns.example.com 53 udp [/usr/bin/dig /opt/**]",
		"allow mirror.example.com * any [/usr/bin/dig /opt/**]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if at := doc.Rules[2].Expires.Format("2006-01-02T15:04:05Z07:00"); at != "2029-12-31T23:00:00Z" {
		t.Errorf("expires %s", at)
	}
}

// Documents that are built to cost much are refused, or read within bounds.
func TestHostileDocuments(t *testing.T) {
	laughs := "version: 1\nrules: &a [{allow: a.example.com}, {allow: a.example.com}]\nnetwork_policies:\n  p:\n    endpoints: &e\n"
	for range 600 {
		laughs += "      - {host: a.example.com, port: 443}\n"
	}
	for i := range 600 {
		laughs += fmt.Sprintf("  p%d: {endpoints: *e}\n", i)
	}
	for name, text := range map[string]string{
		"too long":        "version: 1\n#" + strings.Repeat("x", MaxDocument),
		"brackets":        strings.Repeat("[", 500_000),
		"mappings":        strings.Repeat("{a: ", 200_000),
		"dashes":          strings.Repeat("- ", 500_000),
		"billion laughs":  laughs,
		"self reference":  "version: 1\nnetwork_policies: &a\n  p: *a\n",
		"alias to itself": "version: 1\nrules: &a *a\n",
		"no anchor":       "version: 1\nrules: *a\n",
		"tag":             "version: !!int 1\n",
		"not UTF-8":       "version: 1\n# \xff\n",
		"NUL":             "version: 1\x00\n",
		"empty":           "",
		"a comment":       "# version: 1\n",
		"a list":          "- version: 1\n",
		"text":            "version",
		"null key":        "version: 1\n~: 2\n",
	} {
		doc, _, err := ParseDocument("x", []byte(text))
		if err == nil || doc != nil {
			t.Errorf("%s: accepted", name)
		} else if !strings.HasPrefix(err.Error(), "x:") {
			t.Errorf("%s: error without file: %v", name, err)
		}
	}
}

func TestParseDocumentJSON(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"version": 1, "rules": [{"allow": "a.example.com"}]}`: true,
		`"version: 1\nrules: [{allow: a.example.com}]"`:         true,
		` {"version":1,"rules":[{"allow":"a.example.com"}]} `:   true,
		`[]`:                        false,
		`{"version": 1}{}`:          false,
		`version: 1`:                false,
		`"`:                         false,
		`{"version":1,"version":1}`: false,
	} {
		doc, _, err := ParseDocumentJSON("", []byte(text))
		if (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
		if ok && (len(doc.Rules) != 1 || doc.Rules[0].Destination != "a.example.com") {
			t.Errorf("%s: %+v", text, doc.Rules)
		}
	}
}

// Whatever is accepted can be written and read again as the same rules.
func FuzzDocument(f *testing.F) {
	for _, pattern := range []string{"testdata/documents/valid/*", "testdata/documents/invalid/*"} {
		for _, name := range files(f, pattern) {
			f.Add(readFile(f, name))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		doc, _, err := ParseDocument("f", text)
		if err != nil {
			return
		}
		if _, err := NewLayer(Session, doc.Rules); err != nil {
			t.Fatalf("accepted, but no layer takes it: %v", err)
		}
		out, err := FormatDocument(doc.Rules)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := ParseDocument("f", []byte(out))
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if diff := cmp.Diff(doc.Rules, again.Rules, sameRules); diff != "" {
			t.Fatalf("%s\n%s", diff, out)
		}
	})
}
