package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"weir/rules"
	"weir/store"
)

// document is a policy document of the global layer.
type document struct {
	*rules.Document
	updated time.Time
	rules   []rules.Rule // of the document, as they count in the layer; never changed
}

func newDocument(name string, doc *rules.Document, updated time.Time) document {
	all := documentRules(doc, name+"/", updated)
	for i := range all {
		all[i].Source = rules.Global
	}
	return document{doc, updated, all}
}

// Policy is a policy document of the global layer: its rules come before
// every session's, in every container.
type Policy struct {
	Name     string
	Text     string // as given, YAML or JSON
	Rules    int    // plain ones and endpoints
	Updated  time.Time
	Warnings []string // when it is set
}

var policyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// SetPolicy puts a policy document into the global layer, in place of the one
// of that name if there is one; created is false then. A document with any
// mistake changes nothing.
func (c *Conductor) SetPolicy(ctx context.Context, name string, text []byte) (p Policy, created bool, err error) {
	if !policyName.MatchString(name) {
		return p, false, invalid("policy name %q: want letters, digits and . _ -, at most 128, beginning with a letter or digit", name)
	}
	doc, warnings, err := rules.ParseDocument(name, text)
	if err != nil {
		return p, false, &Error{Invalid, err}
	}
	// Indexed once by itself, so that nothing is stored that cannot count.
	if _, err := rules.NewLayer(rules.Global, doc.Rules); err != nil {
		return p, false, invalid("policy %s: %w", name, err)
	}
	now := c.now()
	change, created, err := c.putDocument(ctx, name, newDocument(name, doc, now))
	if err != nil {
		return p, false, err
	}
	if err := c.publish(change); err != nil {
		return p, false, err
	}
	p = Policy{Name: name, Text: doc.Text, Rules: len(doc.Rules), Updated: now.UTC()}
	for _, w := range warnings {
		p.Warnings = append(p.Warnings, w.String())
	}
	return p, created, nil
}

func (c *Conductor) putDocument(ctx context.Context, name string, doc document) (change uint64, created bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.store.PutPolicy(ctx, store.Policy{Name: name, Text: doc.Text, Updated: doc.updated}); err != nil {
		return 0, false, fmt.Errorf("policy %s was not stored and does not count: %w", name, err)
	}
	verb := "replaced"
	if _, there := c.documents[name]; !there {
		verb, created = "set", true
	}
	c.documents[name] = doc
	c.lifecycle("", "", "global policy %s %s: %d rules", name, verb, len(doc.Rules))
	return c.rewrote(), created, nil
}

// Policies lists the documents of the global layer by name.
func (c *Conductor) Policies() []Policy {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Policy
	for _, name := range slices.Sorted(maps.Keys(c.documents)) {
		d := c.documents[name]
		list = append(list, Policy{Name: name, Text: d.Text, Rules: len(d.Rules), Updated: d.updated.UTC()})
	}
	return list
}

// DeletePolicy takes a document and its rules out of the global layer.
func (c *Conductor) DeletePolicy(ctx context.Context, name string) error {
	change, err := c.deleteDocument(ctx, name)
	if err != nil {
		return err
	}
	return c.publish(change)
}

func (c *Conductor) deleteDocument(ctx context.Context, name string) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.documents[name]; !ok {
		return 0, &Error{NotFound, fmt.Errorf("no global policy %q: see 'weir policy list'", name)}
	}
	if err := c.store.DeletePolicy(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, err
	}
	delete(c.documents, name)
	c.lifecycle("", "", "global policy %s removed", name)
	return c.rewrote(), nil
}
