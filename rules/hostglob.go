package rules

import (
	"fmt"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// hostGlob is the host of an endpoint: a name whose labels may hold stars.
// "*" is one label or a part of one, "**" one or more labels; neither covers
// the apex.
type hostGlob struct {
	pattern string
	labels  []string
}

// compileEndpointHost reads the host pattern of an endpoint. The names that
// it matches are canonical ones. Bare "*" and "**" and a star over a whole
// top-level domain are refused.
func compileEndpointHost(pattern string) (hostGlob, error) {
	p := strings.ToLower(strings.TrimSuffix(pattern, "."))
	if p == "" || p == "*" || p == "**" {
		return hostGlob{}, fmt.Errorf("host %q would match every name; name the hosts, or use a plain rule `allow: \"*\"`", pattern)
	}
	return hostGlob{pattern: p, labels: strings.Split(p, ".")}, nil
}

// exact returns the one name that g matches, if it holds no star.
func (g hostGlob) exact() (string, bool) {
	return g.pattern, !strings.Contains(g.pattern, "*")
}

// suffix returns the literal labels at the end of g, "" when there are none:
// every name that g matches is below it (or equals it, when g is exact).
func (g hostGlob) suffix() string {
	i := len(g.labels)
	for i > 0 && !strings.Contains(g.labels[i-1], "*") {
		i--
	}
	return strings.Join(g.labels[i:], ".")
}

// specificity is the number of literal characters in g.
func (g hostGlob) specificity() int {
	return len(g.pattern) - strings.Count(g.pattern, "*")
}

// match reports whether a canonical name is one that g stands for.
func (g hostGlob) match(name string) bool {
	return matchLabels(g.labels, name)
}

// matchLabels compares label by label from the right.
func matchLabels(labels []string, name string) bool {
	for n := len(labels); n > 0; n-- {
		want := labels[n-1]
		if name == "" {
			return false
		}
		rest, label := "", name
		if i := strings.LastIndexByte(name, '.'); i >= 0 {
			rest, label = name[:i], name[i+1:]
		}
		if want == "**" {
			for {
				if matchLabels(labels[:n-1], rest) {
					return true
				}
				i := strings.LastIndexByte(rest, '.')
				if rest == "" {
					return false
				}
				rest = rest[:max(i, 0)]
			}
		}
		if !doublestar.MatchUnvalidated(want, label) {
			return false
		}
		name = rest
	}
	return name == ""
}
