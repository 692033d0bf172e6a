package rules

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

func itoa(i int) string { return strconv.Itoa(i) }

// requestRule reads what an entry of rules or deny_rules matches.
func (d *documentReader) requestRule(n ast.Node, e *Endpoint, what string) RequestRule {
	var r RequestRule
	rest := keys{
		"method": func(n ast.Node) { r.Methods = d.methods(e, n) },
		"methods": func(n ast.Node) {
			items, _ := d.nonEmpty(n, "methods", "leave it out for any method")
			r.Methods = d.methods(e, items...)
		},
		"path":  func(n ast.Node) { r.Path = d.pathGlob(n, "path", e.AllowEncodedSlash) },
		"query": func(n ast.Node) { r.Query = d.query(n) },
	}
	graphQL := keys{
		"operation_type": func(n ast.Node) {
			if r.OperationType, _ = d.choice(n, "operation_type", "query", "mutation", "subscription", "*"); r.OperationType == "*" {
				r.OperationType = ""
			}
		},
		"operation_name": func(n ast.Node) {
			if r.OperationName = d.flatGlob(n, "operation_name"); r.OperationName == "*" {
				r.OperationName = ""
			}
		},
		"fields": func(n ast.Node) {
			items, _ := d.nonEmpty(n, "fields", "leave it out for all fields")
			for _, item := range items {
				r.Fields = append(r.Fields, d.flatGlob(item, "an element of fields"))
			}
		},
	}
	known, foreign, hint := rest, graphQL, "it is for protocol: graphql"
	if e.Protocol == ProtocolGraphQL {
		known, foreign, hint = graphQL, rest, "it is for protocol: rest and websocket; an endpoint's own path says where GraphQL is served"
	}
	all := keys{}
	for key, read := range known {
		all[key] = read
	}
	for key := range foreign {
		all[key] = func(n ast.Node) { d.fail(n, "%s cannot be used with protocol: %s; %s", key, e.Protocol, hint) }
	}
	if !e.Inspected() {
		return r // said already
	}
	found := d.mapping(n, what, all)
	if found["method"] != nil && found["methods"] != nil {
		d.fail(found["methods"], "a rule has either method or methods, not both")
	}
	if v, ok := d.value(n); ok && len(found) == 0 && v.Type() == ast.MappingType && len(v.(*ast.MappingNode).Values) == 0 {
		d.fail(n, "%s is empty; say what it matches: %s", what, strings.Join(sortedKeys(known), ", "))
	}
	return r
}

// methods reads HTTP methods; "*" is any and gives none.
func (d *documentReader) methods(e *Endpoint, items ...ast.Node) []string {
	var out []string
	every := false
	for _, item := range items {
		s, ok := d.text(item, "method")
		if !ok {
			continue
		}
		m := strings.ToUpper(s)
		message := m == MethodWebSocketText || m == MethodWebSocketBinary
		switch {
		case m == "*":
			every = true
		case !isToken(m) || strings.Contains(m, "*"):
			d.fail(item, `method cannot be %q; write one such as GET, or "*" for any`, s)
		case e.Protocol == ProtocolWebSocket && m != "GET" && !message:
			d.fail(item, "method cannot be %q with protocol: websocket; use GET (the upgrade), %s, %s or \"*\"", s, MethodWebSocketText, MethodWebSocketBinary)
		case e.Protocol == ProtocolREST && message:
			d.fail(item, "method %q is for protocol: websocket", s)
		case !slices.Contains(out, m):
			out = append(out, m)
		}
	}
	if every {
		return nil
	}
	return out
}

