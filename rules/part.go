package rules

import (
	"net/netip"
	"slices"
	"time"
)

// A part is an index of entries by container and destination.
type part struct {
	entries  list
	exact    map[string]*index
	globs    globIndex
	every    *index      // container "*"
	expiries []time.Time // sorted
}

// newPart indexes a list. Its elements are used as lists of one.
func newPart(entries list) *part {
	b := &builder{buckets: make([]bucket, len(entries)), networks: map[*index]map[netip.Prefix]*bucket{}}
	p := &part{entries: entries}
	exact := 0
	for _, e := range entries {
		if c := e.container; c.every() {
			b.kinds[e.dest.kind]++
		} else if c.glob == "" {
			exact++
		}
		if !e.rule.Expires.IsZero() {
			p.expiries = append(p.expiries, e.rule.Expires)
		}
	}
	slices.SortFunc(p.expiries, time.Time.Compare)
	p.exact = make(map[string]*index, exact)
	p.every = &index{
		names:     make(map[string]*bucket, b.kinds[exactly]),
		suffixes:  make(map[string]*bucket, b.kinds[below]+b.kinds[within]+b.kinds[globbed]),
		addresses: make(map[netip.Addr]*bucket, b.kinds[address]),
	}
	b.networks[p.every] = make(map[netip.Prefix]*bucket, b.kinds[network])
	for i, e := range entries {
		b.add(p.indexFor(e.container), entries[i:i+1:i+1])
	}
	b.finish(p.every)
	for _, x := range p.exact {
		b.finish(x)
	}
	for _, gs := range p.globs.byPrefix {
		for _, g := range gs {
			b.finish(g.index)
		}
	}
	return p
}

func (p *part) nextExpiry(now time.Time) (time.Time, bool) {
	i, _ := slices.BinarySearchFunc(p.expiries, now, time.Time.Compare)
	for ; i < len(p.expiries); i++ {
		if p.expiries[i].After(now) {
			return p.expiries[i], true
		}
	}
	return time.Time{}, false
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

func (p *part) indexFor(c *containerPattern) *index {
	switch {
	case c.every():
		return p.every
	case c.glob != "":
		return p.globs.at(c)
	}
	x := p.exact[c.text]
	if x == nil {
		x = &index{}
		p.exact[c.text] = x
	}
	return x
}

// lists appends the wanted lists of each index whose container pattern
// matches. A list may come twice, when a glob matches both name and id.
func (p *part) lists(to []list, q *query, want effect) []list {
	to = p.every.lists(to, q, want)
	for i, who := range [...]string{q.container.Name, q.container.ID} {
		if who == "" || i == 1 && who == q.container.Name {
			continue
		}
		if x := p.exact[who]; x != nil {
			to = x.lists(to, q, want)
		}
		for _, n := range p.globs.lengths {
			if n > len(who) {
				continue
			}
			for _, g := range p.globs.byPrefix[who[:n]] {
				if matchFlat(g.pattern.glob, who) {
					to = g.index.lists(to, q, want)
				}
			}
		}
	}
	return to
}
