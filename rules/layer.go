package rules

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// Layer is an indexed, immutable set of the rules of one source. It is safe
// for concurrent use and may be in any number of policies.
type Layer struct {
	source Source
	given  [][]Rule
	count  int // of the rules
	next   int // place of the next entry
	// parts are a large one and, when rules were added, a small one: a rule more
	// costs what the small one does.
	parts []*part
}

// entry is one rule with its text read; an endpoint without host is one entry
// for each of its allowed_ips.
type entry struct {
	rule       *Rule
	rank       rank
	place      int // in the layer, as the rules were given
	container  *containerPattern
	dest       destination
	ports      *portSet
	binaries   []string // in the form that matchPath takes
	reason     string
	transports transports
	effect     effect
}

// allowedIPs are the only addresses that an endpoint is about; none is all.
func (e *entry) allowedIPs() []netip.Prefix {
	if e.rule.Endpoint == nil {
		return nil
	}
	return e.rule.Endpoint.AllowedIPs
}

// before reports whether e, if both match, wins over another entry of its layer.
func (e *entry) before(other *entry) bool {
	switch {
	case e.rank != other.rank:
		return e.rank < other.rank
	case e.rule.Order != other.rule.Order:
		return e.rule.Order < other.rule.Order
	}
	return e.place < other.place
}

// NewLayer indexes the rules of one source: Global, Session, Builtin or
// Asked (see OnceLayer). The
// rules are shared, not copied, and must never change afterwards. They should
// have come from Canonical; text in another form is read as Canonical would.
//
// The error quotes the first rule that Canonical would have refused.
func NewLayer(source Source, rs []Rule) (*Layer, error) {
	if slices.Index(precedence[:], source) < 0 {
		return nil, fmt.Errorf("layer %q cannot hold rules: use global, session or builtin", source)
	}
	return (&Layer{source: source}).With(rs)
}

// smallPart is how much smaller than the large part of a layer the small one is.
const smallPart = 8

// With returns a layer of the rules of l and more after them, which decides as
// NewLayer would of all of them, and costs much less when there are few more.
// It shares and requires what NewLayer does; l stays as it is.
func (l *Layer) With(more []Rule) (*Layer, error) {
	entries, err := l.read(more)
	if err != nil {
		return nil, err
	}
	with := &Layer{
		source: l.source, given: append(slices.Clip(l.given), more), count: l.count + len(more), next: l.next + len(entries),
		parts: slices.Clone(l.parts),
	}
	for n := len(with.parts); n > 0 && (n == 2 || len(with.parts[0].entries) < smallPart*len(entries)); n-- {
		entries = merge(with.parts[n-1].entries, entries)
		with.parts = with.parts[:n-1]
	}
	with.parts = append(with.parts, newPart(entries))
	return with, nil
}

// read reads rules that come after those of l and puts them in order.
func (l *Layer) read(rs []Rule) (list, error) {
	read := make([]entry, 0, len(rs))
	rd := newReader()
	for i := range rs {
		r := &rs[i]
		var e entry
		err := rd.read(r, &e)
		if err == nil && l.source != Global && !e.container.every() {
			err = fmt.Errorf("container %q: only global rules choose containers", r.Container)
		}
		if err != nil {
			return nil, fmt.Errorf("%s rule %s: %w", l.source, r.name(), err)
		}
		e.reason = reasonOf(l.source, &e)
		if e.dest.kind != listed {
			e.rank, e.place = e.specificity(), l.next+len(read)
			read = append(read, e)
			continue
		}
		for _, p := range r.Endpoint.AllowedIPs {
			e.dest = networkDestination(p)
			e.rank, e.place = e.specificity(), l.next+len(read)
			read = append(read, e)
		}
	}
	return inOrder(read), nil
}

// inOrder are entries in the order of precedence. They are not looked at while
// they are sorted: that there are many is felt by the processor's cache.
func inOrder(entries []entry) list {
	type key struct {
		rank  rank
		order int64
		i     int // which is also the order of their places
	}
	keys := make([]key, len(entries))
	for i := range entries {
		keys[i] = key{entries[i].rank, entries[i].rule.Order, i}
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.order, b.order), a.i-b.i)
	})
	sorted := make(list, len(entries))
	for i, k := range keys {
		sorted[i] = &entries[k.i]
	}
	return sorted
}

// BuiltinLayer returns the rules that every container has: its own loopback,
// by address and by name, is allowed.
func BuiltinLayer() *Layer {
	var rs []Rule
	for i, d := range []string{"127.0.0.1", "::1", "localhost"} {
		rs = append(rs, Rule{
			ID: "builtin-" + d, Source: Builtin, Container: "*", Destination: d, Ports: "*",
			Transport: Any, Action: ActionAllow, Order: int64(i), Notes: "the container's own loopback",
		})
	}
	l, err := NewLayer(Builtin, rs)
	if err != nil {
		panic(err) // the three rules above are constant and canonical
	}
	return l
}

// Source says which layer it is.
func (l *Layer) Source() Source { return l.source }

// Rules are the layer's rules as they were given. They must not be changed.
func (l *Layer) Rules() iter.Seq[Rule] {
	return func(yield func(Rule) bool) {
		for _, rs := range l.given {
			for i := range rs {
				if !yield(rs[i]) {
					return
				}
			}
		}
	}
}

// InOrder returns the layer's rules in the order in which they win: of two that
// match, the first does.
func (l *Layer) InOrder() []Rule {
	var all list
	for _, p := range l.parts {
		all = merge(all, p.entries)
	}
	ordered := make([]Rule, 0, l.count)
	seen := make(map[*Rule]bool, l.count) // an endpoint may be several entries
	for _, e := range all {
		if !seen[e.rule] {
			seen[e.rule] = true
			ordered = append(ordered, *e.rule)
		}
	}
	return ordered
}

// lists appends the wanted lists of each part.
func (l *Layer) lists(to []list, q *query, want effect) []list {
	for _, p := range l.parts {
		to = p.lists(to, q, want)
	}
	return to
}

func (l *Layer) nextExpiry(now time.Time) (next time.Time, found bool) {
	for _, p := range l.parts {
		if t, ok := p.nextExpiry(now); ok && (!found || t.Before(next)) {
			next, found = t, true
		}
	}
	return next, found
}
