package audit

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestOCSF(t *testing.T) {
	for name, e := range samples() {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(OCSF(e, "1.2.3"), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", "ocsf", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// The rules of the schema that hold for every event, whatever the golden files
// say. From the class definitions of OCSF 1.3.0.
func TestOCSFRequiredAttributes(t *testing.T) {
	required := map[int][]string{
		classDetectionFinding: {"finding_info"},
		classNetworkActivity:  {"src_endpoint"}, // at least one endpoint
		classHTTPActivity:     {"src_endpoint", "http_request"},
		classDNSActivity:      {"src_endpoint"},
		classAppLifecycle:     {"app"},
	}
	for _, typ := range []Type{DNS, Connect, HTTP, GraphQL, Lifecycle, Tamper, Limit, Ask} {
		for _, verdict := range []string{"", "allow", "deny"} {
			o := OCSF(Event{Type: typ, Verdict: verdict}, "")
			class := o["class_uid"].(int)
			keys := append([]string{"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"}, required[class]...)
			for _, key := range keys {
				if _, ok := o[key]; !ok {
					t.Errorf("%s %q: no %s", typ, verdict, key)
				}
			}
			if o["type_uid"] != class*100+o["activity_id"].(int) {
				t.Errorf("%s %q: type_uid %v of class %v and activity %v", typ, verdict, o["type_uid"], class, o["activity_id"])
			}
			if o["category_uid"] != class/1000 {
				t.Errorf("%s %q: category %v of class %v", typ, verdict, o["category_uid"], class)
			}
			meta := o["metadata"].(map[string]any)
			if meta["version"] != "1.3.0" || meta["product"].(map[string]any)["vendor_name"] == nil {
				t.Errorf("%s %q: metadata %v", typ, verdict, meta)
			}
			if src, ok := o["src_endpoint"].(map[string]any); ok && src["name"] == nil && src["uid"] == nil {
				t.Errorf("%s %q: endpoint without a name: %v", typ, verdict, src)
			}
		}
	}
}
