package api

import (
	"bytes"
	"encoding/json"

	"github.com/danielgtaylor/huma/v2"

	"weir/session"
)

// PolicyText is a policy document in a request, the JSON that it came in: an
// object, or a string that holds YAML or JSON. An object is kept byte for
// byte, so that what the document's parser would refuse, such as a key that is
// there twice, gets to it.
type PolicyText json.RawMessage

// PolicyString makes a PolicyText of a document's text.
func PolicyString(text string) PolicyText {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err) // every string can be marshalled
	}
	return quoted
}

// MarshalJSON returns the JSON as it is.
func (p PolicyText) MarshalJSON() ([]byte, error) { return json.RawMessage(p).MarshalJSON() }

// UnmarshalJSON keeps the JSON as it is.
func (p *PolicyText) UnmarshalJSON(b []byte) error {
	return (*json.RawMessage)(p).UnmarshalJSON(b)
}

// Schema describes the two forms.
func (PolicyText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{
		{Type: huma.TypeObject, AdditionalProperties: true, Description: "the document"},
		{Type: huma.TypeString, Description: "the document's text, YAML or JSON"},
	}}
}

// text is the document; nil when there is none.
func (p PolicyText) text() ([]byte, error) {
	b := bytes.TrimSpace(p)
	if len(b) == 0 || bytes.Equal(b, []byte("null")) {
		return nil, nil
	}
	if b[0] != '"' {
		return b, nil
	}
	var text string
	err := json.Unmarshal(b, &text)
	return []byte(text), err
}

func policyOf(p session.Policy) Policy {
	return Policy{Name: p.Name, Text: p.Text, Rules: p.Rules, UpdatedAt: p.Updated, Warnings: p.Warnings}
}
