package rules

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// A list is the positions of entries in their layer, ascending: the first
// that matches a request is the one that wins.
type list []int32

// bucket holds the entries that share a destination. A large one is split by
// transport and port, so that a thousand rules for other ports of one host
// cost nothing.
type bucket struct {
	all   list
	views [2]*view // over TCP and UDP; nil while the bucket is small
}

type view struct {
	wide list            // rules for many ports
	port map[uint16]list // rules for few ports, under each of them
}

const (
	splitAbove = 16 // entries of a bucket that is not worth splitting
	fewPorts   = 8
)

func (b *bucket) split(entries []entry) {
	if len(b.all) <= splitAbove {
		return
	}
	for i, t := range []transports{overTCP, overUDP} {
		v := &view{port: map[uint16]list{}}
		for _, n := range b.all {
			e := &entries[n]
			if e.transports&t == 0 {
				continue
			}
			if e.ports.count > fewPorts {
				v.wide = append(v.wide, n)
				continue
			}
			for _, s := range e.ports.spans {
				for port := int(s.first); port <= int(s.last); port++ {
					v.port[uint16(port)] = append(v.port[uint16(port)], n)
				}
			}
		}
		b.views[i] = v
	}
}

// lists appends the lists of b that hold everything that can match q.
func (b *bucket) lists(to []list, q *query) []list {
	if b == nil || len(b.all) == 0 {
		return to
	}
	if b.views[0] == nil || q.transport == overBoth || q.transport == 0 {
		return append(to, b.all)
	}
	v := b.views[q.transport-overTCP]
	if len(v.wide) > 0 {
		to = append(to, v.wide)
	}
	if l := v.port[q.port]; len(l) > 0 {
		to = append(to, l)
	}
	return to
}

// index finds the entries of one container pattern by destination.
type index struct {
	names     map[string]*bucket
	suffixes  map[string]*bucket // below, within and globbed, by literal suffix
	depth     int                // labels of the longest suffix
	addresses map[netip.Addr]*bucket
	prefixes  map[netip.Prefix]*bucket // nil once the tree is built
	networks  bart.Table[*subnet]
	any       bucket
	bare      bucket // globs without a literal suffix

	// byName are the entries that only a flow with a name can match, by effect.
	byName [passes + 1]bucket
}

// subnet is a node of the tree of networks.
type subnet struct {
	bucket
	parent *subnet // the next larger network that has rules
}

func newIndex(size int) *index {
	return &index{
		names:     make(map[string]*bucket, size),
		suffixes:  map[string]*bucket{},
		addresses: map[netip.Addr]*bucket{},
		prefixes:  map[netip.Prefix]*bucket{},
	}
}

func (x *index) add(entries []entry, n int32) {
	e := &entries[n]
	b := &x.any
	switch e.dest.kind {
	case exactly:
		b = at(x.names, e.dest.name)
	case below, within, globbed:
		if b = &x.bare; e.dest.name != "" {
			b = at(x.suffixes, e.dest.name)
			x.depth = max(x.depth, strings.Count(e.dest.name, ".")+1)
		}
	case address:
		b = at(x.addresses, e.dest.prefix.Addr())
	case network:
		b = at(x.prefixes, e.dest.prefix)
	}
	b.all = append(b.all, n)
	if e.dest.named() {
		x.byName[e.effect].all = append(x.byName[e.effect].all, n)
	}
}

func at[K comparable](m map[K]*bucket, key K) *bucket {
	b := m[key]
	if b == nil {
		b = &bucket{}
		m[key] = b
	}
	return b
}

func (x *index) finish(entries []entry) {
	for _, b := range x.names {
		b.split(entries)
	}
	for _, b := range x.suffixes {
		b.split(entries)
	}
	for _, b := range x.addresses {
		b.split(entries)
	}
	x.any.split(entries)
	x.bare.split(entries)
	for i := range x.byName {
		x.byName[i].split(entries)
	}

	sorted := make([]netip.Prefix, 0, len(x.prefixes))
	for p := range x.prefixes {
		sorted = append(sorted, p)
	}
	// The larger networks first: each then finds its parent in the tree.
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range sorted {
		s := &subnet{bucket: *x.prefixes[p]}
		s.split(entries)
		s.parent, _ = x.networks.LookupPrefix(p)
		x.networks.Insert(p, s)
	}
	x.prefixes = nil
}

// whole asks an index for the entries whose destination can match a query;
// an effect asks for the entries with it that need a name, whichever.
const whole = passes + 1

// lists appends the lists that hold everything wanted that can match q.
func (x *index) lists(to []list, q *query, want effect) []list {
	if want != whole {
		return x.byName[want].lists(to, q)
	}
	for _, a := range q.addrs[:q.addrCount] {
		if len(x.addresses) > 0 {
			to = x.addresses[a].lists(to, q)
		}
		s, _ := x.networks.Lookup(a)
		for ; s != nil; s = s.parent {
			to = s.bucket.lists(to, q)
		}
	}
	if q.host != "" {
		to = x.names[q.host].lists(to, q)
		end := len(q.host)
		for range x.depth {
			dot := strings.LastIndexByte(q.host[:end], '.')
			to = x.suffixes[q.host[dot+1:]].lists(to, q)
			if end = dot; dot < 0 {
				break
			}
		}
		to = x.bare.lists(to, q)
	}
	return x.any.lists(to, q)
}

// globIndex finds container globs by their literal prefix, so that globs for
// containers of other names cost nothing.
type globIndex struct {
	byPrefix map[string][]*globbedContainers
	lengths  []int // of the prefixes, each once
}

type globbedContainers struct {
	pattern containerPattern
	index   *index
}

func (g *globIndex) at(c *containerPattern) *index {
	for _, known := range g.byPrefix[c.prefix] {
		if known.pattern.text == c.text {
			return known.index
		}
	}
	if g.byPrefix == nil {
		g.byPrefix = map[string][]*globbedContainers{}
	}
	if !slices.Contains(g.lengths, len(c.prefix)) {
		g.lengths = append(g.lengths, len(c.prefix))
	}
	x := newIndex(0)
	g.byPrefix[c.prefix] = append(g.byPrefix[c.prefix], &globbedContainers{*c, x})
	return x
}

func (l *Layer) indexFor(c *containerPattern, size int) *index {
	switch {
	case c.every():
		if l.every == nil {
			l.every = newIndex(size)
		}
		return l.every
	case c.glob != "":
		return l.globs.at(c)
	}
	x := l.exact[c.text]
	if x == nil {
		x = newIndex(0)
		l.exact[c.text] = x
	}
	return x
}

func (l *Layer) finish() {
	if l.every != nil {
		l.every.finish(l.entries)
	}
	for _, x := range l.exact {
		x.finish(l.entries)
	}
	for _, gs := range l.globs.byPrefix {
		for _, g := range gs {
			g.index.finish(l.entries)
		}
	}
}

// lists appends the wanted lists of each index whose container pattern
// matches. A list may come twice, when a glob matches both name and id.
func (l *Layer) lists(to []list, q *query, want effect) []list {
	if l.every != nil {
		to = l.every.lists(to, q, want)
	}
	for i, who := range [...]string{q.container.Name, q.container.ID} {
		if who == "" || i == 1 && who == q.container.Name {
			continue
		}
		if x := l.exact[who]; x != nil {
			to = x.lists(to, q, want)
		}
		for _, n := range l.globs.lengths {
			if n > len(who) {
				continue
			}
			for _, g := range l.globs.byPrefix[who[:n]] {
				if matchFlat(g.pattern.glob, who) {
					to = g.index.lists(to, q, want)
				}
			}
		}
	}
	return to
}
