package rules

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"weir/graphql"
)

type requestCase struct {
	Name       string
	Request    string // METHOD TARGET
	Upgrade    string
	Operations *[]graphql.Operation
	Expect     string
	Send       string
	Reason     string
}

// The files under testdata/requests are the specification: see rest.yaml.
func TestRequests(t *testing.T) {
	for _, name := range files(t, "testdata/requests/*.yaml") {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yaml"), func(t *testing.T) {
			var file struct {
				Policy string
				Cases  []requestCase
			}
			if err := yaml.UnmarshalWithOptions(readFile(t, name), &file, yaml.DisallowUnknownField()); err != nil {
				t.Fatal(err)
			}
			doc, _, err := ParseDocument(name, []byte(file.Policy))
			if err != nil {
				t.Fatal(err)
			}
			var offered []*Rule
			for i := range doc.Rules {
				doc.Rules[i].Source = Session
				offered = append(offered, &doc.Rules[i])
			}
			if len(file.Cases) == 0 {
				t.Fatal("no cases")
			}
			for _, c := range file.Cases {
				runRequestCase(t, offered, c)
			}
		})
	}
}

func runRequestCase(t *testing.T, offered []*Rule, c requestCase) {
	t.Helper()
	method, target, _ := strings.Cut(c.Request, " ")
	r := &Request{Stage: HTTP, HTTP: &HTTPRequest{Method: method, Target: target, Upgrade: c.Upgrade}}
	if c.Operations != nil {
		r.Stage, r.Operations = GraphQL, *c.Operations
	}
	steps := 0
	d := judgeRequest(offered, r, func(Step) { steps++ })
	got := "deny"
	switch {
	case d.Malformed:
		got = "malformed"
	case d.Audit:
		got = "audit"
	case d.NeedBody:
		got = "body"
	case d.Verdict == Allow:
		got = "allow"
	}
	name := fmt.Sprintf("%s (%s %s)", c.Name, c.Request, c.Upgrade)
	if got != c.Expect {
		t.Errorf("%s: %s, want %s: %s", name, got, c.Expect, d.Reason)
	}
	if c.Reason != "" && !strings.Contains(d.Reason, c.Reason) {
		t.Errorf("%s: reason %q, want %q in it", name, d.Reason, c.Reason)
	}
	if c.Send != "" && d.Path != c.Send {
		t.Errorf("%s: sends %q, want %q", name, d.Path, c.Send)
	}
	switch verdict := map[string]Verdict{"allow": Allow, "audit": Allow, "body": Inspect}[got]; {
	case d.Verdict != verdict:
		t.Errorf("%s: verdict %d with %s", name, d.Verdict, got)
	case d.Verdict != Deny && (d.Rule == nil || d.Endpoint != d.Rule.Endpoint || d.Endpoint == nil || d.Path == ""):
		t.Errorf("%s: incomplete %+v", name, d)
	case d.Reason == "" || strings.Contains(d.Reason, "\n") || d.Layer == "":
		t.Errorf("%s: reason %q layer %q", name, d.Reason, d.Layer)
	case d.Audit != (d.Would != nil) || d.Audit && d.Would.Verdict != Deny:
		t.Errorf("%s: audit without what would have been: %+v", name, d)
	case d.Path != "" && steps == 0:
		t.Errorf("%s: nothing traced", name)
	}
	if plain := judgeRequest(offered, r, nil); plain.Verdict != d.Verdict || plain.Reason != d.Reason {
		t.Errorf("%s: %q with trace, %q without", name, d.Reason, plain.Reason)
	}
}

func TestRequestWithoutFacts(t *testing.T) {
	if d := judgeRequest(nil, &Request{Stage: HTTP}, nil); d.Verdict != Deny || !d.Malformed {
		t.Errorf("without a head: %+v", d)
	}
	r := &Request{Stage: HTTP, HTTP: &HTTPRequest{Method: "GET", Target: "/"}}
	if d := judgeRequest(nil, r, nil); d.Verdict != Deny || d.Layer != Default {
		t.Errorf("without endpoints: %+v", d)
	}
}

