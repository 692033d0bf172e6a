package graphql

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// A testCase is one entry of testdata/*.yaml; testdata/README.md explains it.
type testCase struct {
	Name        string    `yaml:"name"`
	Method      string    `yaml:"method"`
	URL         string    `yaml:"url"`
	ContentType *string   `yaml:"content_type"`
	Encoding    string    `yaml:"encoding"`
	MaxBody     int       `yaml:"max_body"`
	Body        string    `yaml:"body"`
	BodyBase64  []byte    `yaml:"-"`
	Base64      string    `yaml:"body_base64"`
	Subprotocol string    `yaml:"subprotocol"`
	Operations  *[]string `yaml:"operations"`
	Refuse      Code      `yaml:"refuse"`
	Sends       string    `yaml:"sends"`
	SendsURL    string    `yaml:"sends_url"`
}

func (c *testCase) input() Input {
	in := Input{
		Method: c.Method, RawQuery: c.URL, ContentEncoding: c.Encoding,
		Body: c.body(), MaxBody: c.MaxBody,
	}
	if in.Method == "" {
		in.Method = "POST"
	}
	if c.ContentType != nil {
		in.ContentType = *c.ContentType
	} else if in.Method == "POST" {
		in.ContentType = "application/json"
	}
	return in
}

func (c *testCase) body() []byte {
	if c.Base64 != "" {
		return c.BodyBase64
	}
	return []byte(c.Body)
}

// loadCases reads all cases, by file.
func loadCases(t testing.TB) map[string][]testCase {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata: %v", err)
	}
	all := map[string][]testCase{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []testCase
		if err := yaml.UnmarshalWithOptions(text, &cases, yaml.Strict()); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for i := range cases {
			if cases[i].BodyBase64, err = decodeBase64(cases[i].Base64); err != nil {
				t.Fatalf("%s: %s: %v", file, cases[i].Name, err)
			}
		}
		all[strings.TrimSuffix(filepath.Base(file), ".yaml")] = cases
	}
	return all
}

// describe writes an operation as testdata does.
func describe(op Operation) string {
	if op.Persisted != "" {
		if op.Name != "" {
			return "persisted " + op.Persisted + " as " + op.Name
		}
		return "persisted " + op.Persisted
	}
	s := op.Type
	if op.Name != "" {
		s += " " + op.Name
	}
	return s + " {" + strings.Join(op.Fields, " ") + "}"
}

func describeAll(ops []Operation) []string {
	all := []string{}
	for _, op := range ops {
		all = append(all, describe(op))
	}
	return all
}

func TestCases(t *testing.T) {
	for file, cases := range loadCases(t) {
		for _, c := range cases {
			t.Run(file+"/"+c.Name, func(t *testing.T) {
				if (c.Operations == nil) == (c.Refuse == "") {
					t.Fatal("a case says either operations or refuse")
				}
				var ops []Operation
				var body []byte
				var rawQuery string
				var err error
				if c.Subprotocol != "" {
					var m Message
					m, err = ParseMessage(c.Subprotocol, c.body())
					ops, body = m.Operations, m.Text
				} else {
					var r Result
					r, err = Parse(c.input())
					ops, body, rawQuery = r.Operations, r.Body, r.RawQuery
				}
				if c.Refuse != "" {
					var refusal *Error
					if !errors.As(err, &refusal) {
						t.Fatalf("want refusal %s, got error %v and operations %v", c.Refuse, err, describeAll(ops))
					}
					if refusal.Code != c.Refuse {
						t.Fatalf("want refusal %s, got %s: %v", c.Refuse, refusal.Code, err)
					}
					if want := !strings.HasPrefix(string(c.Refuse), "unsupported_") && c.Refuse != EmptyRequest && c.Refuse != TooLarge; refusal.Malformed() != want {
						t.Errorf("Malformed() = %v", !want)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(*c.Operations, describeAll(ops)); diff != "" {
					t.Error(diff)
				}
				if c.Sends != "" && c.Sends != string(body) {
					t.Errorf("sends\n got %s\nwant %s", body, c.Sends)
				}
				if c.SendsURL != "" && c.SendsURL != rawQuery {
					t.Errorf("sends url\n got %s\nwant %s", rawQuery, c.SendsURL)
				}
			})
		}
	}
}

// Every code is explained in the package's documentation and shown in a case.
func TestEveryCodeIsExplained(t *testing.T) {
	shown := map[Code]bool{
		TooDeep: true, TooManyTokens: true, // TestLimits: too long for a file
	}
	for _, cases := range loadCases(t) {
		for _, c := range cases {
			shown[c.Refuse] = true
		}
	}
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != "Code" {
			return true
		}
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes++
		if !strings.Contains(string(doc), "\n//\t"+code+" ") {
			t.Errorf("%s is not in the table in doc.go", code)
		}
		if !shown[Code(code)] {
			t.Errorf("%s is in no case in testdata", code)
		}
		return true
	})
	if want := strings.Count(string(doc), "\n//\tunsupported_") + 28; codes < want {
		t.Errorf("found only %d codes in refusal.go", codes)
	}
}
