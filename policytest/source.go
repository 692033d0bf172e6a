package policytest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// source is a file's text, for what messages say of it.
type source struct {
	path string
	text string
	file *ast.File
}

// newSource parses a file. A key that is there twice is an error, and so is a
// merge (<<) after other keys: it would look as if it came first.
func newSource(path string, text []byte) (*source, error) {
	s := &source{path: path, text: string(text)}
	var err error
	if s.file, err = parser.ParseBytes(text, 0); err != nil {
		return nil, s.syntax(err)
	}
	if len(s.file.Docs) > 1 {
		return nil, fmt.Errorf("%s: more than one YAML document in the file", path)
	}
	for _, doc := range s.file.Docs {
		if doc.Body == nil {
			continue
		}
		for _, n := range ast.Filter(ast.MappingType, doc.Body) {
			for i, v := range n.(*ast.MappingNode).Values {
				if i > 0 && v.Key.IsMergeKey() {
					return nil, s.place(v.Key.GetToken(), "write << before the keys that override it")
				}
			}
		}
	}
	return s, nil
}

// syntax is what the YAML package found, as FILE:LINE:COL: message.
func (s *source) syntax(err error) error {
	var known yaml.Error
	if errors.As(err, &known) && known.GetToken() != nil {
		return s.place(known.GetToken(), known.GetMessage())
	}
	return fmt.Errorf("%s: %w", s.path, err)
}

func (s *source) place(t *token.Token, message string) error {
	return fmt.Errorf("%s:%d:%d: %s", s.path, t.Position.Line, t.Position.Column, message)
}

// node finds what a path such as $.cases[0] stands for; nil when there is none.
func (s *source) node(path string) ast.Node {
	p, err := yaml.PathString(path)
	if err != nil {
		return nil
	}
	n, err := p.FilterFile(s.file)
	if err != nil {
		return nil // behind an alias
	}
	return n
}

// at says where in the file an error is: at the value of path, or else of what
// it is in.
func (s *source) at(path string, err error) error {
	for path != "$" && path != "" {
		if n := s.node(path); n != nil {
			t := first(n)
			return fmt.Errorf("%s:%d:%d: %w", s.path, t.Position.Line, t.Position.Column, err)
		}
		path = path[:strings.LastIndexAny(path, ".[")]
	}
	return fmt.Errorf("%s: %w", s.path, err)
}

// first is the token that a value begins with.
func first(n ast.Node) *token.Token {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken()
	}
	return n.GetToken()
}

// cutOut returns the text of the mapping at path with everything else blanked,
// so that lines and columns in it are those of the file. ok is false when
// there is none in place, but an alias, say.
func (s *source) cutOut(path string) (text string, ok bool) {
	n := s.node(path)
	if a, is := n.(*ast.AnchorNode); is {
		n = a.Value
	}
	m, is := n.(*ast.MappingNode)
	if !is || len(m.Values) == 0 {
		return "", false
	}
	start := first(m).Position
	lines := strings.SplitAfter(s.text, "\n")
	if start.Line > len(lines) {
		return "", false
	}
	end := len(lines)
	if m.IsFlowStyle {
		if m.End == nil || m.End.Position.Line > end {
			return "", false
		}
		end = m.End.Position.Line
		last := []rune(lines[end-1])
		lines[end-1] = string(last[:min(m.End.Position.Column, len(last))])
	} else {
		for i := start.Line; i < len(lines); i++ {
			content := strings.TrimLeft(lines[i], " ")
			if indent := len(lines[i]) - len(content); strings.TrimSpace(content) != "" && content[0] != '#' && indent < start.Column-1 {
				end = i
				break
			}
		}
	}
	head := []rune(lines[start.Line-1])
	if len(head) < start.Column {
		return "", false
	}
	lines[start.Line-1] = strings.Repeat(" ", start.Column-1) + string(head[start.Column-1:])
	return strings.Repeat("\n", start.Line-1) + strings.Join(lines[start.Line-1:end], ""), true
}
