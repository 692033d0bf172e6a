package learn

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/rules"
)

func TestReplay(t *testing.T) {
	obs := readEvents(t, "testdata/requests.events.jsonl")
	for _, c := range []struct {
		name, document            string
		denied, allowed, unknown  []string
		someDenied, nothingDenied bool
	}{
		{name: "everything", document: `{version: 1, rules: [{allow: "*"}]}`, nothingDenied: true,
			allowed: []string{"DELETE api.github.com:443/repos/o/r"}},
		{name: "nothing", document: `{version: 1}`, someDenied: true},
		{name: "another method, another field", someDenied: true, document: `
version: 1
rules: [{allow: 198.51.100.7}, {allow: 198.51.100.9}, {allow: live.example.com}, {allow: registry.packages.example}]
network_policies:
  github:
    endpoints:
      - {host: api.github.com, port: 443, path: /graphql, protocol: graphql, rules: [{allow: {operation_type: query}}]}
      - {host: api.github.com, port: 443, protocol: rest, rules: [{allow: {method: GET}}, {allow: {method: DELETE}}]}
`, denied: []string{
			"POST api.github.com:443/graphql",
			"POST api.github.com:443/graphql persisted 00ff",
			"POST api.github.com:443/graphql query Viewer{rateLimit viewer} mutation{addStar}",
			"POST api.github.com:443/repos/o/r/issues",
		}, allowed: []string{"DELETE api.github.com:443/repos/o/r"}},
		{name: "a host that nobody looked into", nothingDenied: true, document: `
version: 1
rules: [{allow: "*"}]
network_policies:
  address: {endpoints: [{host: 198.51.100.7, port: 443, protocol: rest, access: full}]}
`, allowed: []string{"DELETE api.github.com:443/repos/o/r"}, unknown: []string{"tcp connection to 198.51.100.7:443"}},
	} {
		doc, _, err := rules.ParseDocument(c.name, []byte(c.document))
		if err != nil {
			t.Fatal(err)
		}
		layer, err := rules.NewLayer(rules.Session, doc.Rules)
		if err != nil {
			t.Fatal(err)
		}
		r := Replay(rules.Compile(rules.Stack{Layers: []*rules.Layer{layer}}), obs, rules.Container{}, noon)
		total := r.Same
		names := func(list []Change) (names []string) {
			for _, one := range list {
				if one.Reason == "" || one.Count == 0 || one.Last.IsZero() {
					t.Errorf("%s: %+v", c.name, one)
				}
				names = append(names, one.What)
				total += one.Count
			}
			return names
		}
		denied, allowed, unknown := names(r.Denied), names(r.Allowed), names(r.Unknown)
		if d := cmp.Diff(c.allowed, allowed) + cmp.Diff(c.unknown, unknown); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if d := cmp.Diff(c.denied, denied); c.denied != nil && d != "" || c.someDenied != (len(denied) > 0) || c.nothingDenied && len(denied) > 0 {
			t.Errorf("%s: denied (-want +got):\n%s", c.name, d)
		}
		if total != 17 {
			t.Errorf("%s: %d attempts accounted for, want 17", c.name, total)
		}
	}
}
