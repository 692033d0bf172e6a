package session

import (
	"slices"
	"strings"

	"weir/proxy"
)

// Meter and Side are the data path's.
type (
	Meter = proxy.Meter
	Side  = proxy.Side
)

// The sides of an inspected connection.
const (
	ClientSide = proxy.ClientSide
	ServerSide = proxy.ServerSide
)

// A Load is what all containers together have under way.
type Load struct {
	Levels []Level // by name
	// BytesIn and BytesOut are what was moved so far by what is open now.
	BytesIn, BytesOut int64
}

// A Level is how much of a limit that every container has for itself is in use.
type Level struct {
	Limit string
	Now   int64 // of all containers
	// Fullest is the part that is in use in the container that has least left:
	// from 0 to 1, where it begins to be refused.
	Fullest float64
}

// Load says what is under way.
func (c *Conductor) Load() Load {
	c.mu.Lock()
	var running []*live
	for _, a := range c.attachments {
		if a.live != nil {
			running = append(running, a.live)
		}
	}
	c.mu.Unlock()

	var sum Load
	levels := map[string]*Level{}
	for _, l := range running {
		load := l.proxy.Load()
		sum.BytesIn += load.BytesIn
		sum.BytesOut += load.BytesOut
		waiting, most := l.dns.Waiting()
		for _, of := range slices.Concat(load.Levels, l.relay.Levels(), []proxy.Level{{Limit: "dns_upstream", Now: int64(waiting), Most: int64(most)}}) {
			level := levels[of.Limit]
			if level == nil {
				level = &Level{Limit: of.Limit}
				levels[of.Limit] = level
			}
			level.Now += of.Now
			level.Fullest = max(level.Fullest, float64(of.Now)/float64(of.Most))
		}
	}
	for _, level := range levels {
		sum.Levels = append(sum.Levels, *level)
	}
	slices.SortFunc(sum.Levels, func(a, b Level) int { return strings.Compare(a.Limit, b.Limit) })
	return sum
}
