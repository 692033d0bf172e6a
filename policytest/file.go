package policytest

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"

	"weir/rules"
)

// file is a test file as it is written.
type file struct {
	Now          time.Time `yaml:"now"`
	DNS          []lookup  `yaml:"dns"`
	GlobalRules  []rule    `yaml:"global_rules"`
	GlobalPolicy any       `yaml:"global_policy"`
	Builtin      *bool     `yaml:"builtin"`
	Sessions     []session `yaml:"sessions"`
	Cases        []testCase
}

// lookup is one answer that a container got from the shim.
type lookup struct {
	Container string    `yaml:"container"`
	Name      string    `yaml:"name"`
	Address   string    `yaml:"address"`
	TTL       int       `yaml:"ttl"` // seconds
	At        time.Time `yaml:"at"`
}

type rule struct {
	Container   string    `yaml:"container"`
	Destination string    `yaml:"destination"`
	Ports       any       `yaml:"ports"`
	Transport   string    `yaml:"transport"`
	Binaries    []string  `yaml:"binaries"`
	Action      string    `yaml:"action"`
	ExpiresAt   time.Time `yaml:"expires_at"`
	Notes       string    `yaml:"notes"`
}

type session struct {
	ID           string            `yaml:"id"`
	Container    string            `yaml:"container"`
	CreatedAt    time.Time         `yaml:"created_at"`
	ExpiresAt    time.Time         `yaml:"expires_at"`
	Ended        bool              `yaml:"ended"`
	AllowAll     bool              `yaml:"allow_all"`
	NetworkRules []rule            `yaml:"network_rules"`
	Policy       any               `yaml:"policy"`
	PolicyFile   string            `yaml:"policy_file"`
	Labels       map[string]string `yaml:"labels"`
}

type testCase struct {
	Name    string    `yaml:"name"`
	At      time.Time `yaml:"at"`
	Request request   `yaml:"request"`
	Expect  string    `yaml:"expect"`
	Would   string    `yaml:"would"` // what enforcement would have said
	Layer   string    `yaml:"layer"`
	Rule    *int      `yaml:"rule"`
}

type request struct {
	Container  string   `yaml:"container"`
	Host       string   `yaml:"host"`
	Address    string   `yaml:"address"`
	SNI        *string  `yaml:"sni"`
	Port       int      `yaml:"port"`
	Transport  string   `yaml:"transport"`
	Binary     string   `yaml:"binary"`
	Ancestors  []string `yaml:"ancestors"`
	Method     string   `yaml:"method"`
	Target     string   `yaml:"target"`
	Headers    headers  `yaml:"headers"`
	Body       string   `yaml:"body"`
	BodyBase64 string   `yaml:"body_base64"`
	Raw        string   `yaml:"raw"`
}

// headers are written as a mapping, or as a list of [name, value] pairs.
type headers [][2]string

func (h *headers) UnmarshalYAML(text []byte) error {
	var pairs [][2]string
	if err := yaml.Unmarshal(text, &pairs); err == nil {
		*h = pairs
		return nil
	}
	var mapping yaml.MapSlice
	if err := yaml.Unmarshal(text, &mapping); err != nil {
		return fmt.Errorf("headers: want a mapping or a list of [name, value] pairs")
	}
	for _, item := range mapping {
		*h = append(*h, [2]string{fmt.Sprint(item.Key), fmt.Sprint(item.Value)})
	}
	return nil
}

// read reads a test file; unknown keys and bad values are errors.
func read(path string) (*file, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &file{}
	if err := yaml.UnmarshalWithOptions(text, f, yaml.Strict(), yaml.AllowDuplicateMapKey()); err != nil {
		return nil, fmt.Errorf("%s: %s", path, yaml.FormatError(err, false, true))
	}
	if len(f.Cases) == 0 {
		return nil, fmt.Errorf("%s: no cases: a test file that tests nothing", path)
	}
	if f.Now.IsZero() {
		f.Now = time.Now()
	}
	return f, nil
}

// rule turns a written rule into one of the policy.
func (r rule) rule(source rules.Source, i int) (rules.Rule, error) {
	made := rules.Rule{
		ID: fmt.Sprintf("%s/%d", source, i), Source: source, Order: int64(i),
		Container: r.Container, Destination: r.Destination, Transport: rules.Transport(r.Transport),
		Binaries: r.Binaries, Action: rules.Action(r.Action), Expires: r.ExpiresAt, Notes: r.Notes,
	}
	switch p := r.Ports.(type) {
	case nil:
	case string:
		made.Ports = p
	case uint64, int64, int:
		made.Ports = fmt.Sprint(p)
	default:
		return made, fmt.Errorf("ports %v: want text such as \"80,443,8000-9000\"", p)
	}
	if made.Action == "" && source == rules.Session {
		made.Action = rules.ActionAllow
	}
	canonical, _, err := rules.Canonical(made)
	return canonical, err
}

// document parses a policy that is written in place; nil is none.
func document(name string, value any) (*rules.Document, error) {
	if value == nil {
		return nil, nil
	}
	text, err := yaml.Marshal(value)
	if err != nil {
		return nil, err
	}
	doc, _, err := rules.ParseDocument(name, text)
	return doc, err
}

// document is a session's policy, in place or from a file beside the test.
func (s session) document(dir string) (*rules.Document, error) {
	if s.PolicyFile == "" {
		return document("policy", s.Policy)
	}
	if s.Policy != nil {
		return nil, fmt.Errorf("policy and policy_file: give one of them")
	}
	path := s.PolicyFile
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	doc, _, err := rules.ParseDocument(path, text)
	return doc, err
}

// body is the request's body as bytes.
func (r request) body() ([]byte, error) {
	if r.BodyBase64 == "" {
		return []byte(r.Body), nil
	}
	if r.Body != "" {
		return nil, fmt.Errorf("body and body_base64: give one of them")
	}
	return base64.StdEncoding.DecodeString(r.BodyBase64)
}
