package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a policy document.
const (
	MaxDocument  = 1 << 20 // bytes of text
	maxEndpoints = 2000
	maxNesting   = 100     // open brackets, or dashes in front of one item
	maxNodes     = 200_000 // values read, an alias counted as what it stands for
	maxProblems  = 100     // errors, and warnings, reported
)

// Document is a parsed and validated policy document.
type Document struct {
	Source string // file name or "" ; for messages
	Text   string // as given, YAML or JSON
	// Rules are the plain rules and, after them, one rule per endpoint, in
	// the order of the text. Rules of endpoints have Endpoint set and, as
	// their destination, the endpoint's host; "" for one that has none.
	Rules []Rule
}

// A Warning is something in a document that is accepted and still worth a look.
type Warning struct {
	Source       string // as given to ParseDocument
	Line, Column int    // from 1
	Message      string
}

// String renders w as FILE:LINE:COL: warning: message.
func (w Warning) String() string {
	return position(w.Source, w.Line, w.Column) + "warning: " + w.Message
}

// A DocumentError is one mistake in a document.
type DocumentError struct {
	Source       string // as given to ParseDocument
	Line, Column int    // from 1; 0 when the document as a whole is meant
	Message      string
}

// Error renders e as FILE:LINE:COL: message.
func (e *DocumentError) Error() string {
	return position(e.Source, e.Line, e.Column) + e.Message
}

func position(source string, line, column int) string {
	var b strings.Builder
	if source != "" {
		b.WriteString(source + ":")
	}
	if line > 0 {
		fmt.Fprintf(&b, "%d:%d:", line, column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	return b.String()
}

// ParseDocument reads a policy document, YAML or the same as JSON. name is
// for messages: a file name, or "".
//
// The error joins a *DocumentError for every mistake found (at most 100), in
// the order of the text. A document with any mistake is refused whole.
func ParseDocument(name string, text []byte) (*Document, []Warning, error) {
	root, err := parseText(name, text)
	if err != nil {
		return nil, nil, err
	}
	r := &documentReader{source: name, reader: newReader()}
	r.collectAnchors(root)
	rs := r.document(root)
	if len(r.problems) > 0 {
		slices.SortStableFunc(r.problems, func(a, b *DocumentError) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		var all []error
		for _, p := range r.problems {
			all = append(all, p)
		}
		return nil, nil, errors.Join(all...)
	}
	return &Document{Source: name, Text: string(text), Rules: rs}, r.warnings, nil
}

// ParseDocumentJSON reads a document out of a JSON value: an object that is
// the document itself, or a string with its text.
func ParseDocumentJSON(name string, value []byte) (*Document, []Warning, error) {
	if v := bytes.TrimSpace(value); len(v) > 0 && v[0] == '"' {
		var text string
		if err := json.Unmarshal(v, &text); err != nil {
			return nil, nil, &DocumentError{Source: name, Message: fmt.Sprintf("not a JSON string: %v", err)}
		}
		return ParseDocument(name, []byte(text))
	}
	if !json.Valid(value) {
		return nil, nil, &DocumentError{Source: name, Message: "a policy is a JSON object, or a string that holds YAML"}
	}
	return ParseDocument(name, value)
}

// MarshalJSON returns what ParseDocumentJSON reads: the document's text as it
// was given, as a JSON string.
func (d *Document) MarshalJSON() ([]byte, error) { return json.Marshal(d.Text) }

// parseText returns the one mapping that text consists of.
func parseText(name string, text []byte) (ast.Node, error) {
	whole := func(format string, args ...any) error {
		return &DocumentError{Source: name, Message: fmt.Sprintf(format, args...)}
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	switch {
	case len(text) > MaxDocument:
		return nil, whole("the document is %d bytes long, more than %d", len(text), MaxDocument)
	case !utf8.Valid(text):
		return nil, whole("the document is not valid UTF-8")
	case bytes.IndexByte(text, 0) >= 0:
		return nil, whole("the document contains a NUL byte")
	}
	if line := tooDeep(text); line > 0 {
		return nil, &DocumentError{Source: name, Line: line, Column: 1, Message: fmt.Sprintf("nested more than %d levels deep", maxNesting)}
	}
	if json.Valid(text) {
		// Tabs between JSON tokens are indentation, which YAML reads otherwise.
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" "))
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var at interface {
			GetToken() *token.Token
			GetMessage() string
		}
		if errors.As(err, &at) && at.GetToken() != nil && at.GetToken().Position != nil {
			p := at.GetToken().Position
			return nil, &DocumentError{Source: name, Line: p.Line, Column: p.Column, Message: at.GetMessage()}
		}
		return nil, whole("%v", err)
	}
	var root ast.Node
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			line, column := nodePosition(doc.Body)
			return nil, &DocumentError{Source: name, Line: line, Column: column, Message: "a second YAML document in one file; a policy is one document"}
		}
		root = doc.Body
	}
	if root == nil {
		return nil, whole("the document is empty; it needs at least: version: 1")
	}
	return root, nil
}

// tooDeep returns the line on which the nesting passes maxNesting, or 0. It
// counts brackets wherever they stand, so as not to depend on the parser that
// it protects.
func tooDeep(text []byte) int {
	depth, line, dashes := 0, 1, 0
	for _, c := range text {
		switch c {
		case '\n':
			line++
			dashes = 0
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(depth-1, 0)
		case '-', '?', '!', '&', '*':
			dashes++
		case ' ':
		default:
			dashes = 0
		}
		if depth > maxNesting || dashes > maxNesting {
			return line
		}
	}
	return 0
}
