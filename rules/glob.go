package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
)

// The one glob grammar of policy documents and of rules' binaries:
//
//	*        any run of characters, also none
//	**       in a path, as a whole component: any number of components
//	?        one character
//	[a-z]    one of these; [!a-z] one that is none of these
//	{a,b}    either; not nested
//
// A trailing "/**" also matches the bare prefix, and "**" alone matches
// everything. In a path (of a URL or a program) nothing but "**" matches "/";
// a flat text (fields, operation names, query values) has no separator.
// Matching is case-sensitive. A backslash has no meaning and is refused; a
// character of the grammar stands for itself in a class: [*].
//
// A pattern goes through normalPathGlob or normalFlatGlob once, when a policy
// is loaded; matchPath and matchFlat take what those return.

const (
	// maxGlob bounds a pattern, in bytes.
	maxGlob = 1024
	// maxBranches bounds what the alternatives of one pattern multiply to:
	// in the worst case each is tried against a text.
	maxBranches = 64
	// flatSlash takes the place of "/" in flat texts, where doublestar would
	// not let a star cross it. No normal pattern contains it.
	flatSlash = "\x00"
)

func normalPathGlob(pattern string) (string, error) {
	p, err := normalGlob(pattern, true)
	if err != nil {
		return "", fmt.Errorf("glob %q: %w", pattern, err)
	}
	return p, nil
}

func normalFlatGlob(pattern string) (string, error) {
	p, err := normalGlob(pattern, false)
	if err != nil {
		return "", fmt.Errorf("glob %q: %w", pattern, err)
	}
	return p, nil
}

// matchPath reports whether path matches a pattern from normalPathGlob. It
// does not allocate for patterns without alternatives and with at most one
// "**" and no other star.
func matchPath(pattern, path string) bool {
	return matchBranches(pattern, path)
}

// matchFlat reports whether text matches a pattern from normalFlatGlob.
func matchFlat(pattern, text string) bool {
	if strings.Contains(text, flatSlash) {
		text = strings.ReplaceAll(text, flatSlash, string(utf8.RuneError))
	}
	text = strings.ReplaceAll(text, "/", flatSlash)
	pattern = strings.ReplaceAll(pattern, "/", flatSlash)
	return matchBranches(pattern, text)
}

func matchBranches(pattern, text string) bool {
	if strings.IndexByte(pattern, '{') < 0 {
		return matchBranch(pattern, text)
	}
	return slices.ContainsFunc(globBranches(pattern), func(b string) bool { return matchBranch(b, text) })
}

// matchBranch matches a pattern without alternatives. doublestar gives up on
// some patterns whose rest could match nothing when the text ends ("/a*/**"
// on "/a"), so those get a component behind them that both sides end in.
func matchBranch(branch, text string) bool {
	if branch == "**" || doublestar.MatchUnvalidated(branch, text) {
		return true
	}
	const end = "/\x01"
	return strings.Contains(branch, "**") && strings.Count(branch, "*") > 2 &&
		doublestar.MatchUnvalidated(branch+end, text+end)
}

// matchAny reports whether one of several flat patterns matches text.
func matchAny(patterns []string, text string) bool {
	for _, p := range patterns {
		if matchFlat(p, text) {
			return true
		}
	}
	return false
}

// globLiterals counts the characters of a normal pattern that stand for
// themselves; of alternatives, those of the shortest.
func globLiterals(pattern string) int {
	fewest := -1
	for _, b := range globBranches(pattern) {
		n := 0
		for _, tok := range globTokens(b) {
			if !tok.star && !tok.one {
				n++
			}
		}
		if fewest < 0 || n < fewest {
			fewest = n
		}
	}
	return fewest
}

