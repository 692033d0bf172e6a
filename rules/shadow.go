package rules

import (
	"net/netip"
	"slices"
	"strings"
)

// maxCandidates bounds how many rules of one destination are looked at for
// each rule: what is further back is not found, which is no mistake.
const maxCandidates = 64

// Shadowed returns, for each rule, the index of one that always decides in its
// place as long as both are there, or -1. Only what is certain is said: the
// other rule comes first, holds for the same containers, destinations, ports,
// transports and programs or more of each, and inspects nothing. Rules of
// sessions say in Container whose they are; they come after every global one
// and are compared with those of the same session only.
func Shadowed(rs []Rule) []int {
	read, byDestination := make([]entry, len(rs)), map[destinationKey][]int{}
	rd := newReader()
	for i := range rs {
		r := rs[i]
		r.Source = "" // a session's rule with a container is fine here
		if err := rd.read(&r, &read[i]); err != nil {
			read[i].ports = nil
			continue
		}
		read[i].rule, read[i].rank = &rs[i], read[i].specificity()
		if key := keyOf(&read[i].dest); r.Endpoint == nil && len(byDestination[key]) < maxCandidates {
			byDestination[key] = append(byDestination[key], i)
		}
	}
	shadows := make([]int, len(rs))
	for i := range rs {
		shadows[i] = -1
		e := &read[i]
		if e.ports == nil || e.dest.kind == globbed || e.dest.kind == listed {
			continue
		}
		e.dest.covering(func(key destinationKey) bool {
			for _, j := range byDestination[key] {
				if j != i && read[j].precedes(e, j < i) && read[j].swallows(e) {
					shadows[i] = j
					return false
				}
			}
			return true
		})
	}
	return shadows
}

// precedes reports whether e is asked before other; first is for two that are
// otherwise equal.
func (e *entry) precedes(other *entry, first bool) bool {
	mine, others := slices.Index(precedence[:], e.rule.Source), slices.Index(precedence[:], other.rule.Source)
	switch {
	case mine != others:
		return mine < others
	case e.rule.SessionID != other.rule.SessionID:
		return false
	case e.rank != other.rank:
		return e.rank < other.rank
	case e.rule.Order != other.rule.Order:
		return e.rule.Order < other.rule.Order
	}
	return first
}

// swallows reports whether e matches whatever other matches, destinations aside.
func (e *entry) swallows(other *entry) bool {
	c, o := e.container, other.container
	return (c.every() || c.text == o.text || c.glob != "" && o.glob == "" && matchFlat(c.glob, o.text)) &&
		e.transports&other.transports == other.transports &&
		(len(e.binaries) == 0 || slices.Equal(e.binaries, other.binaries)) &&
		len(e.ports.minus(other.ports.spans)) == 0
}

// destinationKey is a destination as something to look up.
type destinationKey struct {
	kind   destinationKind
	name   string
	prefix netip.Prefix
}

func keyOf(d *destination) destinationKey {
	kind := d.kind
	if kind == address {
		kind = network
	}
	return destinationKey{kind, d.name, d.prefix}
}

// covering yields d and every destination that matches all that d matches, the
// narrowest first, until yield returns false.
func (d *destination) covering(yield func(destinationKey) bool) {
	switch d.kind {
	case address, network:
		for bits := d.prefix.Bits(); bits >= 0; bits-- {
			if !yield(destinationKey{kind: network, prefix: netip.PrefixFrom(d.prefix.Addr(), bits).Masked()}) {
				return
			}
		}
	case exactly, below, within:
		if d.kind == exactly && !yield(destinationKey{kind: exactly, name: d.name}) ||
			d.kind == below && !yield(destinationKey{kind: below, name: d.name}) ||
			!yield(destinationKey{kind: within, name: d.name}) {
			return
		}
		for name := d.name; ; {
			_, parent, ok := strings.Cut(name, ".")
			if !ok {
				break
			}
			if name = parent; !yield(destinationKey{kind: below, name: name}) || !yield(destinationKey{kind: within, name: name}) {
				return
			}
		}
	}
	yield(destinationKey{kind: anywhere})
}
