package graphql

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"
)

func FuzzParse(f *testing.F) {
	for _, cases := range loadCases(f) {
		for _, c := range cases {
			if c.Subprotocol == "" {
				in := c.input()
				f.Add(in.Method == "GET", in.RawQuery, in.Body)
			}
		}
	}
	var remembers Classifier
	f.Fuzz(func(t *testing.T, get bool, rawQuery string, body []byte) {
		in := Input{Method: "POST", ContentType: "application/json", RawQuery: rawQuery, Body: body}
		if get {
			in.Method, in.ContentType = "GET", ""
		}
		sameAsWithout(t, &remembers, in)
		res, err := Parse(in)
		checkError(t, err, len(res.Operations))
		if err != nil {
			return
		}
		// What is sent on is read as the same, and written as the same.
		in.RawQuery, in.Body = res.RawQuery, res.Body
		again, err := Parse(in)
		if err != nil {
			t.Fatalf("what is sent on is refused: %v\n%s\n%s", err, res.RawQuery, res.Body)
		}
		if diff := cmp.Diff(res, again); diff != "" {
			t.Fatalf("what is sent on is read as something else: %s", diff)
		}
		// A careless server reads from it what was judged.
		if get {
			values, err := url.ParseQuery(res.RawQuery)
			if err != nil {
				t.Fatal(err)
			}
			e := map[string]any{}
			for key, value := range values {
				if !isControl(key) {
					continue
				}
				if len(value) != 1 {
					t.Fatalf("%d values of %q", len(value), key)
				}
				e[key] = value[0]
				if key == keyVariables || key == keyExtensions {
					e[key] = json.RawMessage(value[0])
				}
			}
			if body, err = json.Marshal(e); err != nil {
				t.Fatal(err)
			}
		} else {
			body = res.Body
		}
		checkIndependently(t, body, res.Batch, res.Operations)
		if !get {
			// Nothing was lost or changed in the values that are sent on.
			checkSubset(t, in.Body, res.Body)
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, cases := range loadCases(f) {
		for _, c := range cases {
			if c.Subprotocol != "" {
				f.Add(c.Subprotocol == LegacyWS, c.body())
			}
		}
	}
	var remembers Classifier
	f.Fuzz(func(t *testing.T, legacy bool, text []byte) {
		subprotocol := TransportWS
		if legacy {
			subprotocol = LegacyWS
		}
		sameMessageAsWithout(t, &remembers, subprotocol, text)
		m, err := ParseMessage(subprotocol, text)
		if err != nil {
			checkError(t, err, len(m.Operations))
			return
		}
		again, err := ParseMessage(subprotocol, m.Text)
		if err != nil {
			t.Fatalf("what is sent on is refused: %v\n%s", err, m.Text)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatalf("what is sent on is read as something else: %s", diff)
		}
		var sent struct {
			Type    string
			Payload json.RawMessage
		}
		if err := json.Unmarshal(m.Text, &sent); err != nil || sent.Type != m.Type {
			t.Fatalf("%v: type %q, judged as %q", err, sent.Type, m.Type)
		}
		if runs := m.Type == "subscribe" || m.Type == "start"; runs != (len(m.Operations) == 1) {
			t.Fatalf("%s with %d operations", m.Type, len(m.Operations))
		} else if runs {
			checkIndependently(t, sent.Payload, false, m.Operations)
		}
	})
}

func checkError(t *testing.T, err error, operations int) {
	t.Helper()
	if err == nil {
		if operations == 0 {
			t.Fatal("understood, but nothing to judge")
		}
		return
	}
	var refusal *Error
	if !errors.As(err, &refusal) || operations != 0 {
		t.Fatalf("error %T with %d operations", err, operations)
	}
	if len(refusal.Message) > 1024 || !utf8.ValidString(refusal.Message) {
		t.Fatalf("unfit message %q", refusal.Message)
	}
}

// looseEnvelope is an envelope as a server written without care reads it:
// encoding/json takes keys of any case, and of duplicates the last.
type looseEnvelope struct {
	Query         string
	OperationName string
	ID            string
	DocumentID    string
	QueryID       string
	Extensions    struct {
		PersistedQuery struct{ SHA256Hash string }
	}
}

// checkIndependently reads what is sent on with encoding/json and gqlparser
// and compares.
func checkIndependently(t *testing.T, body []byte, batch bool, ops []Operation) {
	t.Helper()
	envelopes := make([]looseEnvelope, 1)
	var err error
	if batch {
		err = json.Unmarshal(body, &envelopes)
	} else {
		err = json.Unmarshal(body, &envelopes[0])
	}
	if err != nil {
		t.Fatalf("encoding/json does not read what is sent on: %v\n%s", err, body)
	}
	if len(envelopes) != len(ops) {
		t.Fatalf("%d operations for %d envelopes", len(ops), len(envelopes))
	}
	for i, e := range envelopes {
		want := Operation{Name: e.OperationName, Persisted: e.ID + e.DocumentID + e.QueryID + e.Extensions.PersistedQuery.SHA256Hash}
		if e.Query != "" {
			want = looseOperation(t, e)
		}
		if diff := cmp.Diff(want, ops[i]); diff != "" {
			t.Fatalf("read otherwise: %s\n%s", diff, body)
		}
	}
}

func looseOperation(t *testing.T, e looseEnvelope) Operation {
	t.Helper()
	doc, err := parser.ParseQuery(&ast.Source{Input: e.Query})
	if err != nil {
		t.Fatal(err)
	}
	op := doc.Operations.ForName(e.OperationName)
	if op == nil {
		t.Fatalf("no operation %q in %q", e.OperationName, e.Query)
	}
	// Level by level instead of depth first.
	var fields []string
	seen := map[string]bool{}
	for level := []ast.SelectionSet{op.SelectionSet}; len(level) > 0; {
		set := level[0]
		level = level[1:]
		for _, s := range set {
			switch s := s.(type) {
			case *ast.Field:
				if !slices.Contains(fields, s.Name) {
					fields = append(fields, s.Name)
				}
			case *ast.InlineFragment:
				level = append(level, s.SelectionSet)
			case *ast.FragmentSpread:
				if !seen[s.Name] {
					seen[s.Name] = true
					level = append(level, doc.Fragments.ForName(s.Name).SelectionSet)
				}
			}
		}
	}
	slices.Sort(fields)
	return Operation{Type: string(op.Operation), Name: op.Name, Fields: fields}
}

// checkSubset makes sure that all members of sent are in received, unchanged.
func checkSubset(t *testing.T, received, sent []byte) {
	t.Helper()
	decode := func(text []byte) any {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		if list, ok := v.([]any); ok {
			return list
		}
		return []any{v}
	}
	all, some := decode(received).([]any), decode(sent).([]any)
	if len(all) != len(some) {
		t.Fatalf("%d envelopes received, %d sent", len(all), len(some))
	}
	for i := range some {
		for key, value := range some[i].(map[string]any) {
			want := all[i].(map[string]any)[key]
			if key == keyExtensions {
				continue // absent members of persistedQuery are not sent
			}
			if diff := cmp.Diff(want, value); diff != "" {
				t.Fatalf("%s changed: %s", key, diff)
			}
		}
	}
}
