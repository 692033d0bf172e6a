package graphql

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// sameAsWithout compares what c answers, the first time and again, with what
// the functions without a memory do.
func sameAsWithout(t interface {
	Helper()
	Fatalf(string, ...any)
}, c *Classifier, in Input) {
	t.Helper()
	want, wantErr := Parse(in)
	for range 3 {
		got, err := c.Parse(in)
		if diff := cmp.Diff(wantErr, err); diff != "" {
			t.Fatalf("with a memory refused otherwise: %s", diff)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("with a memory read otherwise: %s", diff)
		}
	}
}

func sameMessageAsWithout(t *testing.T, c *Classifier, subprotocol string, text []byte) {
	t.Helper()
	want, wantErr := ParseMessage(subprotocol, text)
	for range 3 {
		got, err := c.ParseMessage(subprotocol, text)
		if diff := cmp.Diff(wantErr, err); diff != "" {
			t.Fatalf("with a memory refused otherwise: %s", diff)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("with a memory read otherwise: %s", diff)
		}
	}
}

func TestClassifierCases(t *testing.T) {
	var c Classifier
	for range 2 { // the second time with everything remembered
		for _, cases := range loadCases(t) {
			for _, one := range cases {
				if one.Subprotocol != "" {
					sameMessageAsWithout(t, &c, one.Subprotocol, one.body())
				} else {
					sameAsWithout(t, &c, one.input())
				}
			}
		}
	}
}

// Few documents that differ little, names that are in them or not, and a
// memory so small that it forgets all the time.
func TestClassifierAnswersTheSame(t *testing.T) {
	documents := []string{
		"{ a }", "{ a} ", "{ b: a }", "query A { a } mutation B { b }", "mutation A { a } query B { b }",
		"query A { ...F } fragment F on Q { x y }", "query A { ...G } fragment F on Q { x }", "{", "",
		"query A { a } # " + strings.Repeat("x", 300), "{ " + strings.Repeat("a: b ", 50) + "}",
	}
	rapid.Check(t, func(t *rapid.T) {
		c := Classifier{
			MaxBytes:     rapid.SampledFrom([]int{0, 1, 20000, 40000}).Draw(t, "bytes"),
			MaxDocuments: rapid.SampledFrom([]int{0, 1, 40}).Draw(t, "documents"),
		}
		for range rapid.IntRange(1, 30).Draw(t, "requests") {
			var batch []map[string]string
			for range rapid.IntRange(1, 3).Draw(t, "operations") {
				batch = append(batch, map[string]string{
					"query":         rapid.SampledFrom(documents).Draw(t, "document"),
					"operationName": rapid.SampledFrom([]string{"", "A", "B", "C"}).Draw(t, "name"),
				})
			}
			body, err := json.Marshal(batch)
			if err != nil {
				t.Fatal(err)
			}
			sameAsWithout(t, &c, Input{Method: "POST", ContentType: "application/json", Body: body})
		}
	})
}

// Somebody who appends to the fields of one answer does not change another's.
func TestClassifierAnswersAreApart(t *testing.T) {
	var c Classifier
	in := Input{Method: "POST", ContentType: "application/json", Body: []byte(`{"query":"{ a b c b a }"}`)}
	for range 3 {
		res, err := c.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "b", "c"}, res.Operations[0].Fields); diff != "" {
			t.Fatal(diff)
		}
		_ = append(res.Operations[0].Fields, "z")
		res.Operations[0] = Operation{}
	}
}

// Documents that are made to fill the memory stay within its bound, by its own
// count and by the runtime's: many small ones, long ones, ones with many
// fields or with many aliases of one, small ones in long bodies.
func TestClassifierIsBounded(t *testing.T) {
	const most = 1 << 20
	c := Classifier{MaxBytes: most}
	shapes := []func(i int) string{
		func(i int) string { return fmt.Sprintf("{ a%d }", i) },
		func(i int) string { return fmt.Sprintf("{ a%d } #%s", i, strings.Repeat("x", 20000)) },
		func(i int) string {
			var b strings.Builder
			for k := range 1500 {
				fmt.Fprintf(&b, " f%d_%d", k, i)
			}
			return "{" + b.String() + " }"
		},
		func(i int) string { return fmt.Sprintf("{ %s x%d }", strings.Repeat("a:b ", 3000), i) },
		func(i int) string { return fmt.Sprintf("query Q%d { a }", i) },
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 2500 {
		envelopes := []map[string]any{{"query": shapes[i%len(shapes)](i)}}
		if i%50 == 0 { // a body of which the small document is a small part
			envelopes[0]["variables"] = map[string]string{"x": strings.Repeat("y", 40000)}
		}
		body, err := json.Marshal(envelopes)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Parse(Input{Method: "POST", ContentType: "application/json", Body: body}); err != nil {
			t.Fatal(err)
		}
		if i%100 != 0 {
			continue
		}
		bytes, count := 0, 0
		for k := range c.shards {
			for _, half := range []map[sent]*remembered{c.shards[k].young, c.shards[k].old} {
				count += len(half)
				for key, m := range half {
					if key != m.sent {
						t.Fatal("remembered under another key")
					}
					bytes += m.size()
				}
			}
		}
		if bytes > most || count > 1024 {
			t.Fatalf("%d bytes in %d documents after %d", bytes, count, i)
		}
	}
	if after := heap(); after > before+2*most {
		t.Errorf("the heap grew by %d bytes", after-before)
	}
	runtime.KeepAlive(&c)
}

func TestClassifierAtOnce(t *testing.T) {
	c := Classifier{MaxBytes: 40000}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				body := fmt.Appendf(nil, `{"query":"{ a%d }"}`, (g+i)%60)
				res, err := c.Parse(Input{Method: "POST", ContentType: "application/json", Body: body})
				if err != nil || res.Operations[0].Fields[0] != fmt.Sprintf("a%d", (g+i)%60) {
					t.Errorf("%v, %v", res.Operations, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
