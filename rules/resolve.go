package rules

import (
	"slices"
	"strings"
)

// resolve judges a DNS question: could a flow to the name be allowed on any
// port, over any transport, for any program? Rules about addresses have no
// say; they open addresses, not names.
func (p *Policy) resolve(q *query) Decision {
	q.host = q.names[0]
	var buf [24]list
	var first [8]*entry
	denials := first[:0] // those passed, which take ports away from what follows
	for i, l := range p.layers {
		ls := l.lists(buf[:0], q, whole)
		for e := next(ls); e != nil; e = next(ls) {
			if q.match(e) == no {
				continue
			}
			o := outcome{entry: e, layer: i}
			switch {
			case e.effect == refuses && e.total():
				return p.decision(q, o)
			case e.effect == refuses:
				denials = append(denials, e)
			case e.anythingLeft(denials):
				o.finding = allowedByName
				return p.decision(q, o)
			}
		}
	}
	return p.decision(q, outcome{layer: len(p.layers)})
}

// total reports whether e matches every flow to its destination.
func (e *entry) total() bool {
	return e.ports.all() && e.transports == overBoth && everyProgram(e.binaries)
}

// anythingLeft reports whether an entry that allows does so for any port,
// transport and program that the denials before it do not take away.
func (e *entry) anythingLeft(denials []*entry) bool {
	programs := e.binaries
	if everyProgram(programs) {
		programs = []string{"**"}
	}
	for _, program := range programs {
		for _, t := range [...]transports{overTCP, overUDP} {
			if e.transports&t == 0 {
				continue
			}
			left := e.ports.spans
			for _, d := range denials {
				if d.transports&t != 0 && d.covers(program) {
					left = d.ports.minus(left)
				}
			}
			if len(left) > 0 {
				return true
			}
		}
	}
	return false
}

func everyProgram(patterns []string) bool {
	return len(patterns) == 0 || slices.Contains(patterns, "**")
}

// covers reports whether every program that a pattern matches surely is one
// that e is about.
func (e *entry) covers(pattern string) bool {
	if everyProgram(e.binaries) || slices.Contains(e.binaries, pattern) {
		return true
	}
	if strings.ContainsAny(pattern, "*?[{") {
		return false
	}
	return slices.ContainsFunc(e.binaries, func(p string) bool { return matchPath(p, pattern) })
}
