package e2e

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// Whatever is wrong with a request, what Weir stores about it holds nothing of
// its document, variables, URL parameters and header fields. The names of
// encodings and protocols that a request asks for are told.
func TestNothingOfARefusedRequestIsStored(t *testing.T) {
	o := newOutside(t)
	o.addName("platform.example", "198.51.100.23")
	outside := newAuthority(t)
	server := o.record("198.51.100.23:443", serverConfig(outside, "platform.example"), nil)
	server.handler = sockets(server)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(guardrails("platform.example"))
	box.addClient()
	const secret = "s3cr3t-77d1e0"
	json := []string{"-H", "Content-Type: application/json"}
	quoted := fmt.Sprintf("%q", secret)
	forms := []struct {
		name, query, body string
		args              []string
	}{
		{"a syntax error at a string", "", body(t, map[string]any{"query": `mutation { volumeDelete(volumeId: "` + secret + `" "` + secret + `") `}), json},
		{"a string where a name belongs", "", body(t, map[string]any{"query": `mutation "` + secret + `" { x }`}), json},
		{"an unfinished string", "", body(t, map[string]any{"query": `{ me(a: "` + secret}), json},
		{"a comment", "", body(t, map[string]any{"query": "# " + secret + "\n{ me(((("}), json},
		{"a name that is not one", "", body(t, map[string]any{"query": "{ me ." + secret + " }"}), json},
		{"a bare document", "", "{ me(a: " + quoted + ") }", json},
		{"an unfinished JSON string", "", `{"query":"{ me }","variables":{"a":"` + secret, json},
		{"JSON that is none", "", `{"variables":` + secret + `}`, json},
		{"a variable twice", "", `{"query":"{ me }","variables":{"` + secret + `":1,"` + secret + `":2}}`, json},
		{"variables of the wrong type", "", `{"query":"{ me }","variables":` + quoted + `}`, json},
		{"trailing bytes", "", `{"query":"{ me }"}` + quoted, json},
		{"a batch element that is none", "", `[` + quoted + `]`, json},
		{"bytes that are not UTF-8", "", "{\"query\":\"{ me }\",\"variables\":{\"a\":\"" + secret + "\xff\"}}", json},
		{"in a content type", "", `{"query":"{ me }"}`, []string{"-H", "Content-Type: text/plain; boundary=" + secret}},
		{"in a content type's parameter", "", `{"query":"{ me }"}`, []string{"-H", "Content-Type: application/json; " + secret + "=1"}},
		{"in a method override", "", `{"query":"{ me }"}`, append(json, "-H", "X-HTTP-Method-Override: "+secret)},
		{"in a URL with a bad escape", "query=%7Bme%7D&token=" + secret + "%zz", "", nil},
		{"in a URL parameter twice", "query=" + url.QueryEscape(`{me(a:`+quoted+`)}`) + "&query=x", "", nil},
		{"in a URL parameter's variant", "query%5B" + secret + "%5D=x", "", nil},
		{"in a document in the URL", "query=" + url.QueryEscape(`{ me(a: `+quoted+` `), "", nil},
	}
	for _, f := range forms {
		method := "POST"
		if f.body == "" {
			method = "GET"
		}
		args := append([]string{"request", "-X", method, "-H", "Authorization: Bearer " + secret, "-H", "Cookie: a=" + secret, "-target", "/graphql?" + f.query}, f.args...)
		if r := box.client(f.body, append(args, "https://platform.example/")...); r.Status != 400 && r.Status != 403 {
			t.Errorf("%s: %+v", f.name, r)
		}
	}
	const head = " HTTP/1.1\r\nHost: platform.example\r\nAuthorization: " + secret + "\r\n"
	raws := []string{
		"GET /graphql" + head + "X: " + secret + "\x00\r\n\r\n",
		"GET /graphql?token=" + secret + " " + secret + head + "\r\n",
		"GET /graphql" + head + " " + secret + "\r\n\r\n",
		"GET /graphql" + head + secret + "\r\n\r\n",
	}
	for _, r := range raws {
		if got := box.client(r, "raw", "platform.example:443"); !strings.Contains(got.Got, "HTTP/1.1 40") {
			t.Errorf("%q: %+v", r, got)
		}
	}
	for _, message := range []string{
		secret, `{"id":"1","type":"subscribe","payload":{"query":"{ me(a: \"` + secret + `\" "}}`,
		`{"id":"1","type":"subscribe","payload":{"query":"{ me }","` + secret + `":1,"` + secret + `":2}}`,
	} {
		if r := box.client(message, "ws", "wss://platform.example/graphql?token="+secret); r.Closed != 1008 {
			t.Errorf("%s: %+v", message, r)
		}
	}
	w.refusals(box.Name, "graphql", len(forms)+len(raws)+3, func(e Event) bool { return e.Verdict == "deny" })
	w.holdsNone(box.Name, secret)
}
