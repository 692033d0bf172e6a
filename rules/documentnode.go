package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// documentReader walks a document by its schema and collects what is wrong
// with it. Its methods report a mistake where it stands and return false, so
// that the walk goes on and finds the next.
type documentReader struct {
	source   string
	problems []*DocumentError
	warnings []Warning
	anchors  map[string]ast.Node
	nodes    int // read so far
	reader   *reader
}

func (d *documentReader) fail(n ast.Node, format string, args ...any) {
	if len(d.problems) < maxProblems {
		line, column := nodePosition(n)
		d.problems = append(d.problems, &DocumentError{d.source, line, column, fmt.Sprintf(format, args...)})
	}
}

func (d *documentReader) warn(n ast.Node, format string, args ...any) {
	if len(d.warnings) < maxProblems {
		line, column := nodePosition(n)
		d.warnings = append(d.warnings, Warning{d.source, line, column, fmt.Sprintf(format, args...)})
	}
}

// nodePosition returns where a value starts, counted from 1.
func nodePosition(n ast.Node) (line, column int) {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		n = m.Values[0].Key // the mapping's own token is its first colon
	}
	if m, ok := n.(*ast.MappingValueNode); ok {
		n = m.Key
	}
	t := n.GetToken()
	if t == nil || t.Position == nil {
		return 1, 1
	}
	return max(t.Position.Line, 1), max(t.Position.Column, 1)
}

// collectAnchors remembers every anchored value of the document.
func (d *documentReader) collectAnchors(root ast.Node) {
	d.anchors = map[string]ast.Node{}
	for _, n := range ast.Filter(ast.AnchorType, root) {
		a := n.(*ast.AnchorNode)
		name := a.Name.GetToken().Value
		if d.anchors[name] != nil {
			d.fail(a, "the anchor &%s is defined twice", name)
		}
		d.anchors[name] = a.Value
	}
}

// value returns what n stands for.
func (d *documentReader) value(n ast.Node) (ast.Node, bool) {
	for hops := 0; ; hops++ {
		if d.nodes++; d.nodes > maxNodes || hops > maxNesting {
			if d.nodes == maxNodes+1 || hops > maxNesting {
				d.fail(n, "the aliases of the document stand for more than %d values", maxNodes)
			}
			return nil, false
		}
		switch v := n.(type) {
		case *ast.AnchorNode:
			n = v.Value
		case *ast.AliasNode:
			name := v.Value.GetToken().Value
			if n = d.anchors[name]; n == nil {
				d.fail(v, "the alias *%s has no anchor", name)
				return nil, false
			}
		case *ast.TagNode:
			d.fail(v, "YAML tags such as %s are not accepted; quote the value to make it text", v.GetToken().Value)
			return nil, false
		case nil:
			return nil, false
		default:
			return n, true
		}
	}
}

// keys are the keys that a mapping may have, each with what reads its value.
type keys map[string]func(ast.Node)

// mapping reads a mapping with known keys and returns the values that are
// there. what names the mapping in messages.
func (d *documentReader) mapping(n ast.Node, what string, known keys) map[string]ast.Node {
	found := map[string]ast.Node{}
	d.entries(n, what, func(key string, at, value ast.Node) {
		read, ok := known[key]
		if !ok {
			d.fail(at, "unknown key %q in %s; known: %s", key, what, strings.Join(sortedKeys(known), ", "))
			return
		}
		found[key] = value
		read(value)
	})
	return found
}

// entries reads a mapping with keys of the user's choice. It reports whether
// n is a mapping.
func (d *documentReader) entries(n ast.Node, what string, each func(key string, at, value ast.Node)) bool {
	at := n
	n, ok := d.value(n)
	if !ok {
		return false
	}
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		d.fail(at, "%s must be a mapping of keys to values, not %s", what, kindOf(n))
		return false
	}
	seen := map[string]bool{}
	for _, v := range values {
		if v.Key.IsMergeKey() {
			d.fail(v.Key, `merge keys ("<<") are not accepted; write the keys out`)
			continue
		}
		key, ok := d.text(v.Key, "a key")
		switch {
		case !ok:
		case seen[key]:
			d.fail(v.Key, "the key %q is there twice", key)
		default:
			seen[key] = true
			each(key, v.Key, v.Value)
		}
	}
	return true
}

// sequence reads a list.
func (d *documentReader) sequence(n ast.Node, what string) ([]ast.Node, bool) {
	at := n
	n, ok := d.value(n)
	if !ok {
		return nil, false
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(at, "%s must be a list, not %s", what, kindOf(n))
		return nil, false
	}
	return s.Values, true
}

// nonEmpty reads a list with at least one element; empty says what an empty
// one should have been.
func (d *documentReader) nonEmpty(n ast.Node, what, empty string) ([]ast.Node, bool) {
	at := n
	if v, ok := d.value(n); ok && v.Type() == ast.NullType {
		d.fail(at, "%s is empty; %s", what, empty)
		return nil, false
	}
	items, ok := d.sequence(n, what)
	if ok && len(items) == 0 {
		d.fail(at, "%s is empty; %s", what, empty)
		return nil, false
	}
	return items, ok
}

// text reads a string. Unquoted numbers and booleans are taken as they are
// written: a header, a version or a field may look like one.
func (d *documentReader) text(n ast.Node, what string) (string, bool) {
	at := n
	n, ok := d.value(n)
	if !ok {
		return "", false
	}
	switch v := n.(type) {
	case *ast.StringNode:
		return v.Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	d.fail(at, "%s must be text, not %s", what, kindOf(n))
	return "", false
}

// choice reads one of a few words.
func (d *documentReader) choice(n ast.Node, what string, words ...string) (string, bool) {
	s, ok := d.text(n, what)
	if ok && !slices.Contains(words, s) {
		d.fail(n, "%s cannot be %q; use one of: %s", what, s, strings.Join(words, ", "))
		return "", false
	}
	return s, ok
}

// integer reads a number from lo to hi.
func (d *documentReader) integer(n ast.Node, what string, lo, hi int) (int, bool) {
	at := n
	n, ok := d.value(n)
	if !ok {
		return 0, false
	}
	if n.Type() != ast.IntegerType {
		d.fail(at, "%s must be a number, not %s", what, kindOf(n))
		return 0, false
	}
	i, err := strconv.Atoi(n.GetToken().Value)
	if err != nil || i < lo || i > hi {
		d.fail(at, "%s cannot be %s; use a number from %d to %d", what, n.GetToken().Value, lo, hi)
		return 0, false
	}
	return i, true
}

// boolean reads true or false.
func (d *documentReader) boolean(n ast.Node, what string) bool {
	at := n
	n, ok := d.value(n)
	if !ok {
		return false
	}
	b, ok := n.(*ast.BoolNode)
	if !ok {
		d.fail(at, "%s must be true or false, not %s", what, kindOf(n))
		return false
	}
	return b.Value
}

// isNull reports a key without value.
func (d *documentReader) isNull(n ast.Node) bool {
	v, ok := d.value(n)
	return ok && v.Type() == ast.NullType
}

// kindOf names what a value is, for a person.
func kindOf(n ast.Node) string {
	switch n.Type() {
	case ast.MappingType, ast.MappingValueType:
		return "a mapping"
	case ast.SequenceType:
		return "a list"
	case ast.NullType:
		return "empty"
	case ast.BoolType:
		return "true or false"
	case ast.IntegerType, ast.FloatType, ast.InfinityType, ast.NanType:
		return "a number"
	}
	return "text"
}
