package learn

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxPaths is how many different paths one host's endpoint lists. Beyond
	// it, folders with many entries are folded, and at last everything.
	maxPaths = 400
	// manyEntries is when a folder has many.
	manyEntries = 20
	// maxGlob is how long a path's glob may be, in bytes; the document's own
	// limit is 1024.
	maxGlob = 1000
)

// A part is one segment of a path: its text as the rules compare it (decoded,
// an encoded slash as %2F), and how it may be folded.
type part struct {
	text  string
	glob  string // that matches the text alone
	fold  string // that stands for ids like it; "" when it is none
	clear bool   // an id whatever else was seen
}

// parts takes a canonical path apart.
func parts(path string) []part {
	var list []part
	for raw := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		text, err := url.PathUnescape(raw)
		if err != nil {
			text = raw
		}
		p := part{text: strings.ReplaceAll(text, "/", "%2F")}
		p.glob = literal(p.text)
		p.fold, p.clear = foldID(text)
		list = append(list, p)
	}
	return list
}

// literal is the glob that matches text and nothing else. A percent sign is
// not taken in a glob where it could be read as an escape.
func literal(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case strings.ContainsRune("*?[", r):
			b.WriteString("[" + string(r) + "]")
		case r < 0x20, r == 0x7f, strings.ContainsRune("{}\ufffd\\", r), r == '%' && !strings.HasPrefix(text[i:], "%2F"):
			b.WriteByte('?') // no class holds it
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

var (
	uuid   = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
	ulid   = regexp.MustCompile(`^[0-7][0-9A-HJKMNP-TV-Z]{25}$`)
	digest = regexp.MustCompile(`^([a-z][a-z0-9]{0,15}:)[0-9a-f]{32,}$`)
	number = regexp.MustCompile(`^[0-9]+$`)
	hex    = regexp.MustCompile(`^[0-9a-fA-F]{7,}$`)
	token  = regexp.MustCompile(`^[A-Za-z0-9_-]{20,}={0,2}$`)
	digits = regexp.MustCompile(`[0-9]`)
	upper  = regexp.MustCompile(`[A-Z]`)
	lower  = regexp.MustCompile(`[a-z]`)
)

// foldID says what stands for ids like s, "" when s is none, and whether s
// clearly is one. What could as well be a word, a year or a version is an id
// only where others were seen in its place.
func foldID(s string) (fold string, clear bool) {
	hasDigit := digits.MatchString(s)
	switch {
	case uuid.MatchString(s), ulid.MatchString(s):
		return "*", true
	case digest.MatchString(s):
		return digest.FindStringSubmatch(s)[1] + "*", true
	case number.MatchString(s):
		return "*", len(s) >= 5
	case hasDigit && hex.MatchString(s):
		return "*", len(s) >= 16
	case hasDigit && upper.MatchString(s) && lower.MatchString(s) && token.MatchString(s):
		return "*", true
	}
	return "", false
}

// foldPaths returns the glob for each of some paths of one host. reduced says
// that there were too many and more was folded than ids.
func foldPaths(paths []string) (globs map[string]string, reduced bool) {
	slices.Sort(paths)
	paths = slices.Compact(paths)
	split := make([][]part, len(paths))
	// seen holds, for paths alike but for their ids, what was seen in the
	// place of each id.
	seen := map[string][]map[string]bool{}
	shapes := make([]string, len(paths))
	for i, path := range paths {
		split[i] = parts(path)
		var shape strings.Builder
		for _, p := range split[i] {
			if p.fold != "" {
				shape.WriteString("/\x00" + p.fold) // no path holds a NUL
			} else {
				shape.WriteString("/" + p.text)
			}
		}
		shapes[i] = shape.String()
		places := seen[shapes[i]]
		if places == nil {
			places = make([]map[string]bool, len(split[i]))
			seen[shapes[i]] = places
		}
		for n, p := range split[i] {
			if p.fold == "" {
				continue
			}
			if places[n] == nil {
				places[n] = map[string]bool{}
			}
			places[n][p.text] = true
		}
	}
	globs = map[string]string{}
	for i, path := range paths {
		var glob strings.Builder
		for n, p := range split[i] {
			one := p.glob
			if p.clear || p.fold != "" && len(seen[shapes[i]][n]) > 1 {
				one = p.fold
			}
			if glob.Len()+1+len(one) > maxGlob {
				glob.WriteString("/**")
				reduced = true
				break
			}
			glob.WriteString("/" + one)
		}
		globs[path] = glob.String()
	}
	return globs, reduce(globs) || reduced
}

// reduce folds folders with many entries while there are more than maxPaths
// globs, and everything if that does not help.
func reduce(globs map[string]string) (reduced bool) {
	distinct := func() map[string]bool {
		set := map[string]bool{}
		for _, g := range globs {
			set[g] = true
		}
		return set
	}
	set := distinct()
	if len(set) <= maxPaths {
		return false
	}
	entries := map[string]int{}
	for g := range set {
		entries[folder(g)]++
	}
	for path, g := range globs {
		if entries[folder(g)] > manyEntries && !strings.HasSuffix(g, "/**") {
			globs[path] = folder(g) + "/*"
		}
	}
	if len(distinct()) > maxPaths {
		for path := range globs {
			globs[path] = "/**"
		}
	}
	return true
}

// folder is a glob without its last segment.
func folder(glob string) string { return glob[:strings.LastIndexByte(glob, '/')] }
