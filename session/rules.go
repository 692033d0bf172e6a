package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weir/rules"
	"weir/store"
)

// AddRule adds a rule to the global layer. Its ID, Source, Order and
// Created are set here.
func (c *Conductor) AddRule(ctx context.Context, r rules.Rule) (rules.Rule, []string, error) {
	r.Created = c.now()
	return c.putRule(ctx, r, c.store.AddRule)
}

// UpdateRule replaces a global rule; its place in the order of creation stays.
func (c *Conductor) UpdateRule(ctx context.Context, id string, r rules.Rule) (rules.Rule, []string, error) {
	old, err := c.globalRule(id)
	if err != nil {
		return r, nil, err
	}
	r.ID, r.Created, r.Order = old.ID, old.Created, old.Order
	return c.putRule(ctx, r, c.store.UpdateRule)
}

func (c *Conductor) globalRule(id string) (rules.Rule, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.global, func(r rules.Rule) bool { return r.ID == id })
	if i < 0 {
		return rules.Rule{}, unknownRule(id)
	}
	return c.global[i], nil
}

func unknownRule(id string) error {
	if name, _, ok := strings.Cut(id, "/"); ok {
		return &Error{NotFound, fmt.Errorf("no global rule %q that stands by itself: rules of a document change with it, see 'weir policy set --name %s' and 'weir policy unset %s'", id, name, name)}
	}
	return &Error{NotFound, fmt.Errorf("no global rule %q: see 'weir rule list --source global'; a session's rules change with 'weir session create'", id)}
}

func (c *Conductor) putRule(ctx context.Context, r rules.Rule, put func(context.Context, rules.Rule) (store.Rule, error)) (rules.Rule, []string, error) {
	now := c.now()
	r.Source = rules.Global
	r, warnings, err := c.canonical(r)
	if err != nil {
		return r, nil, &Error{Invalid, err}
	}
	if !r.Expires.IsZero() && !r.Expires.After(now) {
		return r, nil, invalid("expires_at %s has passed already: give a later time, or leave it out for a rule that stays", r.Expires.Format(time.RFC3339))
	}
	change, stored, err := c.storeRule(ctx, r, put)
	if err != nil {
		return r, nil, err
	}
	return stored, warnings, c.publish(change)
}

func (c *Conductor) storeRule(ctx context.Context, r rules.Rule, put func(context.Context, rules.Rule) (store.Rule, error)) (uint64, rules.Rule, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stored, err := put(ctx, r)
	if errors.Is(err, store.ErrNotFound) {
		return 0, r, unknownRule(r.ID)
	}
	if err != nil {
		return 0, r, fmt.Errorf("the rule was not stored and does not count: %w", err)
	}
	verb := "added"
	if i := slices.IndexFunc(c.global, func(r rules.Rule) bool { return r.ID == stored.ID }); i >= 0 {
		c.global, verb = slices.Clone(c.global), "changed"
		c.global[i] = stored.Rule
		c.rewrote()
	} else {
		c.global = append(c.global, stored.Rule)
		c.changes++
	}
	c.lifecycle("", "", "global rule %s %s: %s", stored.ID, verb, describeRule(stored.Rule))
	return c.changes, stored.Rule, nil
}

func describeRule(r rules.Rule) string {
	return fmt.Sprintf("%s %s ports %s for %s", r.Action, r.Destination, r.Ports, r.Container)
}

// DeleteRule removes a global rule.
func (c *Conductor) DeleteRule(ctx context.Context, id string) error {
	change, err := c.deleteRule(ctx, id)
	if err != nil {
		return err
	}
	return c.publish(change)
}

func (c *Conductor) deleteRule(ctx context.Context, id string) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.global, func(r rules.Rule) bool { return r.ID == id })
	if i < 0 {
		return 0, unknownRule(id)
	}
	if err := c.store.DeleteRule(ctx, id); err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, err
	}
	c.lifecycle("", "", "global rule %s removed: %s", id, describeRule(c.global[i]))
	c.global = slices.Delete(slices.Clone(c.global), i, i+1)
	delete(c.used, id)
	return c.rewrote(), nil
}

// rewrote counts a change of global or documents that did more than append to
// global. mu is held.
func (c *Conductor) rewrote() uint64 {
	c.changes++
	c.rewritten = c.changes
	return c.changes
}

