package graphql

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Wherever in a document a value stands, and wherever in an envelope, no
// message repeats it.
func TestMessagesRepeatNoValues(t *testing.T) {
	const secret = "s3cr3t77d1e0"
	document := []string{
		"query", "Q", "(", "$a", ":", "[", "Int", "!", "]", "=", "1", ")", "{", "me", "(", "id", ":", "$a", ",", "x", ":", "{", "y", ":", "[", "E", "]", "}", ")",
		"@skip", "(", "if", ":", "true", ")", "{", "a", "...", "F", "...", "on", "T", "{", "b", "}", "}", "}", "fragment", "F", "on", "T", "{", "c", "}",
	}
	values := rapid.SampledFrom([]string{
		`"` + secret + `"`, `"""` + secret + `"""`, `"` + secret, `"\` + secret + `"`, "'" + secret + "'", "# " + secret + "\n",
		"0" + secret, "1.." + secret, "$" + secret, "{" + secret + ": 1}", "?" + secret, "\x00" + secret,
	})
	check := func(t *rapid.T, err error) {
		var refusal *Error
		if err != nil && (!errors.As(err, &refusal) || strings.Contains(strings.ToLower(refusal.Message), secret)) {
			t.Fatalf("%v", err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		words := append([]string(nil), document...)
		for range rapid.IntRange(1, 3).Draw(t, "values") {
			at := rapid.IntRange(0, len(words)-1).Draw(t, "at")
			words[at] = values.Draw(t, "value")
		}
		text := strings.Join(words, " ")
		// A name where a field or a variable stands may be told.
		for _, known := range []string{"{" + secret, "$" + secret} {
			if strings.Contains(text, known) {
				return
			}
		}
		body, err := json.Marshal(map[string]string{"query": text})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(Input{Method: "POST", ContentType: "application/json", Body: body})
		check(t, err)

		// The same in the JSON around it.
		parts := []string{`{`, `"query"`, `:`, `"{a}"`, `,`, `"variables"`, `:`, `{`, `"v"`, `:`, `[`, `1`, `]`, `}`, `,`, `"extensions"`, `:`, `{`, `"persistedQuery"`, `:`, `{`, `"version"`, `:`, `1`, `}`, `}`, `}`}
		parts[rapid.IntRange(0, len(parts)-1).Draw(t, "part")] = values.Draw(t, "json")
		in := Input{Method: "POST", ContentType: "application/json", Body: []byte(strings.Join(parts, " "))}
		if rapid.Bool().Draw(t, "headers") {
			in.ContentType = rapid.SampledFrom([]string{secret, "application/json; " + secret, "text/plain; " + secret, secret + "/json"}).Draw(t, "type")
		}
		if rapid.Bool().Draw(t, "encoding") {
			in.ContentEncoding = secret
		}
		if rapid.Bool().Draw(t, "url") {
			in.RawQuery = rapid.SampledFrom([]string{secret + "%z", "query[" + secret + "]=1", "query=" + secret, "x=" + secret}).Draw(t, "query")
		}
		_, err = Parse(in)
		check(t, err)
		in.Method, in.Body, in.RawQuery = "GET", nil, in.RawQuery+"&variables="+secret
		_, err = Parse(in)
		check(t, err)
		_, err = ParseMessage(TransportWS, []byte(`{"type":"subscribe","id":"1","payload":`+strings.Join(parts, " ")+`}`))
		check(t, err)
		_, err = ParseMessage(secret, nil)
		check(t, err)
		_, err = ParseMessage(LegacyWS, []byte(`{"id":"1","type":"`+secret+`"}`))
		check(t, err)
	})
}
