package rules

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// hostGlob is the host of an endpoint: a name whose labels may hold stars.
// "*" is one label or a part of one, "**" one or more labels; neither covers
// the apex. That is narrower than a star in the destination of a plain rule.
type hostGlob struct {
	pattern string
	labels  []string
}

// compileEndpointHost reads the host pattern of an endpoint and makes it
// canonical. Refused are addresses, bare "*" and "**", and a star over all
// names of a top-level domain.
func compileEndpointHost(pattern string) (hostGlob, error) {
	if !strings.Contains(pattern, "*") {
		name, err := CanonicalName(pattern)
		if err != nil {
			return hostGlob{}, err
		}
		return hostGlob{pattern: name, labels: strings.Split(name, ".")}, nil
	}
	labels, err := starredLabels(pattern)
	if err != nil {
		return hostGlob{}, fmt.Errorf("host %q: %w", pattern, err)
	}
	return hostGlob{pattern: strings.Join(labels, "."), labels: labels}, nil
}

func starredLabels(pattern string) ([]string, error) {
	labels := strings.Split(strings.TrimSuffix(pattern, "."), ".")
	for i, label := range labels {
		// What is left without the stars must be (a part of) a name; this
		// also finds empty labels and characters that no name has.
		switch literal := strings.ReplaceAll(label, "*", ""); {
		case label == "*" || label == "**":
		case strings.Contains(label, "**"):
			return nil, errors.New(`"**" stands for whole labels; for a part of one write "*"`)
		case literal != label && !starrable(literal):
			return nil, fmt.Errorf("label %q: beside a star only ASCII letters, digits, hyphen and underscore", label)
		default:
			if literal == label {
				name, err := CanonicalName(label)
				if err != nil && !errors.Is(err, ErrAddress) || err != nil && i == len(labels)-1 {
					return nil, fmt.Errorf("label %q: %w", label, err)
				}
				label = strings.ToLower(label)
				if err == nil {
					label = name
				}
			}
			labels[i] = strings.ToLower(label)
		}
	}
	last := len(labels) - 1
	switch {
	case last == 0 && strings.Trim(labels[0], "*") == "":
		return nil, errors.New(`it would match every name; list the hosts, or write a plain rule: allow: "*"`)
	case last > 0 && strings.Contains(labels[last], "*"), last > 0 && strings.Contains(labels[last-1], "*"):
		return nil, errors.New("a star may not stand for a whole registered domain; end the pattern in two labels without a star, as in *.example.com")
	}
	if n := len(strings.Join(labels, ".")); n > maxName {
		return nil, fmt.Errorf("it is %d bytes long, more than a name can be (%d)", n, maxName)
	}
	return labels, nil
}

func starrable(s string) bool {
	for i := 0; i < len(s); i++ {
		if !nameByte(s[i]) && !('A' <= s[i] && s[i] <= 'Z') {
			return false
		}
	}
	return s != ""
}

// String returns the canonical pattern.
func (g hostGlob) String() string { return g.pattern }

// exact returns the one name that g matches, if it holds no star.
func (g hostGlob) exact() (string, bool) {
	return g.pattern, !strings.Contains(g.pattern, "*")
}

// suffix returns the labels after the last star: every name that g matches
// is below it, or it, when g is exact. "" when g is a single starred label.
func (g hostGlob) suffix() string {
	i := len(g.labels)
	for i > 0 && !strings.Contains(g.labels[i-1], "*") {
		i--
	}
	return strings.Join(g.labels[i:], ".")
}

// specificity is the number of characters of g that stand for themselves.
func (g hostGlob) specificity() int {
	return len(g.pattern) - strings.Count(g.pattern, "*")
}

// match reports whether a canonical name is one that g stands for. It does
// not allocate.
func (g hostGlob) match(name string) bool {
	return matchLabels(g.labels, name)
}

// matchLabels compares label by label from the right.
func matchLabels(labels []string, name string) bool {
	for n := len(labels); n > 0; n-- {
		if name == "" {
			return false
		}
		rest, label := cutLastLabel(name)
		if labels[n-1] == "**" {
			for ; ; rest, _ = cutLastLabel(rest) {
				if matchLabels(labels[:n-1], rest) {
					return true
				}
				if rest == "" {
					return false
				}
			}
		}
		if !doublestar.MatchUnvalidated(labels[n-1], label) {
			return false
		}
		name = rest
	}
	return name == ""
}

func cutLastLabel(name string) (rest, label string) {
	i := strings.LastIndexByte(name, '.')
	return name[:max(i, 0)], name[i+1:]
}

// components returns the labels in the grammar of paths, where "**" may be
// nothing. Two hosts of which componentsMeet says no match no name in common;
// it may say yes too often, because a star may be empty to it.
func (g hostGlob) components() []string {
	var out []string
	for _, l := range g.labels {
		if l == "**" {
			out = append(out, "*")
		}
		out = append(out, l)
	}
	return out
}