// query reads matchers of query parameters: a glob, a list of globs, or
// {any: [globs]}.
func (d *documentReader) query(n ast.Node) map[string][]string {
	out := map[string][]string{}
	isMap := d.entries(n, "query", func(key string, at, value ast.Node) {
		patterns := func(n ast.Node) {
			items, _ := d.nonEmpty(n, "the values of "+key, "list at least one")
			for _, item := range items {
				out[key] = append(out[key], d.flatGlob(item, "a value of "+key))
			}
		}
		v, ok := d.value(value)
		switch {
		case !ok:
		case v.Type() == ast.SequenceType:
			patterns(value)
		case v.Type() == ast.MappingType || v.Type() == ast.MappingValueType:
			if d.mapping(value, "a query matcher", keys{"any": patterns})["any"] == nil {
				d.fail(value, "a query matcher is a glob, or {any: [globs]}")
			}
		default:
			out[key] = []string{d.flatGlob(value, "the value of "+key)}
		}
	})
	if isMap && len(out) == 0 {
		d.fail(n, "query is empty; leave it out for any query")
	}
	return out
}

func (d *documentReader) flatGlob(n ast.Node, what string) string {
	s, ok := d.text(n, what)
	if !ok {
		return ""
	}
	g, err := normalFlatGlob(s)
	if err != nil {
		d.fail(n, "%s: %v", what, err)
	}
	return g
}

var escapeInGlob = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// pathGlob reads a glob over URL paths and refuses those that no canonical
// path could match, because such a deny rule would deny nothing.
func (d *documentReader) pathGlob(n ast.Node, what string, encodedSlash bool) string {
	s, ok := d.text(n, what)
	if !ok {
		return ""
	}
	if encodedSlash {
		s = strings.ReplaceAll(s, "%2f", "%2F")
	}
	g, err := normalPathGlob(s)
	if err != nil {
		d.fail(n, "%s: %v", what, err)
		return ""
	}
	for _, escape := range escapeInGlob.FindAllString(g, -1) {
		if escape != "%2F" || !encodedSlash {
			d.fail(n, `%s %q: paths are compared decoded; write the character that %s stands for (an encoded slash needs allow_encoded_slash: true)`, what, s, escape)
			return ""
		}
	}
	for _, branch := range globBranches(g) {
		parts := globComponents(branch)
		for i, part := range parts {
			switch {
			case i == 0 && part != "" && part != "**":
				d.fail(n, `%s %q matches no path, because they start with a slash; begin it with "/" or "**/"`, what, s)
				return ""
			case i > 0 && i < len(parts)-1 && part == "", part == ".", part == "..":
				d.fail(n, `%s %q matches no path, because "//", "/./" and "/../" are resolved first`, what, s)
				return ""
			}
		}
	}
	return g
}

var graphQLName = regexp.MustCompile(`^[_A-Za-z][_0-9A-Za-z]*$`)

// registry reads graphql_persisted_queries.
func (d *documentReader) registry(n ast.Node) map[string]Registered {
	out := map[string]Registered{}
	name := func(n ast.Node, what string) string {
		s, ok := d.text(n, what)
		if ok && !graphQLName.MatchString(s) {
			d.fail(n, "%s cannot be %q; a registered query has exact GraphQL names, not globs", what, s)
		}
		return s
	}
	d.entries(n, "graphql_persisted_queries", func(id string, at, value ast.Node) {
		var e Registered
		found := d.mapping(value, "a registered query", keys{
			"operation_type": func(n ast.Node) {
				e.Type, _ = d.choice(n, "operation_type", "query", "mutation", "subscription")
			},
			"operation_name": func(n ast.Node) { e.Name = name(n, "operation_name") },
			"fields": func(n ast.Node) {
				items, _ := d.nonEmpty(n, "fields", "leave it out when they are not known")
				for _, item := range items {
					e.Fields = append(e.Fields, name(item, "an element of fields"))
				}
			},
		})
		if id == "" {
			d.fail(at, "a registered query needs its hash or id as the key")
		}
		if found["operation_type"] == nil {
			d.fail(value, "the registered query %q needs an operation_type", id)
		}
		out[id] = e
	})
	return out
}
