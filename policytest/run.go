package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weir/dnsmap"
	"weir/rules"
)

// Report says how the cases of one or more files fared.
type Report struct {
	Passed   int       `json:"passed"`
	Failed   int       `json:"failed"`
	Failures []Failure `json:"failures"`
}

// Failure is one case that came out otherwise than it says.
type Failure struct {
	File string `json:"file"`
	Case string `json:"case"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Why  string `json:"why"` // the decision's reason
}

// String renders a failure as one line.
func (f Failure) String() string {
	return fmt.Sprintf("%s: %s: want %s, got %s: %s", f.File, f.Case, f.Want, f.Got, f.Why)
}

// Add adds another report to r.
func (r *Report) Add(other Report) {
	r.Passed += other.Passed
	r.Failed += other.Failed
	r.Failures = append(r.Failures, other.Failures...)
}

// Run runs one file. An error means that the file itself is wrong.
func Run(path string) (Report, error) {
	f, err := read(path)
	if err != nil {
		return Report{}, err
	}
	s, err := newSituation(f, filepath.Dir(path))
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", path, err)
	}
	report := Report{Failures: []Failure{}}
	for i, c := range f.Cases {
		name := cmp.Or(c.Name, fmt.Sprintf("case %d", i+1))
		d, err := s.judge(c)
		if err != nil {
			return Report{}, fmt.Errorf("%s: %s: %w", path, name, err)
		}
		want, got, err := compare(c, d)
		if err != nil {
			return Report{}, fmt.Errorf("%s: %s: %w", path, name, err)
		}
		if want == got {
			report.Passed++
			continue
		}
		report.Failed++
		report.Failures = append(report.Failures, Failure{File: path, Case: name, Want: want, Got: got, Why: d.Reason})
	}
	return report, nil
}

// compare renders what was wanted and what came, as far as the case says.
func compare(c testCase, d rules.Decision) (want, got string, err error) {
	if c.Expect != "allow" && c.Expect != "deny" {
		return "", "", fmt.Errorf("expect: %q: want allow or deny", c.Expect)
	}
	want, got = c.Expect, word(d.Verdict)
	if c.Would != "" {
		if c.Would != "allow" && c.Would != "deny" {
			return "", "", fmt.Errorf("would: %q: want allow or deny", c.Would)
		}
		would := d.Verdict
		if d.Would != nil {
			would = d.Would.Verdict
		}
		want += ", would " + c.Would
		got += ", would " + word(would)
	}
	if c.Layer != "" {
		want += " by " + c.Layer
		got += " by " + string(d.Layer)
	}
	if c.Rule != nil {
		want += fmt.Sprintf(" rule %d", *c.Rule)
		rule := " no rule"
		if d.Rule != nil {
			_, index, _ := strings.Cut(d.Rule.ID, "/")
			rule = " rule " + index
		}
		got += rule
	}
	return want, got, nil
}

func word(v rules.Verdict) string {
	if v == rules.Deny {
		return "deny"
	}
	return "allow" // Inspect: the connection is let in, to be looked at
}

// situation is what a file's cases share.
type situation struct {
	file     *file
	global   *rules.Layer
	sessions []rules.SessionState
	layers   map[string]*rules.Layer // by session id
}

func newSituation(f *file, dir string) (*situation, error) {
	s := &situation{file: f, layers: map[string]*rules.Layer{}}
	var errs []error
	var global []rules.Rule
	for i, r := range f.GlobalRules {
		made, err := r.rule(rules.Global, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("global_rules[%d]: %w", i, err))
		}
		global = append(global, made)
	}
	doc, err := document("global_policy", f.GlobalPolicy)
	if err != nil {
		errs = append(errs, err)
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if s.global, err = rules.NewLayer(rules.Global, withDocument(global, doc, rules.Global)); err != nil {
		return nil, err
	}
	for i, one := range f.Sessions {
		state, err := one.state(i, f.Now, dir)
		if err != nil {
			return nil, fmt.Errorf("sessions[%d]: %w", i, err)
		}
		if s.layers[state.ID] != nil {
			return nil, fmt.Errorf("sessions[%d]: id %q is there twice", i, state.ID)
		}
		if s.layers[state.ID], err = rules.NewLayer(rules.Session, withDocument(state.Rules, state.Document, rules.Session)); err != nil {
			return nil, fmt.Errorf("sessions[%d]: %w", i, err)
		}
		s.sessions = append(s.sessions, state)
	}
	return s, nil
}

// withDocument appends a document's rules, counted on from the others.
func withDocument(rs []rules.Rule, doc *rules.Document, source rules.Source) []rules.Rule {
	if doc == nil {
		return rs
	}
	for _, r := range doc.Rules {
		r.ID, r.Source, r.Order = fmt.Sprintf("%s/%d", source, len(rs)), source, int64(len(rs))
		rs = append(rs, r)
	}
	return rs
}

func (s session) state(i int, now time.Time, dir string) (rules.SessionState, error) {
	state := rules.SessionState{
		ID: cmp.Or(s.ID, fmt.Sprintf("session-%d", i)), Container: s.Container, Seq: int64(i),
		Created: s.CreatedAt, Expires: s.ExpiresAt, Ended: s.Ended, AllowAll: s.AllowAll, Labels: s.Labels,
	}
	if s.Container == "" {
		return state, errors.New("no container")
	}
	if state.Expires.IsZero() {
		state.Expires = now.Add(24 * time.Hour)
	}
	for n, r := range s.NetworkRules {
		made, err := r.rule(rules.Session, n)
		if err != nil {
			return state, fmt.Errorf("network_rules[%d]: %w", n, err)
		}
		state.Rules = append(state.Rules, made)
	}
	var err error
	state.Document, err = s.document(dir)
	return state, err
}

// policy is what holds for a container at a moment.
func (s *situation) policy(c rules.Container, now time.Time) *rules.Policy {
	stack := rules.Stack{Layers: []*rules.Layer{s.global}}
	if s.file.Builtin == nil || *s.file.Builtin {
		stack.Layers = append(stack.Layers, rules.BuiltinLayer())
	}
	if current := rules.Current(s.sessions, c, now); current != nil {
		stack.Layers = append(stack.Layers, s.layers[current.ID])
		stack.AllowAll, stack.Session = current.AllowAll, current.ID
	}
	return rules.Compile(stack)
}

// names are what a container had resolved addr to, as far as it still counts.
func (s *situation) names(container string, addr netip.Addr, now time.Time) ([]string, error) {
	at := now
	table := dnsmap.Table{Now: func() time.Time { return at }}
	answers := slices.Clone(s.file.DNS)
	for i := range answers {
		if answers[i].At.IsZero() {
			answers[i].At = s.file.Now
		}
	}
	slices.SortStableFunc(answers, func(a, b lookup) int { return a.At.Compare(b.At) })
	for i, l := range answers {
		if l.Container != container || l.At.After(now) {
			continue
		}
		name, err := rules.CanonicalName(l.Name)
		if err != nil {
			return nil, fmt.Errorf("dns[%d]: %w", i, err)
		}
		a, err := netip.ParseAddr(l.Address)
		if err != nil {
			return nil, fmt.Errorf("dns[%d]: %w", i, err)
		}
		at = l.At
		table.Learn(name, a.Unmap(), time.Duration(l.TTL)*time.Second)
	}
	at = now
	return slices.Clone(table.Names(addr.Unmap(), now)), nil
}
