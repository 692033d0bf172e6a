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

func (b *bucket) split(entries []*entry) {
	if len(b.all) <= splitAbove {
		return
	}
	b.views[0] = b.view(entries, overTCP)
	b.views[1] = b.views[0]
	if slices.ContainsFunc(b.all, func(n int32) bool { return entries[n].transports != overBoth }) {
		b.views[1] = b.view(entries, overUDP)
	}
}

func (b *bucket) view(entries []*entry, t transports) *view {
	v := &view{port: map[uint16]list{}}
	few := make([]uint64, 0, len(b.all)) // port and position
	for _, n := range b.all {
		e := entries[n]
		if e.transports&t == 0 {
			continue
		}
		if e.ports.count > fewPorts {
			v.wide = append(v.wide, n)
			continue
		}
		for _, s := range e.ports.spans {
			for port := int(s.first); port <= int(s.last); port++ {
				few = append(few, uint64(port)<<32|uint64(n))
			}
		}
	}
	slices.Sort(few)
	positions := make(list, len(few))
	start := 0
	for i, f := range few {
		positions[i] = int32(uint32(f))
		if i+1 == len(few) || few[i+1]>>32 != f>>32 {
			v.port[uint16(f>>32)] = positions[start : i+1]
			start = i + 1
		}
	}
	return v
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
	networks  bart.Table[*subnet]
	any       bucket
	bare      bucket // globs without a literal suffix

	// byName are the entries that only a flow with a name can match, by effect.
	byName [passes + 1]bucket
}

// subnet is a node of the tree of networks.
type subnet struct {
	*bucket
	parent *subnet // the next larger network that has rules
}

// builder makes the indexes of a layer.
type builder struct {
	entries  []*entry
	numbers  list     // 0, 1, 2, …: the lists of one element are pieces of it
	buckets  []bucket // not handed out yet
	kinds    [listed]int
	networks map[*index]map[netip.Prefix]*bucket
}

func (l *Layer) build() {
	b := &builder{
		entries: l.entries, numbers: make(list, len(l.entries)), buckets: make([]bucket, len(l.entries)),
		networks: map[*index]map[netip.Prefix]*bucket{},
	}
	exact := 0
	for i := range l.entries {
		b.numbers[i] = int32(i)
		if c := l.entries[i].container; c.every() {
			b.kinds[l.entries[i].dest.kind]++
		} else if c.glob == "" {
			exact++
		}
	}
	l.exact = make(map[string]*index, exact)
	l.every = &index{
		names:     make(map[string]*bucket, b.kinds[exactly]),
		suffixes:  make(map[string]*bucket, b.kinds[below]+b.kinds[within]+b.kinds[globbed]),
		addresses: make(map[netip.Addr]*bucket, b.kinds[address]),
	}
	b.networks[l.every] = make(map[netip.Prefix]*bucket, b.kinds[network])
	for i := range l.entries {
		b.add(l.indexFor(l.entries[i].container), int32(i))
	}
	b.finish(l.every)
	for _, x := range l.exact {
		b.finish(x)
	}
	for _, gs := range l.globs.byPrefix {
		for _, g := range gs {
			b.finish(g.index)
		}
	}
}

// add puts an entry into an index. Entries come in the order of precedence.
func (b *builder) add(x *index, n int32) {
	e := b.entries[n]
	to := &x.any
	switch e.dest.kind {
	case exactly:
		to = at(b, &x.names, e.dest.name)
	case below, within, globbed:
		if to = &x.bare; e.dest.name != "" {
			to = at(b, &x.suffixes, e.dest.name)
			x.depth = max(x.depth, strings.Count(e.dest.name, ".")+1)
		}
	case address:
		to = at(b, &x.addresses, e.dest.prefix.Addr())
	case network:
		m := b.networks[x]
		to = at(b, &m, e.dest.prefix)
		b.networks[x] = m
	}
	b.put(to, n)
	if e.dest.named() {
		b.put(&x.byName[e.effect], n)
	}
}

func (b *builder) put(to *bucket, n int32) {
	if to.all == nil {
		to.all = b.numbers[n : n+1 : n+1]
		return
	}
	to.all = append(to.all, n)
}

// at returns the bucket of a key, made when there is none.
func at[K comparable](b *builder, m *map[K]*bucket, key K) *bucket {
	if found := (*m)[key]; found != nil {
		return found
	}
	if *m == nil {
		*m = map[K]*bucket{}
	}
	made := &b.buckets[0]
	b.buckets = b.buckets[1:]
	(*m)[key] = made
	return made
}

func (b *builder) finish(x *index) {
	for _, m := range x.names {
		m.split(b.entries)
	}
	for _, m := range x.suffixes {
		m.split(b.entries)
	}
	for _, m := range x.addresses {
		m.split(b.entries)
	}
	x.any.split(b.entries)
	x.bare.split(b.entries)
	for i := range x.byName {
		x.byName[i].split(b.entries)
	}

	networks := b.networks[x]
	sorted := make([]netip.Prefix, 0, len(networks))
	for p := range networks {
		sorted = append(sorted, p)
	}
	// The larger networks first: each then finds its parent in the tree.
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, p := range sorted {
		s := &subnet{bucket: networks[p]}
		s.split(b.entries)
		s.parent, _ = x.networks.LookupPrefix(p)
		x.networks.Insert(p, s)
	}
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
			to = s.lists(to, q)
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
	pattern *containerPattern
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
	x := &index{}
	g.byPrefix[c.prefix] = append(g.byPrefix[c.prefix], &globbedContainers{c, x})
	return x
}

func (l *Layer) indexFor(c *containerPattern) *index {
	switch {
	case c.every():
		return l.every
	case c.glob != "":
		return l.globs.at(c)
	}
	x := l.exact[c.text]
	if x == nil {
		x = &index{}
		l.exact[c.text] = x
	}
	return x
}

// lists appends the wanted lists of each index whose container pattern
// matches. A list may come twice, when a glob matches both name and id.
func (l *Layer) lists(to []list, q *query, want effect) []list {
	to = l.every.lists(to, q, want)
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
