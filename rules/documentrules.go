package rules

import (
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// document reads the top level.
func (d *documentReader) document(root ast.Node) []Rule {
	var plain []plainSource
	var endpoints []endpointSource
	ignored := func(section string) func(ast.Node) {
		return func(n ast.Node) {
			d.warn(n, "%s is not about the network and is ignored: Weir decides what a container may connect to, nothing else", section)
		}
	}
	found := d.mapping(root, "the policy", keys{
		"version": func(n ast.Node) {
			if v, ok := d.value(n); ok && (v.Type() != ast.IntegerType || v.GetToken().Value != "1") {
				d.fail(n, "version must be the number 1")
			}
		},
		"rules":            func(n ast.Node) { plain = d.plainRules(n) },
		"network_policies": func(n ast.Node) { endpoints = d.networkPolicies(n) },
		"network_middlewares": func(n ast.Node) {
			d.fail(n, "network_middlewares are not supported: what they would take out of requests would be sent")
		},
		"filesystem_policy": ignored("filesystem_policy"),
		"landlock":          ignored("landlock"),
		"process":           ignored("process"),
	})
	if v, ok := d.value(root); ok && found["version"] == nil && (v.Type() == ast.MappingType || v.Type() == ast.MappingValueType) {
		d.warn(root, "no version; read as version: 1")
	}
	d.checkConflicts(endpoints)
	d.checkPlain(plain, endpoints)
	var out []Rule
	for _, p := range plain {
		out = append(out, p.rule)
	}
	for _, e := range endpoints {
		out = append(out, e.rule)
	}
	return out
}

// plainSource is a plain rule with where it stands in the document.
type plainSource struct {
	rule  Rule
	entry entry
	at    ast.Node
}

// plainRules reads the rules of layers 3 and 4.
func (d *documentReader) plainRules(n ast.Node) []plainSource {
	if d.isNull(n) {
		return nil
	}
	items, _ := d.sequence(n, "rules")
	var out []plainSource
	for _, item := range items {
		if r, ok := d.plainRule(item); ok {
			out = append(out, plainSource{r, d.entry(item, &r), item})
		}
	}
	return out
}

func (d *documentReader) plainRule(n ast.Node) (Rule, bool) {
	var r Rule
	before := len(d.problems)
	destination := func(a Action) func(ast.Node) {
		return func(n ast.Node) {
			r.Action = a
			r.Destination, _ = d.text(n, string(a))
		}
	}
	expires := func(n ast.Node) {
		if s, ok := d.text(n, "expires"); ok {
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				d.fail(n, "expires cannot be %q; write a time such as 2026-05-01T12:00:00Z", s)
			}
			r.Expires = t
		}
	}
	found := d.mapping(n, "a rule", keys{
		"allow":      destination(ActionAllow),
		"deny":       destination(ActionDeny),
		"ports":      func(n ast.Node) { r.Ports = d.portList(n) },
		"transport":  func(n ast.Node) { s, _ := d.choice(n, "transport", "tcp", "udp", "any"); r.Transport = Transport(s) },
		"binaries":   func(n ast.Node) { r.Binaries = d.binaries(n) },
		"notes":      func(n ast.Node) { r.Notes, _ = d.text(n, "notes") },
		"expires":    expires,
		"expires_at": expires,
	})
	if found["expires"] != nil && found["expires_at"] != nil {
		d.fail(n, "a rule has either expires or expires_at, which mean the same")
	}
	switch {
	case found["allow"] != nil && found["deny"] != nil:
		d.fail(n, "a rule either allows or denies; make two of it")
	case found["allow"] == nil && found["deny"] == nil && len(d.problems) == before:
		d.fail(n, `a rule needs "allow: DESTINATION" or "deny: DESTINATION"`)
	}
	if len(d.problems) > before {
		return Rule{}, false
	}
	if at := found[string(r.Action)]; at != nil {
		n = at
	}
	return d.canonical(n, r)
}

// canonical checks what only the rule as a whole shows.
func (d *documentReader) canonical(n ast.Node, r Rule) (Rule, bool) {
	c, warnings, err := Canonical(r)
	if err != nil {
		d.fail(n, "%v", err)
		return Rule{}, false
	}
	for _, w := range warnings {
		d.warn(n, "%s", w)
	}
	return c, true
}

// portList reads "80,443,8000-9000", a number, or a list of such.
func (d *documentReader) portList(n ast.Node) string {
	items := []ast.Node{n}
	if v, ok := d.value(n); ok && v.Type() == ast.SequenceType {
		items, _ = d.nonEmpty(n, "ports", `leave it out for all ports`)
	}
	var parts []string
	for _, item := range items {
		s, ok := d.text(item, "ports")
		if !ok {
			continue
		}
		if _, err := parsePorts(s); err != nil || s == "" {
			d.fail(item, "ports cannot be %q; write numbers and ranges from 1 to 65535, as in 80,443,8000-9000", s)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ",")
}

// binaries reads a list of programs: globs, or mappings with a path.
func (d *documentReader) binaries(n ast.Node) []string {
	const empty = "leave it out for any program"
	items, _ := d.nonEmpty(n, "binaries", empty)
	var out []string
	for _, item := range items {
		check := func(n ast.Node) {
			s, ok := d.text(n, "a binary")
			if !ok {
				return
			}
			glob, err := parseBinary(s)
			if err != nil {
				d.fail(n, "binary %q: %v", s, err)
			}
			out = append(out, glob)
		}
		if v, ok := d.value(item); ok && (v.Type() == ast.MappingType || v.Type() == ast.MappingValueType) {
			if d.mapping(item, "a binary", keys{"path": check})["path"] == nil {
				d.fail(item, "a binary needs a path")
			}
			continue
		}
		check(item)
	}
	return out
}
