package policytest

import (
	"cmp"
	"fmt"
	"path/filepath"

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

// Run runs one file. An error means that the file itself, or a policy that it
// names, is wrong; it begins with FILE:LINE:COL where there is one place.
func Run(path string) (Report, error) {
	f, err := read(path)
	if err != nil {
		return Report{}, err
	}
	s, err := newSituation(f, filepath.Dir(path))
	if err != nil {
		return Report{}, err
	}
	report := Report{Failures: []Failure{}}
	for i, c := range f.Cases {
		name := cmp.Or(c.Name, fmt.Sprintf("case %d", i+1))
		d, err := s.judge(c)
		if err != nil {
			return Report{}, f.source.at(fmt.Sprintf("$.cases[%d].request", i), fmt.Errorf("%s: %w", name, err))
		}
		want, got := compare(c, d)
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
func compare(c testCase, d rules.Decision) (want, got string) {
	want, got = c.Expect, word(d.Verdict)
	if c.Would != "" {
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
			rule = fmt.Sprintf(" rule %d", d.Rule.Order) // counted from 0 in every layer here
		}
		got += rule
	}
	return want, got
}

func word(v rules.Verdict) string {
	if v == rules.Deny {
		return "deny"
	}
	return "allow" // Inspect: the connection is let in, to be looked at
}