// normalGlob checks pattern against the grammar. Where doublestar means
// something else by the same text, the pattern is rewritten (a negated class
// must not match "/" in a path) or refused.
func normalGlob(pattern string, path bool) (string, error) {
	switch {
	case pattern == "":
		return "", errors.New("it is empty and would match nothing; leave the key out to match anything")
	case len(pattern) > maxGlob:
		return "", fmt.Errorf("it is %d bytes long, more than %d", len(pattern), maxGlob)
	case !utf8.ValidString(pattern) || strings.ContainsRune(pattern, utf8.RuneError):
		return "", errors.New("it is not valid UTF-8")
	}
	var out strings.Builder
	inBraces, commas, branches := false, 0, 1
	for i := 0; i < len(pattern); i++ {
		c := pattern[i]
		switch {
		case c < 0x20 || c == 0x7f:
			return "", fmt.Errorf("it contains the control character %#02x", c)
		case c == '\\':
			return "", errors.New(`a backslash has no meaning here; to match a special character put it in brackets, as in [*]`)
		case c == '[':
			class, err := normalClass(pattern[i:], path)
			if err != nil {
				return "", err
			}
			i += strings.IndexByte(pattern[i:], ']')
			out.WriteString(class)
			continue
		case c == '{' && inBraces:
			return "", errors.New("braces cannot be nested")
		case c == '{':
			inBraces, commas = true, 0
		case c == ',' && inBraces:
			commas++
		case c == '}' && !inBraces:
			return "", errors.New(`"}" without "{"`)
		case c == '}':
			if commas == 0 {
				return "", errors.New(`braces hold alternatives, as in {a,b}; for a variable part write "*"`)
			}
			inBraces = false
			if branches *= commas + 1; branches > maxBranches {
				return "", fmt.Errorf("its alternatives multiply to more than %d", maxBranches)
			}
		}
		out.WriteByte(c)
	}
	if inBraces {
		return "", errors.New(`"{" without "}"`)
	}
	normal := out.String()
	if !path {
		for strings.Contains(normal, "**") {
			normal = strings.ReplaceAll(normal, "**", "*")
		}
		return normal, nil
	}
	for _, b := range globBranches(normal) {
		if err := checkComponents(b); err != nil {
			return "", err
		}
	}
	return normal, nil
}

// normalClass checks the class that s begins with and returns it with
// its brackets.
func normalClass(s string, path bool) (string, error) {
	end := strings.IndexByte(s, ']')
	if end < 0 {
		return "", errors.New(`"[" without "]"`)
	}
	body := s[1:end]
	negated := strings.HasPrefix(body, "!")
	body = strings.TrimPrefix(body, "!")
	switch {
	case body == "":
		return "", errors.New(`a class cannot be empty ("]" cannot be matched by one)`)
	case !negated && body[0] == '^':
		return "", errors.New(`to negate a class write "[!" rather than "[^"`)
	case strings.Contains(body, "[:"):
		return "", errors.New("named classes such as [[:alpha:]] are not supported; write [a-zA-Z]")
	case strings.ContainsAny(body, `\{},`):
		return "", errors.New(`a class cannot hold any of \ { } ,`)
	case path && !negated && strings.Contains(body, "/"):
		return "", errors.New(`a class never matches "/"`)
	}
	runes := []rune(body)
	for i, r := range runes {
		if r < 0x20 || r == 0x7f {
			return "", fmt.Errorf("it contains the control character %#02x", r)
		}
		if r != '-' || i == 0 || i == len(runes)-1 {
			continue
		}
		lo, hi := runes[i-1], runes[i+1]
		if lo > hi {
			return "", fmt.Errorf("the range %c-%c is empty", lo, hi)
		}
		if lo == '-' || hi == '-' || i+2 < len(runes)-1 && runes[i+2] == '-' {
			return "", errors.New(`a "-" that stands for itself comes first or last in its class`)
		}
		if lo <= '/' && '/' <= hi {
			return "", fmt.Errorf(`the range %c-%c spans "/"; list its characters`, lo, hi)
		}
	}
	if !negated {
		return "[" + body + "]", nil
	}
	if path && !strings.Contains(body, "/") {
		// After a leading "-", which would otherwise become a range.
		at := 0
		if body[0] == '-' {
			at = 1
		}
		body = body[:at] + "/" + body[at:]
	}
	return "[!" + body + "]", nil
}

// checkComponents holds "**" to whole components, where doublestar would take
// it for "*" elsewhere.
func checkComponents(branch string) error {
	parts := globComponents(branch)
	for i, part := range parts {
		tokens := globTokens(part)
		switch {
		case part != "**" && hasDoubleStar(tokens):
			return errors.New(`"**" must be a whole component between slashes; inside one write "*"`)
		case part == "**" && i > 0 && parts[i-1] == "**":
			return errors.New(`"**" twice in a row means the same as once`)
		case part == "" && i > 0 && i == len(parts)-1 && parts[i-1] == "**":
			return errors.New(`a pattern cannot end in "**/"; end it in "/**"`)
		}
	}
	return nil
}

func hasDoubleStar(tokens []globToken) bool {
	for i := 1; i < len(tokens); i++ {
		if tokens[i].star && tokens[i-1].star {
			return true
		}
	}
	return false
}

