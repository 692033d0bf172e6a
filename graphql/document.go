package graphql

import (
	"errors"
	"slices"
	"strings"

	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/gqlerror"
	"github.com/vektah/gqlparser/v2/lexer"
	"github.com/vektah/gqlparser/v2/parser"
)

// maxTokens limits one document, comments included.
const maxTokens = 20000

// readDocument reads a document and returns the operation in it that name
// selects; "" selects the only one.
func readDocument(text, name string) (Operation, error) {
	if err := checkAmbiguous(text); err != nil {
		return Operation{}, err
	}
	src := &ast.Source{Input: text}
	if err := checkDepth(src); err != nil {
		return Operation{}, err
	}
	doc, err := parser.ParseQueryWithTokenLimit(src, maxTokens)
	if err != nil {
		return Operation{}, syntax(err)
	}
	op, err := selectOperation(doc.Operations, name)
	if err != nil {
		return Operation{}, err
	}
	fragments, err := collectFragments(doc)
	if err != nil {
		return Operation{}, err
	}
	return Operation{
		Type:   string(op.Operation),
		Name:   op.Name,
		Fields: fragments.rootFields(op.SelectionSet),
	}, nil
}

// checkAmbiguous refuses text that GraphQL lexers are known to split
// differently. Four quotes in a row: the specification ends a block string at
// the first three, some lexers (the one used here among them) at the last
// three, so that a field could hide from one of the two. Line and paragraph
// separators and NEL beside a comment: drafts of the specification and some
// regular expressions end the line there.
func checkAmbiguous(text string) error {
	if strings.Contains(text, `""""`) {
		return refuse(AmbiguousText, "document with four quotes in a row, which servers read differently: put a line break or a space between them")
	}
	if strings.Contains(text, "#") && strings.ContainsAny(text, "\u0085\u2028\u2029") {
		return refuse(AmbiguousText, "document with a comment and a Unicode line separator, which servers read differently: leave one of them out")
	}
	return nil
}

// checkDepth limits the nesting of brackets of any kind before the parser,
// which calls itself for each level, sees them. The count of opening brackets
// settles it for nearly every document.
func checkDepth(src *ast.Source) error {
	if strings.Count(src.Input, "{")+strings.Count(src.Input, "(")+strings.Count(src.Input, "[") <= maxDepth {
		return nil
	}
	lex := lexer.New(src)
	depth := 0
	for range maxTokens {
		token, err := lex.ReadToken()
		if err != nil {
			return syntax(err)
		}
		switch token.Kind {
		case lexer.EOF:
			return nil
		case lexer.BraceL, lexer.ParenL, lexer.BracketL:
			if depth++; depth > maxDepth {
				return refuse(TooDeep, "document at line %d, column %d: more than %d levels", token.Pos.Line, token.Pos.Column, maxDepth)
			}
		case lexer.BraceR, lexer.ParenR, lexer.BracketR:
			depth--
		}
	}
	return nil // the parser refuses the number of tokens
}

// syntax names the parser's error.
func syntax(err error) error {
	message, where := err.Error(), ""
	var g *gqlerror.Error
	if errors.As(err, &g) {
		message = g.Message
		if len(g.Locations) > 0 {
			where = " at " + g.Locations[0].String()
		}
	}
	if strings.HasPrefix(message, "exceeded token limit") {
		return refuse(TooManyTokens, "document of more than %d tokens", maxTokens)
	}
	for _, word := range [...]string{"schema", "scalar", "type", "interface", "union", "enum", "input", "directive", "extend"} {
		if message == `Unexpected Name "`+word+`"` {
			return refuse(TypeSystem, "document%s: %s defines a type system, which is not executed", where, word)
		}
	}
	return refuse(SyntaxError, "document%s: %s", where, withoutText(message))
}

// withoutText is the parser's message without what it repeats of the document:
// the kinds of things it expected and found.
func withoutText(message string) string {
	expected, found, ok := strings.Cut(message, ", found ")
	if !ok {
		expected = ""
		found, ok = strings.CutPrefix(message, "Unexpected ")
	}
	found, _, _ = strings.Cut(found, " ")
	switch {
	case !ok || found == "<Invalid>" || found == "single": // the lexer's, which quotes
		return "a character, number or string that GraphQL does not have"
	case expected == "":
		return "unexpected " + found
	}
	return expected + ", found " + found
}

