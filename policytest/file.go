package policytest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// file is a test file as it is written.
type file struct {
	Now          instant    `yaml:"now"`
	DNS          []lookup   `yaml:"dns"`
	GlobalRules  []rule     `yaml:"global_rules"`
	GlobalPolicy any        `yaml:"global_policy"`
	Builtin      *bool      `yaml:"builtin"`
	Sessions     []session  `yaml:"sessions"`
	Cases        []testCase `yaml:"cases"`

	source *source
}

// lookup is one answer that a container got from the shim.
type lookup struct {
	Container string  `yaml:"container"`
	Name      string  `yaml:"name"`
	Address   string  `yaml:"address"`
	TTL       int     `yaml:"ttl"` // seconds
	At        instant `yaml:"at"`  // default: now
}

type rule struct {
	Container        string   `yaml:"container"` // of global rules
	Destination      string   `yaml:"destination"`
	Ports            any      `yaml:"ports"`
	Transport        string   `yaml:"transport"`
	Binaries         []string `yaml:"binaries"`
	Action           string   `yaml:"action"` // of session rules: allow when absent
	ExpiresAt        instant  `yaml:"expires_at"`
	ExpiresInSeconds int      `yaml:"expires_in_seconds"`
	Notes            string   `yaml:"notes"`
}

type session struct {
	ID           string            `yaml:"id"`
	Container    string            `yaml:"container"`
	CreatedAt    instant           `yaml:"created_at"` // default: before every case
	ExpiresAt    instant           `yaml:"expires_at"` // default: after every case
	Ended        bool              `yaml:"ended"`
	AllowAll     bool              `yaml:"allow_all"`
	NetworkRules []rule            `yaml:"network_rules"`
	Policy       any               `yaml:"policy"`
	PolicyFile   string            `yaml:"policy_file"` // beside the test file
	Labels       map[string]string `yaml:"labels"`
}

type testCase struct {
	Name    string  `yaml:"name"`
	At      instant `yaml:"at"`
	Request request `yaml:"request"`
	Expect  string  `yaml:"expect"`
	Would   string  `yaml:"would"` // what enforcement would have said
	Layer   string  `yaml:"layer"`
	Rule    *int    `yaml:"rule"`
}

type request struct {
	Container  string   `yaml:"container"`
	Host       string   `yaml:"host"`
	Address    string   `yaml:"address"`
	SNI        *string  `yaml:"sni"`
	Port       *int     `yaml:"port"`      // default: 443
	Transport  string   `yaml:"transport"` // default: tcp
	Binary     string   `yaml:"binary"`
	Ancestors  []string `yaml:"ancestors"`
	Method     string   `yaml:"method"`
	Target     string   `yaml:"target"`  // default: /
	Headers    any      `yaml:"headers"` // a mapping, or a list of [name, value] pairs
	Body       string   `yaml:"body"`
	BodyBase64 string   `yaml:"body_base64"`
	Raw        string   `yaml:"raw"`
}

// instant is a moment as it is written: RFC 3339, with any offset.
type instant struct{ time.Time }

func (i *instant) UnmarshalYAML(n ast.Node) (err error) {
	if i.Time, err = time.Parse(time.RFC3339, n.GetToken().Value); err != nil {
		return &yaml.SyntaxError{Token: n.GetToken(), Message: fmt.Sprintf("%q: want a time such as 2026-05-01T12:00:00Z", n.GetToken().Value)}
	}
	return nil
}

// read reads a test file; unknown keys, keys that are there twice and bad
// values are errors.
func read(path string) (*file, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &file{}
	if f.source, err = newSource(path, text); err != nil {
		return nil, err
	}
	// newSource has refused keys that are there twice. What is left of them
	// are keys that override what a merge (<<) brought.
	if err := yaml.UnmarshalWithOptions(text, f, yaml.Strict(), yaml.AllowDuplicateMapKey()); err != nil {
		return nil, f.source.syntax(err)
	}
	if len(f.Cases) == 0 {
		return nil, fmt.Errorf("%s: no cases: a test file that tests nothing", path)
	}
	if f.Now.IsZero() {
		f.Now.Time = time.Now()
	}
	for i, c := range f.Cases {
		if err := c.check(); err != nil {
			return nil, f.source.at(fmt.Sprintf("$.cases[%d]", i), err)
		}
	}
	return f, nil
}

// check refuses a case that could pass without testing what it says.
func (c testCase) check() error {
	switch {
	case c.Expect != "allow" && c.Expect != "deny":
		return fmt.Errorf("expect: %q: want allow or deny", c.Expect)
	case c.Would != "" && c.Would != "allow" && c.Would != "deny":
		return fmt.Errorf("would: %q: want allow or deny", c.Would)
	case c.Rule != nil && *c.Rule < 0:
		return fmt.Errorf("rule: %d: want the rule's place in its layer, from 0", *c.Rule)
	}
	switch c.Layer {
	case "", "global", "session", "builtin", "default", "allow_all", "guard":
		return nil
	}
	return fmt.Errorf("layer: %q: want global, session, builtin, default, allow_all or guard", c.Layer)
}

// body is the request's body as bytes.
func (r request) body() ([]byte, error) {
	if r.BodyBase64 == "" {
		return []byte(r.Body), nil
	}
	if r.Body != "" {
		return nil, errors.New("body and body_base64: give one of them")
	}
	b, err := base64.StdEncoding.DecodeString(r.BodyBase64)
	if err != nil {
		return nil, fmt.Errorf("body_base64: %w", err)
	}
	return b, nil
}
