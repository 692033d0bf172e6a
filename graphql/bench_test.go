package graphql

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/parser"
)

// oneKB is a document of 1 KB as clients write them: an operation with
// variables, nested selections and two fragments.
func oneKB() string {
	var b strings.Builder
	b.WriteString("query Overview($owner: String!, $name: String!, $first: Int = 20) {\n" +
		"  viewer { login }\n" +
		"  repository(owner: $owner, name: $name) {\n    ...Facts\n" +
		"    issues(first: $first, states: [OPEN], orderBy: {field: UPDATED_AT, direction: DESC}) {\n" +
		"      nodes { number title author { login } }\n    }\n  }\n}\n" +
		"fragment Facts on Repository {\n  description\n  isPrivate\n  ...More\n}\nfragment More on Repository {\n")
	for i := 0; b.Len() < 1010; i++ {
		fmt.Fprintf(&b, "  repositoryProperty%d: stargazerCount\n", i)
	}
	b.WriteString("}\n")
	return b.String()
}

// Classification of a 1 KB document, the whole of Parse: warm is a document
// that was read before, which is what programs send, and is to take 10 µs at
// most; cold is one that was not, and distinct the same with a memory that
// such documents fill.
func BenchmarkParse(b *testing.B) {
	doc := oneKB()
	body := appendString([]byte(`{"operationName":"Overview","variables":{"owner":"a","name":"b"},"query":`), doc)
	body = append(body, '}')
	in := Input{Method: "POST", ContentType: "application/json", Body: body}
	run := func(name string, parse func(Input) (Result, error), change func(i int)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				change(i)
				if _, err := parse(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	digits := bytes.Index(body, []byte("Property0:")) + len("Property")
	run("cold", Parse, func(int) {})
	run("warm", new(Classifier).Parse, func(int) {})
	run("distinct", new(Classifier).Parse, func(i int) {
		for k := range 9 { // an alias of nine digits in the place of "0: starga"
			body[digits+k] = byte('0' + i%10)
			i /= 10
		}
	})
	// What of it is the document; the rest is the envelope.
	b.Run("document", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := readDocument(doc, "Overview"); err != nil {
				b.Fatal(err)
			}
		}
	})
	// What of that is the parser alone.
	b.Run("parser", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := parser.ParseQueryWithTokenLimit(&ast.Source{Input: doc}, maxTokens); err != nil {
				b.Fatal(err)
			}
		}
	})
}