// selectOperation finds the operation that runs.
func selectOperation(ops ast.OperationList, name string) (*ast.OperationDefinition, error) {
	seen := make(map[string]*ast.OperationDefinition, len(ops))
	for _, op := range ops {
		if _, twice := seen[op.Name]; twice && op.Name != "" {
			return nil, refuse(DuplicateOperation, "document with two operations named %s", quote(op.Name))
		} else if twice {
			return nil, refuse(DuplicateOperation, "document with two operations without a name")
		}
		seen[op.Name] = op
	}
	switch {
	case len(ops) == 0:
		return nil, refuse(NoOperation, "document without an operation")
	case name == "" && len(ops) == 1:
		return ops[0], nil
	case name == "":
		return nil, refuse(OperationNameRequired, "document with %d operations: say which one with operationName", len(ops))
	}
	if op := seen[name]; op != nil {
		return op, nil
	}
	return nil, refuse(UnknownOperation, "operationName %s is not in the document", quote(name))
}

// fragments are a document's, by name, and where a walk over them is.
type fragments struct {
	byName map[string]*ast.FragmentDefinition
	walked map[string]walk
}

type walk int

const (
	inside walk = iota + 1
	done
)

// collectFragments makes sure that every fragment of a document is defined
// once and that none contains itself, used or not.
func collectFragments(doc *ast.QueryDocument) (*fragments, error) {
	f := &fragments{}
	if len(doc.Fragments) > 0 {
		f.byName = make(map[string]*ast.FragmentDefinition, len(doc.Fragments))
		f.walked = make(map[string]walk, len(doc.Fragments))
	}
	for _, d := range doc.Fragments {
		if f.byName[d.Name] != nil {
			return nil, refuse(DuplicateFragment, "document with two fragments named %s", quote(d.Name))
		}
		f.byName[d.Name] = d
	}
	for _, d := range doc.Fragments {
		if err := f.check(d.Name); err != nil {
			return nil, err
		}
	}
	for _, op := range doc.Operations {
		if err := f.checkSet(op.SelectionSet); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// check walks each fragment once, however often it is spread.
func (f *fragments) check(name string) error {
	d := f.byName[name]
	switch {
	case d == nil:
		return refuse(UndefinedFragment, "fragment %s is not defined in the document", quote(name))
	case f.walked[name] == inside:
		return refuse(FragmentCycle, "fragment %s contains itself", quote(name))
	case f.walked[name] == done:
		return nil
	}
	f.walked[name] = inside
	if err := f.checkSet(d.SelectionSet); err != nil {
		return err
	}
	f.walked[name] = done
	return nil
}

func (f *fragments) checkSet(set ast.SelectionSet) error {
	for _, s := range set {
		var err error
		switch s := s.(type) {
		case *ast.Field:
			err = f.checkSet(s.SelectionSet)
		case *ast.InlineFragment:
			err = f.checkSet(s.SelectionSet)
		case *ast.FragmentSpread:
			err = f.check(s.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rootFields returns the fields of a selection set with fragments expanded
// whatever their type condition, sorted, without duplicates. Directives are
// not looked at: a field behind @skip counts.
func (f *fragments) rootFields(set ast.SelectionSet) []string {
	var fields []string
	var expanded map[string]bool // each fragment once: nested spreads grow exponentially
	var expand func(ast.SelectionSet)
	expand = func(set ast.SelectionSet) {
		for _, s := range set {
			switch s := s.(type) {
			case *ast.Field:
				fields = append(fields, s.Name)
			case *ast.InlineFragment:
				expand(s.SelectionSet)
			case *ast.FragmentSpread:
				if expanded[s.Name] {
					continue
				}
				if expanded == nil {
					expanded = make(map[string]bool, len(f.byName))
				}
				expanded[s.Name] = true
				expand(f.byName[s.Name].SelectionSet)
			}
		}
	}
	expand(set)
	slices.Sort(fields)
	return slices.Compact(fields)
}
