package graphql

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func decodeBase64(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(s) }

// envelopeOf is an envelope around a document.
func envelopeOf(document string) string {
	return `{"query":` + string(appendString(nil, document)) + `}`
}

func post(body string) Input {
	return Input{Method: "POST", ContentType: "application/json", Body: []byte(body), MaxBody: 1 << 22}
}

func codeOf(err error) Code {
	var refusal *Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return ""
}

func TestLimits(t *testing.T) {
	nest := func(open, middle, end string, n int) string {
		return strings.Repeat(open, n) + middle + strings.Repeat(end, n)
	}
	chain := func(n int) string { // fragments nested through each other
		var b strings.Builder
		b.WriteString("{...F0}")
		for i := range n {
			fmt.Fprintf(&b, "fragment F%d on T{...F%d}", i, i+1)
		}
		fmt.Fprintf(&b, "fragment F%d on T{a}", n)
		return b.String()
	}
	bomb := func(n int) string { // expands to 2^n fields
		var b strings.Builder
		b.WriteString("{...F0}")
		for i := range n {
			fmt.Fprintf(&b, "fragment F%d on T{...F%d ...F%d b{...F%d ...F%d}}", i, i+1, i+1, i+1, i+1)
		}
		fmt.Fprintf(&b, "fragment F%d on T{a}", n)
		return b.String()
	}
	for _, c := range []struct {
		name, body string
		want       Code
	}{
		{"128 levels of selections", envelopeOf(nest("{a", "", "}", 128)), ""},
		{"129 levels of selections", envelopeOf(nest("{a", "", "}", 129)), TooDeep},
		{"a million levels of selections", envelopeOf(nest("{a", "", "}", 1_000_000)), TooDeep},
		{"a million levels without an end", envelopeOf(strings.Repeat("{a", 1_000_000)), TooDeep},
		{"126 levels of lists in an argument", envelopeOf("{a(x:" + nest("[", "", "]", 126) + ")}"), ""},
		{"127 levels of lists in an argument", envelopeOf("{a(x:" + nest("[", "", "]", 127) + ")}"), TooDeep},
		{"a thousand levels of objects in an argument", envelopeOf("{a(x:" + nest("{x:", "1", "}", 1000) + ")}"), TooDeep},
		{"a thousand levels of lists in a type", envelopeOf("query($a:" + nest("[", "Int", "]", 1000) + "){a}"), TooDeep},
		{"a thousand brackets side by side", envelopeOf("{" + strings.Repeat("a(x:[{}]){b} ", 1000) + "}"), ""},
		{"brackets in strings and comments", envelopeOf("#" + nest("{", "", "", 200) + "\n{a(x:\"" + nest("[(", "", "", 200) + "\")}"), ""},
		{"a lexer's error behind many brackets", envelopeOf(strings.Repeat("{} ", 200) + "~"), SyntaxError},
		{"127 levels of lists in variables", `{"query":"{a}","variables":{"x":` + nest("[", "", "]", 126) + `}}`, ""},
		{"129 levels of lists in variables", `{"query":"{a}","variables":{"x":` + nest("[", "", "]", 127) + `}}`, TooDeep},
		{"a million lists", nest("[", "", "]", 1_000_000), NestedBatch},
		{"a million objects in an unknown member", `{"x":` + nest(`{"x":`, "1", "}", 500_000) + `}`, TooDeep},
		{"20 000 tokens", envelopeOf("{" + strings.Repeat("a ", 19_998) + "}"), ""},
		{"20 001 tokens", envelopeOf("{" + strings.Repeat("a ", 19_999) + "}"), TooManyTokens},
		{"20 001 tokens of brackets", envelopeOf("{" + strings.Repeat("a{b}", 10_000) + "}"), TooManyTokens},
		{"20 001 comments", envelopeOf(strings.Repeat("#\n", 20_001) + "{a}"), TooManyTokens},
		{"a chain of 2 000 fragments", envelopeOf(chain(2000)), ""},
		{"a fragment bomb", envelopeOf(bomb(500)), ""},
		{"20 000 keys", `{"query":"{a}","variables":{` + manyKeys(20_000) + `}}`, ""},
		{"200 000 escapes", envelopeOf("{a(x:\"" + strings.Repeat(`\n`, 200_000) + "\")}"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse(post(c.body))
			if got := codeOf(err); got != c.want || err != nil && c.want == "" {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// The levels of a message's payload are counted with those around it.
func TestMessageLimits(t *testing.T) {
	for n, want := range map[int]Code{125: "", 126: TooDeep} {
		text := `{"id":"1","type":"subscribe","payload":{"query":"{a}","variables":{"x":` +
			strings.Repeat("[", n) + strings.Repeat("]", n) + `}}}`
		_, err := ParseMessage(TransportWS, []byte(text))
		if got := codeOf(err); got != want || err != nil && want == "" {
			t.Errorf("%d lists: got %v, want %q", n, err, want)
		}
	}
}

func manyKeys(n int) string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("\"k%d\":%d", i, i)
	}
	return strings.Join(keys, ",")
}

func TestMessagesAreOneShortLine(t *testing.T) {
	long := strings.Repeat("\x1b[31m\u202e\n", 500)
	for _, in := range []Input{
		{Method: long},
		{Method: "POST", ContentEncoding: long},
		{Method: "POST", ContentType: long, Body: []byte("{}")},
		{Method: "GET", RawQuery: "query=" + url.QueryEscape("{a} query B{b}") + "&operationName=" + url.QueryEscape(long)},
		{Method: "GET", RawQuery: "query=" + url.QueryEscape("{a(x:-\n)}")},
		{Method: "GET", RawQuery: "query=" + url.QueryEscape("{a(x:-\n"+strings.Repeat("{", 200))},
		{Method: "GET", RawQuery: "query=" + url.QueryEscape(strings.Repeat("{a}", 200)+"-\n")},
		{Method: "GET", RawQuery: "a=%" + long},
		post(`{"query":"{a}",` + string(appendString(nil, long)) + `:1,` + string(appendString(nil, long)) + `:2}`),
		post(envelopeOf("\"" + strings.ReplaceAll(long, "\n", ""))),
		post(envelopeOf("query " + strings.Repeat("a ", 500))),
		post(envelopeOf("{a(x:1}" + strings.Repeat("é", 500))),
		post(envelopeOf("a" + strings.Repeat("é", 500))),
		post(envelopeOf(strings.Repeat("a", 500))),
	} {
		_, err := Parse(in)
		var refusal *Error
		if !errors.As(err, &refusal) {
			t.Fatalf("%.60q %.60q: no refusal but %v", in.RawQuery, in.Body, err)
		}
		if m := refusal.Message; len(m) > 1024 || strings.ContainsFunc(m, func(r rune) bool { return r < 0x20 || r == 0x202e || r == 0xfffd }) {
			t.Errorf("unfit message of %d bytes: %.200q", len(m), m)
		}
	}
}

// A tree is a selection set in the making, together with its root fields.
type tree struct {
	text      string
	fields    map[string]bool
	fragments []string // definitions that the text needs
}

var names = rapid.SampledFrom([]string{"viewer", "repository", "deleteRepository", "__typename", "on", "fragment", "query", "a", "_1"})

func genTree(t *rapid.T, depth int, unique *int) tree {
	var b strings.Builder
	out := tree{fields: map[string]bool{}}
	b.WriteString("{")
	for range rapid.IntRange(1, 4).Draw(t, "selections") {
		b.WriteString(rapid.SampledFrom([]string{" ", ",", "\n", " # } evil {\r\n", "\ufeff"}).Draw(t, "space"))
		kind := rapid.IntRange(0, 3).Draw(t, "kind")
		if depth == 0 {
			kind = 0
		}
		directive := rapid.SampledFrom([]string{"", " @skip(if: true)", " @include(if: $x) @d(a: [{b: \"}\"}])"}).Draw(t, "directive")
		switch kind {
		case 0, 1:
			name := names.Draw(t, "field")
			out.fields[name] = true
			if rapid.Bool().Draw(t, "aliased") {
				b.WriteString(names.Draw(t, "alias") + " : ")
			}
			b.WriteString(name)
			b.WriteString(rapid.SampledFrom([]string{"", "(x: \"{ \\\"evil }\")", "(y: {z: [$v, E, null, -1.5e3]})", "(b: \"\"\" } \\\"\"\" { \"\"\")"}).Draw(t, "arguments"))
			b.WriteString(directive)
			if kind == 1 {
				inner := genTree(t, depth-1, unique)
				b.WriteString(inner.text)
				out.fragments = append(out.fragments, inner.fragments...)
			}
		default:
			inner := genTree(t, depth-1, unique)
			for f := range inner.fields {
				out.fields[f] = true
			}
			out.fragments = append(out.fragments, inner.fragments...)
			if kind == 2 {
				b.WriteString(rapid.SampledFrom([]string{"...", "... on T"}).Draw(t, "condition") + directive + inner.text)
				break
			}
			*unique++
			name := fmt.Sprintf("F%d", *unique)
			b.WriteString("..." + name + directive)
			out.fragments = append(out.fragments, "fragment "+name+" on T"+inner.text)
		}
	}
	b.WriteString("}")
	out.text = b.String()
	return out
}

// However fields are aliased, wrapped in fragments, put behind directives or
// surrounded by text that looks like fields: the root fields are the same.
func TestRootFieldsAreFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		unique := 0
		tree := genTree(t, 3, &unique)
		parts := append([]string{}, tree.fragments...)
		typ := rapid.SampledFrom([]string{"query", "mutation", "subscription"}).Draw(t, "type")
		parts = append(parts, typ+" Op($x: Boolean, $v: [T!]! = [])"+tree.text, "query Other{other}")
		parts = rapid.Permutation(parts).Draw(t, "order")
		e := envelopeOf(strings.Join(parts, " "))
		res, err := Parse(post(e[:len(e)-1] + `,"operationName":"Op"}`))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, f := range res.Operations[0].Fields {
			got[f] = true
		}
		if diff := cmp.Diff(tree.fields, got); diff != "" {
			t.Fatal(diff)
		}
		if op := res.Operations[0]; op.Type != typ || op.Name != "Op" || len(op.Fields) != len(got) {
			t.Fatalf("got %+v", op)
		}
	})
}

// Adding an operation to a batch only adds: the others are judged as before,
// and one that is refused alone refuses the batch.
func TestBatchOnlyAdds(t *testing.T) {
	element := rapid.SampledFrom([]string{
		envelopeOf("{a}"), envelopeOf("mutation M{b}"), `{"id":"x"}`, envelopeOf("{a"), `{}`, `[]`, `{"query":1}`,
	})
	rapid.Check(t, func(t *rapid.T) {
		elements := rapid.SliceOfN(element, 1, 6).Draw(t, "elements")
		var want []string
		for _, e := range elements {
			alone, err := Parse(post("[" + e + "]"))
			if err != nil {
				want = nil
				break
			}
			want = append(want, describeAll(alone.Operations)...)
		}
		res, err := Parse(post("[" + strings.Join(elements, " ,\n") + "]"))
		if want == nil {
			if err == nil {
				t.Fatalf("a refused element passed: %v", describeAll(res.Operations))
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, describeAll(res.Operations)); diff != "" || !res.Batch {
			t.Fatal(diff, res.Batch)
		}
	})
}