// Endpoints that contradict each other can meet when one program starts
// another; the request is then refused, not allowed by either.
func TestContradictingEndpoints(t *testing.T) {
	rule := func(e Endpoint) *Rule { return &Rule{Source: Session, Action: ActionAllow, Endpoint: &e} }
	r := &Request{Stage: HTTP, HTTP: &HTTPRequest{Method: "POST", Target: "/"}}
	both := []*Rule{
		rule(Endpoint{Policy: "a", Protocol: ProtocolREST, Access: AccessFull}),
		rule(Endpoint{Policy: "b", Protocol: ProtocolGraphQL, Access: AccessFull}),
	}
	if d := judgeRequest(both, r, nil); d.Verdict != Deny {
		t.Errorf("protocols: %+v", d)
	}
	both[1] = rule(Endpoint{Policy: "b", Protocol: ProtocolREST, Access: AccessReadOnly, Audit: true})
	both[0].Endpoint.Access = AccessReadOnly
	if d := judgeRequest(both, r, nil); d.Verdict != Deny {
		t.Errorf("modes: %+v", d)
	}
	// An uninspected endpoint of the same rank does not open what another inspects.
	both[1] = rule(Endpoint{Policy: "b", Protocol: ProtocolTCP})
	if d := judgeRequest(both, r, nil); d.Verdict != Deny {
		t.Errorf("uninspected: %+v", d)
	}
}

// However a path is written, it fares like its canonical form.
func TestSpellingDoesNotMatter(t *testing.T) {
	doc, _, err := ParseDocument("", []byte(`
version: 1
network_policies:
  p:
    endpoints:
      - host: a.example.com
        port: 443
        protocol: rest
        access: full
        deny_rules: [{method: "*", path: "/a/b/**"}, {method: "*", path: "/**", query: {x: y}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	offered := []*Rule{&doc.Rules[0]}
	judge := func(target string) Decision {
		return judgeRequest(offered, &Request{Stage: HTTP, HTTP: &HTTPRequest{Method: "GET", Target: target}}, nil)
	}
	parts := rapid.SampledFrom([]string{"/", "/", "a", "b", "%61", "%62", ".", "..", "%2e", ";x", "c", "?", "x=y", "%78=%79", "&"})
	rapid.Check(t, func(t *rapid.T) {
		target := "/" + strings.Join(rapid.SliceOfN(parts, 0, 10).Draw(t, "parts"), "")
		d := judge(target)
		if d.Malformed {
			return
		}
		again := judge(d.Path)
		if again.Verdict != d.Verdict || again.Path != d.Path {
			t.Fatalf("%q is judged %q, but its text %q is judged %q", target, d.Reason, d.Path, again.Reason)
		}
	})
}

// A further deny rule never lets more through, and one allow rule less never
// does either.
func TestDenyIsMonotonic(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "__typename"})
	types := rapid.SampledFrom([]string{"query", "mutation"})
	operation := rapid.Custom(func(t *rapid.T) graphql.Operation {
		if rapid.IntRange(0, 4).Draw(t, "persisted") == 0 {
			return graphql.Operation{Persisted: names.Draw(t, "id")}
		}
		return graphql.Operation{Type: types.Draw(t, "type"), Name: names.Draw(t, "name"), Fields: rapid.SliceOfDistinct(names, rapid.ID[string]).Draw(t, "fields")}
	})
	rule := rapid.Custom(func(t *rapid.T) RequestRule {
		return RequestRule{
			OperationType: rapid.SampledFrom([]string{"", "query", "mutation"}).Draw(t, "type"),
			OperationName: rapid.SampledFrom([]string{"", "a*", "b"}).Draw(t, "name"),
			Fields:        rapid.SliceOfN(rapid.SampledFrom([]string{"a", "*", "b"}), 0, 2).Draw(t, "fields"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		e := Endpoint{Policy: "p", Protocol: ProtocolGraphQL, AllowRegistered: rapid.Bool().Draw(t, "registered"),
			Registry: map[string]Registered{"a": {Type: "query"}, "b": {Type: "mutation", Name: "b", Fields: []string{"b"}}},
			Allow:    rapid.SliceOfN(rule, 1, 3).Draw(t, "allow"), Deny: rapid.SliceOfN(rule, 0, 2).Draw(t, "deny")}
		r := &Request{Stage: GraphQL, HTTP: &HTTPRequest{Method: "POST", Target: "/"}, Operations: rapid.SliceOfN(operation, 1, 3).Draw(t, "operations")}
		judge := func(e Endpoint) Verdict { return judgeRequest([]*Rule{{Endpoint: &e}}, r, nil).Verdict }
		before := judge(e)
		stricter := e
		stricter.Deny = append(append([]RequestRule(nil), e.Deny...), rule.Draw(t, "more"))
		fewer := e
		fewer.Allow = e.Allow[1:]
		if before == Deny && (judge(stricter) != Deny || judge(fewer) != Deny) {
			t.Fatalf("%+v", e)
		}
		// Each operation alone fares as it does in the batch.
		all := Allow
		for _, op := range r.Operations {
			r.Operations = []graphql.Operation{op}
			if judge(e) == Deny {
				all = Deny
			}
		}
		if all != before {
			t.Fatalf("the batch is judged %d, its operations one by one %d", before, all)
		}
	})
}