// globComponents splits a branch at its slashes, but for those in classes.
func globComponents(branch string) []string {
	var out []string
	for {
		i := outsideClass(branch, '/')
		if i < 0 {
			return append(out, branch)
		}
		out = append(out, branch[:i])
		branch = branch[i+1:]
	}
}

// globBranches writes out the alternatives of a normal pattern.
func globBranches(pattern string) []string {
	open := outsideClass(pattern, '{')
	if open < 0 {
		return []string{pattern}
	}
	end := open + outsideClass(pattern[open:], '}')
	rest := globBranches(pattern[end+1:])
	var out []string
	for inner := pattern[open+1 : end]; ; {
		comma := outsideClass(inner, ',')
		head := inner
		if comma >= 0 {
			head = inner[:comma]
		}
		for _, tail := range rest {
			out = append(out, pattern[:open]+head+tail)
		}
		if comma < 0 {
			return out
		}
		inner = inner[comma+1:]
	}
}

// outsideClass finds c outside of character classes, or returns -1.
func outsideClass(s string, c byte) int {
	for i := 0; i < len(s); i++ {
		if s[i] == c {
			return i
		}
		if s[i] == '[' {
			i += strings.IndexByte(s[i:], ']')
		}
	}
	return -1
}

// globToken is one element of a pattern without alternatives.
type globToken struct {
	literal rune
	one     bool // any one character: "?" or a class
	star    bool
}

func globTokens(branch string) []globToken {
	var out []globToken
	for i := 0; i < len(branch); {
		switch branch[i] {
		case '*':
			out = append(out, globToken{star: true})
			i++
		case '?':
			out = append(out, globToken{one: true})
			i++
		case '[':
			out = append(out, globToken{one: true})
			i += strings.IndexByte(branch[i:], ']') + 1
		default:
			r, n := utf8.DecodeRuneInString(branch[i:])
			out = append(out, globToken{literal: r})
			i += n
		}
	}
	return out
}

// pathGlobsMeet reports whether some path could match both normal patterns.
// A class counts as any character, so that it may say yes too often.
func pathGlobsMeet(a, b string) bool {
	for _, x := range globBranches(a) {
		for _, y := range globBranches(b) {
			if x == "**" || y == "**" || componentsMeet(globComponents(x), globComponents(y)) {
				return true
			}
		}
	}
	return false
}

// componentsMeet compares component by component; "**" is any number of them.
func componentsMeet(a, b []string) bool {
	return sequencesMeet(a, b, func(c string) bool { return c == "**" }, textsMeet)
}

func textsMeet(a, b string) bool {
	// Most patterns differ in the literal text that they begin or end with.
	for i := 0; i < min(len(a), len(b)) && !isMeta(a[i]) && !isMeta(b[i]); i++ {
		if a[i] != b[i] {
			return false
		}
	}
	for i := 1; i <= min(len(a), len(b)) && !isMeta(a[len(a)-i]) && !isMeta(b[len(b)-i]); i++ {
		if a[len(a)-i] != b[len(b)-i] {
			return false
		}
	}
	return sequencesMeet(globTokens(a), globTokens(b),
		func(t globToken) bool { return t.star },
		func(x, y globToken) bool { return x.one || y.one || x.literal == y.literal })
}

func isMeta(c byte) bool { return strings.IndexByte("*?[]", c) >= 0 }

// sequencesMeet reports whether two sequences, in which the elements that any
// accepts stand for any number of elements, have an expansion in common.
func sequencesMeet[T any](a, b []T, any func(T) bool, pair func(T, T) bool) bool {
	// row[j] tells whether a[i:] and b[j:] meet, for the i of the round; below
	// is the row of the round before.
	row, below := make([]bool, len(b)+1), make([]bool, len(b)+1)
	for i := len(a); i >= 0; i-- {
		row, below = below, row
		for j := len(b); j >= 0; j-- {
			switch {
			case i == len(a) && j == len(b):
				row[j] = true
			case i < len(a) && any(a[i]):
				row[j] = below[j] || j < len(b) && row[j+1]
			case j < len(b) && any(b[j]):
				row[j] = row[j+1] || i < len(a) && below[j]
			case i < len(a) && j < len(b):
				row[j] = below[j+1] && pair(a[i], b[j])
			default:
				row[j] = false
			}
		}
	}
	return row[0]
}
