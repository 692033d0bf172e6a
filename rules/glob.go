package rules

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
)

// The one glob grammar of policy documents and of rules' binaries. Stars,
// question marks and classes never match "/" in a path; in a flat text
// (fields, operation names, query values) "/" is a character like any other.
//
//	*        any run of characters, also none
//	**       in a path, as a whole component: any number of components
//	?        one character
//	[a-z]    one of these; [!a-z] one that is none of these
//	{a,b}    either; not nested
//
// A trailing "/**" also matches the bare prefix, and "**" alone matches
// everything. Matching is case-sensitive. A backslash has no meaning and is
// refused; a meta character stands for itself in a class: [*].

const (
	// maxGlob bounds a pattern, in bytes.
	maxGlob = 1024
	// maxBranches bounds what the alternatives of one pattern multiply to:
	// each is tried against a text.
	maxBranches = 64
	// flatSeparator takes the place of "/" in flat texts, where doublestar
	// would not let a star cross it. No pattern can contain it.
	flatSeparator = "\x00"
)

// normalPathGlob checks a glob over slash-separated text (a URL path or a
// program's path) and returns the form that matchPath takes.
func normalPathGlob(pattern string) (string, error) { return normalGlob(pattern, true) }

// normalFlatGlob checks a glob over text without separator and returns the
// form that matchFlat takes.
func normalFlatGlob(pattern string) (string, error) { return normalGlob(pattern, false) }

// matchPath reports whether path matches a pattern from normalPathGlob.
func matchPath(pattern, path string) bool {
	if pattern == "**" {
		return true
	}
	return doublestar.MatchUnvalidated(pattern, path)
}

// matchFlat reports whether text matches a pattern from normalFlatGlob.
func matchFlat(pattern, text string) bool {
	if strings.Contains(text, flatSeparator) {
		text = strings.ReplaceAll(text, flatSeparator, string(utf8.RuneError))
	}
	if strings.Contains(text, "/") {
		text = strings.ReplaceAll(text, "/", flatSeparator)
	}
	if strings.Contains(pattern, "/") {
		pattern = strings.ReplaceAll(pattern, "/", flatSeparator)
	}
	return doublestar.MatchUnvalidated(pattern, text)
}

func normalGlob(pattern string, path bool) (string, error) {
	if pattern == "" {
		return "", errors.New("empty pattern")
	}
	if !doublestar.ValidatePattern(pattern) {
		return "", fmt.Errorf("bad pattern %q", pattern)
	}
	return pattern, nil
}

// globLiterals counts the characters of a normal pattern that stand for
// themselves; of alternatives, the shortest counts.
func globLiterals(pattern string) int {
	return len(pattern) - strings.Count(pattern, "*")
}