// publish returns once the global layer counts as of the given change. The
// index is made beside mu, and once for all who wait: of a thousand callers
// that add rules at once, few pay for one. Rules that were only added are added
// to the index.
func (c *Conductor) publish(change uint64) error {
	c.publishing.Lock()
	defer c.publishing.Unlock()
	c.mu.Lock()
	if c.published >= change {
		c.mu.Unlock()
		return nil
	}
	change = c.changes
	layer, indexed := c.globalLayer, len(c.global)
	anew := c.rewritten > c.published
	var given []rules.Rule
	if anew {
		given = c.globalRules()
	} else {
		// A copy: global moves when it grows, and the layer keeps what it was given.
		given = slices.Clone(c.global[c.indexed:])
	}
	c.mu.Unlock()
	var err error
	if anew {
		layer, err = rules.NewLayer(rules.Global, given)
	} else {
		layer, err = layer.With(given)
	}
	if err != nil {
		return fmt.Errorf("global rules: %w", err)
	}
	c.mu.Lock()
	c.globalLayer, c.published, c.indexed = layer, change, indexed
	c.compileAll(c.now())
	c.mu.Unlock()
	c.wake()
	return nil
}

// globalRules are those of the global layer: rules by themselves, then those
// of documents by the documents' names. mu is held.
func (c *Conductor) globalRules() []rules.Rule {
	lists := [][]rules.Rule{c.global}
	for _, name := range slices.Sorted(maps.Keys(c.documents)) {
		lists = append(lists, c.documents[name].rules)
	}
	if len(lists) == 1 {
		return c.global[:len(c.global):len(c.global)]
	}
	return slices.Concat(lists...)
}

// RuleFilter selects rules. Empty fields do not filter.
type RuleFilter struct {
	Source      rules.Source
	Container   string // id or name: rules that can apply to this container
	Destination string // as written
	Shadows     bool   // fill ShadowedBy, which takes a while with very many rules
}

// ListedRule is a rule with the container it holds for.
type ListedRule struct {
	rules.Rule
	LastUsed time.Time // zero: never, or not since the rule was made
	// ShadowedBy is a rule that always decides in this one's place, or ""; see
	// rules.Shadowed.
	ShadowedBy string
}

// Rules lists the rules of all layers: global, then the live sessions' in
// order of creation, then the built-in ones.
func (c *Conductor) Rules(f RuleFilter) []ListedRule {
	list := c.listRules(f.Container)
	if f.Shadows {
		// Before others are left out: they shadow all the same.
		shadow(list)
	}
	return slices.DeleteFunc(list, func(r ListedRule) bool {
		return f.Source != "" && r.Source != f.Source || f.Destination != "" && r.Destination != f.Destination
	})
}

// shadow fills ShadowedBy.
func shadow(list []ListedRule) {
	rs := make([]rules.Rule, len(list))
	for i := range list {
		rs[i] = list[i].Rule
	}
	for i, by := range rules.Shadowed(rs) {
		if by >= 0 {
			list[i].ShadowedBy = rs[by].ID
		}
	}
}

// listRules lists the live rules of all layers, or those that can apply to
// one container.
func (c *Conductor) listRules(ref string) []ListedRule {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []ListedRule
	add := func(r rules.Rule) {
		if !r.Expires.IsZero() && !r.Expires.After(now) {
			return
		}
		list = append(list, ListedRule{Rule: r, LastUsed: c.used[r.ID]})
	}
	who := rules.Container{ID: ref, Name: ref}
	if a := c.attachedAs(ref); a != nil {
		who = a.who()
	}
	for _, r := range c.globalRules() {
		if ref == "" || r.AppliesTo(who) {
			add(r)
		}
	}
	for i := range c.sessions {
		s := &c.sessions[i]
		if !s.Live(now) || ref != "" && s.Container != who.ID && s.Container != who.Name {
			continue
		}
		for r := range c.layers[s.ID].Rules() {
			r.Container = s.Container
			if r.Expires.IsZero() || r.Expires.After(s.Expires) {
				r.Expires = s.Expires
			}
			add(r)
		}
	}
	for r := range builtinLayer.Rules() {
		add(r)
	}
	return list
}
