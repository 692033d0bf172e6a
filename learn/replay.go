package learn

import (
	"cmp"
	"slices"
	"time"

	"weir/audit"
	"weir/rules"
)

// A Change is something that a container did and that a policy would answer
// otherwise than it was answered. Addresses and programs that make no
// difference are counted together.
type Change struct {
	What   string // see Observation.String
	Binary string // "": of any, or not known
	Reason string // what the policy says
	Count  int
	Last   time.Time
}

// Report is what a policy would have made of what was seen.
type Report struct {
	Same    int      // attempts that would be answered as they were
	Denied  []Change // were allowed and would be denied
	Allowed []Change // were denied and would be allowed
	// Unknown were allowed and would be looked into: connections to an
	// inspected endpoint none of whose requests was seen.
	Unknown []Change
}

// Replay asks what a policy would have made of what was seen.
func Replay(p *rules.Policy, obs []Observation, who rules.Container, now time.Time) Report {
	type site struct {
		place string
		port  uint16
	}
	requested := map[site]bool{}
	for i := range obs {
		if o := &obs[i]; o.Type == audit.HTTP {
			requested[site{o.place(), o.Port}] = true
		}
	}
	var r Report
	var denied, allowed, unknown changes
	for i := range obs {
		o := &obs[i]
		d, inspect := judge(p, o, who, now)
		switch admitted := d.Verdict == rules.Allow || inspect; {
		case o.Allowed && !admitted:
			denied.add(o, d.Reason)
		case !o.Allowed && admitted:
			allowed.add(o, d.Reason)
		case o.Allowed && inspect && !requested[site{o.place(), o.Port}]:
			unknown.add(o, d.Reason)
		default:
			r.Same += o.Count
		}
	}
	r.Denied, r.Allowed, r.Unknown = denied.list(), allowed.list(), unknown.list()
	return r
}

type changes map[Change]*Change

func (c *changes) add(o *Observation, reason string) {
	if *c == nil {
		*c = changes{}
	}
	k := Change{What: o.String(), Binary: o.Binary, Reason: reason}
	if (*c)[k] == nil {
		one := k
		(*c)[k] = &one
	}
	one := (*c)[k]
	one.Count += o.Count
	if o.Last.After(one.Last) {
		one.Last = o.Last
	}
}

func (c changes) list() []Change {
	list := make([]Change, 0, len(c))
	for _, one := range c {
		list = append(list, *one)
	}
	slices.SortFunc(list, func(a, b Change) int {
		return cmp.Or(-cmp.Compare(a.Count, b.Count), cmp.Compare(a.What, b.What), cmp.Compare(a.Binary, b.Binary), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}
