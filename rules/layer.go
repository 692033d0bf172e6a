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
	source   Source
	rules    []Rule
	entries  []entry // most specific first: of two that match, the first wins
	exact    map[string]*index
	globs    globIndex
	every    *index      // container "*"
	expiries []time.Time // sorted
}

// entry is one rule with its text read; an endpoint without host is one entry
// for each of its allowed_ips.
type entry struct {
	rule       *Rule
	rank       rank
	dest       destination
	ports      *portSet
	binaries   []string
	allowedIPs []netip.Prefix // of an endpoint; nil is any
	transports transports
	effect     effect
	reason     string
}

// NewLayer indexes the rules of one source: Global, Session or Builtin. The
// rules are shared, not copied, and must never change afterwards. They should
// have come from Canonical; text in another form is read as Canonical would.
//
// The error quotes the first rule that Canonical would have refused.
func NewLayer(source Source, rs []Rule) (*Layer, error) {
	if slices.Index(precedence[:], source) < 0 {
		return nil, fmt.Errorf("layer %q cannot hold rules: use global, session or builtin", source)
	}
	l := &Layer{source: source, rules: rs, exact: map[string]*index{}}

	type place struct {
		rank  rank
		order int64
		rule  int32
		part  int32 // of a rule that is several entries
	}
	all := make([]parsed, len(rs))
	places := make([]place, 0, len(rs))
	ports := map[string]*portSet{}
	for i := range rs {
		r, p := &rs[i], &all[i]
		var err error
		if *p, err = parseRule(r, ports); err != nil {
			return nil, fmt.Errorf("%s rule %s: %w", source, r.name(), err)
		}
		if source != Global && !p.container.every() {
			return nil, fmt.Errorf("%s rule %s: container %q: only global rules choose containers", source, r.name(), r.Container)
		}
		for part, dest := range p.destinations(r) {
			places = append(places, place{p.rank(&dest), r.Order, int32(i), int32(part)})
		}
		if !r.Expires.IsZero() {
			l.expiries = append(l.expiries, r.Expires)
		}
	}
	slices.SortFunc(l.expiries, time.Time.Compare)
	slices.SortFunc(places, func(a, b place) int {
		if a.rank != b.rank {
			return cmp.Compare(a.rank, b.rank)
		}
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.rule, b.rule), cmp.Compare(a.part, b.part))
	})

	l.entries = make([]entry, len(places))
	for i, at := range places {
		r, p := &rs[at.rule], &all[at.rule]
		e := &l.entries[i]
		*e = entry{
			rule: r, rank: at.rank, dest: p.destination(r, int(at.part)), ports: p.ports, binaries: p.binaries,
			transports: p.transports, effect: p.effect, reason: reasonOf(source, r, p),
		}
		if r.Endpoint != nil {
			e.allowedIPs = r.Endpoint.AllowedIPs
		}
		l.indexFor(&p.container, len(rs)).add(l.entries, int32(i))
	}
	l.finish()
	return l, nil
}

// destinations yields the destinations of the entries that a rule becomes.
func (p *parsed) destinations(r *Rule) iter.Seq2[int, destination] {
	return func(yield func(int, destination) bool) {
		if p.dest.kind != listed {
			yield(0, p.dest)
			return
		}
		for i := range r.Endpoint.AllowedIPs {
			if !yield(i, p.destination(r, i)) {
				return
			}
		}
	}
}

func (p *parsed) destination(r *Rule, part int) destination {
	if p.dest.kind == listed {
		return networkDestination(r.Endpoint.AllowedIPs[part])
	}
	return p.dest
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

// Rules returns the layer's rules as they were given. They must not be changed.
func (l *Layer) Rules() []Rule { return l.rules }

func (l *Layer) nextExpiry(now time.Time) (time.Time, bool) {
	i, _ := slices.BinarySearchFunc(l.expiries, now, time.Time.Compare)
	for ; i < len(l.expiries); i++ {
		if l.expiries[i].After(now) {
			return l.expiries[i], true
		}
	}
	return time.Time{}, false
}
