package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/goccy/go-yaml"
)

var configRow = regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|")

func TestConfigurationReferenceListsEveryKey(t *testing.T) {
	keys := configKeys(t)
	var listed []string
	for _, m := range configRow.FindAllStringSubmatch(read(t, "reference/configuration.md"), -1) {
		listed = append(listed, m[1])
	}
	compare(t, "reference/configuration.md", keys, listed)
}

func TestConfigurationsOfThePagesUseKnownKeys(t *testing.T) {
	keys := configKeys(t)
	for _, b := range only(t, "yaml config") {
		var written map[string]any
		if err := yaml.Unmarshal([]byte(b.text), &written); err != nil {
			t.Errorf("%s: %v", b.at(), err)
		}
		for section, value := range written {
			inner, ok := value.(map[string]any)
			if !ok {
				inner = map[string]any{"": nil}
			}
			for key := range inner {
				if key = join(section, key); !slices.Contains(keys, key) {
					t.Errorf("%s: there is no key %s", b.at(), key)
				}
			}
		}
	}
}

func join(section, key string) string {
	if section == "" || key == "" {
		return section + key
	}
	return section + "." + key
}

// configKeys reads the keys off the type config, which is the daemon's own and
// cannot be imported.
func configKeys(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../cmd/weir/config.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	var walk func(s *ast.StructType, section string)
	walk = func(s *ast.StructType, section string) {
		for _, f := range s.Fields.List {
			if !f.Names[0].IsExported() {
				continue
			}
			key := yamlKey(t, f)
			if inner, ok := f.Type.(*ast.StructType); ok {
				walk(inner, join(section, key))
				continue
			}
			keys = append(keys, join(section, key))
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok && spec.Name.Name == "config" {
			walk(spec.Type.(*ast.StructType), "")
			return false
		}
		return true
	})
	return keys
}

func yamlKey(t *testing.T, f *ast.Field) string {
	t.Helper()
	if f.Tag == nil {
		t.Fatalf("the field %s of config has no tag", f.Names[0])
	}
	text, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		t.Fatal(err)
	}
	return reflect.StructTag(text).Get("yaml")
}
