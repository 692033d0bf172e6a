package rules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Layer is an indexed, immutable set of the rules of one source. It is safe
// for concurrent use and may be in any number of policies.
type Layer struct {
	source   Source
	rules    []Rule
	entries  []*entry // most specific first: of two that match, the first wins
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
	l := &Layer{source: source, rules: rs, exact: map[string]*index{}}
	read := make([]entry, 0, len(rs))
	rd := newReader()
	for i := range rs {
		r := &rs[i]
		var e entry
		err := rd.read(r, &e)
		if err == nil && source != Global && !e.container.every() {
			err = fmt.Errorf("container %q: only global rules choose containers", r.Container)
		}
		if err != nil {
			return nil, fmt.Errorf("%s rule %s: %w", source, r.name(), err)
		}
		e.reason = reasonOf(source, &e)
		if e.dest.kind != listed {
			e.rank = e.specificity()
			read = append(read, e)
		} else {
			for _, p := range r.Endpoint.AllowedIPs {
				e.dest = networkDestination(p)
				e.rank = e.specificity()
				read = append(read, e)
			}
		}
		if !r.Expires.IsZero() {
			l.expiries = append(l.expiries, r.Expires)
		}
	}
	slices.SortFunc(l.expiries, time.Time.Compare)
	l.sort(read)
	l.build()
	return l, nil
}

// sort fills l.entries with the entries read in the order of precedence.
func (l *Layer) sort(read []entry) {
	type place struct {
		rank  rank
		order int64
		read  int
	}
	places := make([]place, len(read))
	for i := range read {
		places[i] = place{read[i].rank, read[i].rule.Order, i}
	}
	slices.SortFunc(places, func(a, b place) int {
		if a.rank != b.rank {
			return cmp.Compare(a.rank, b.rank)
		}
		return cmp.Or(cmp.Compare(a.order, b.order), a.read-b.read)
	})
	l.entries = make([]*entry, len(read))
	for i, p := range places {
		l.entries[i] = &read[p.read]
	}
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

// InOrder returns the layer's rules in the order in which they win: of two that
// match, the first does.
func (l *Layer) InOrder() []Rule {
	list := make([]Rule, 0, len(l.rules))
	seen := make(map[*Rule]bool, len(l.rules)) // an endpoint may be several entries
	for _, e := range l.entries {
		if !seen[e.rule] {
			seen[e.rule] = true
			list = append(list, *e.rule)
		}
	}
	return list
}

func (l *Layer) nextExpiry(now time.Time) (time.Time, bool) {
	i, _ := slices.BinarySearchFunc(l.expiries, now, time.Time.Compare)
	for ; i < len(l.expiries); i++ {
		if l.expiries[i].After(now) {
			return l.expiries[i], true
		}
	}
	return time.Time{}, false
}
