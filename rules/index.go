package rules

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// A list is entries of one layer, each before the next: the first that matches
// a request is the one that wins.
type list []*entry

// next takes the entry that is before all others off the lists, or is nil.
func next(ls []list) *entry {
	best := -1
	for i, l := range ls {
		if len(l) > 0 && (best < 0 || l[0].before(ls[best][0])) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	e := ls[best][0]
	ls[best] = ls[best][1:]
	return e
}

// merge is what two lists hold, as one.
func merge(a, b list) list {
	all := make(list, 0, len(a)+len(b))
	ls := []list{a, b}
	for e := next(ls); e != nil; e = next(ls) {
		all = append(all, e)
	}
	return all
}

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

func (b *bucket) split() {
	if len(b.all) <= splitAbove {
		return
	}
	b.views[0] = b.view(overTCP)
	b.views[1] = b.views[0]
	if slices.ContainsFunc(b.all, func(e *entry) bool { return e.transports != overBoth }) {
		b.views[1] = b.view(overUDP)
	}
}

func (b *bucket) view(t transports) *view {
	v := &view{port: map[uint16]list{}}
	few := make([]uint64, 0, len(b.all)) // port, and index in b.all
	for i, e := range b.all {
		if e.transports&t == 0 {
			continue
		}
		if e.ports.count > fewPorts {
			v.wide = append(v.wide, e)
			continue
		}
		for _, s := range e.ports.spans {
			for port := int(s.first); port <= int(s.last); port++ {
				few = append(few, uint64(port)<<32|uint64(i))
			}
		}
	}
	slices.Sort(few)
	byPort := make(list, len(few))
	start := 0
	for i, f := range few {
		byPort[i] = b.all[uint32(f)]
		if i+1 == len(few) || few[i+1]>>32 != f>>32 {
			v.port[uint16(f>>32)] = byPort[start : i+1]
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

// builder makes the indexes of a part.
type builder struct {
	buckets  []bucket // not handed out yet
	kinds    [listed]int
	networks map[*index]map[netip.Prefix]*bucket
}

// add puts an entry, as a list of itself, into an index. Entries come in the
// order of precedence.
func (b *builder) add(x *index, one list) {
	e := one[0]
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
	to.put(one)
	if e.dest.named() {
		x.byName[e.effect].put(one)
	}
}

func (b *bucket) put(one list) {
	if b.all == nil {
		b.all = one // most buckets hold no more
		return
	}
	b.all = append(b.all, one...)
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
		m.split()
	}
	for _, m := range x.suffixes {
		m.split()
	}
	for _, m := range x.addresses {
		m.split()
	}
	x.any.split()
	x.bare.split()
	for i := range x.byName {
		x.byName[i].split()
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
		s.split()
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
