package dnsmap

import (
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

// Limits protect the machine, upstream and the other containers from one
// container. In every field zero means the default.
type Limits struct {
	// QueriesPerSecond, with bursts of twice that; the rest is REFUSED. 1000.
	QueriesPerSecond int
	// NewNames is how many different names below one registrable domain
	// (example.com with everything under it) may be asked for within
	// NamesWindow; more are blocked. It bounds what can be carried out in
	// labels under an allowed wildcard. 300 in 10 minutes. Domains beyond the
	// first 4096 of a window share one such budget.
	NewNames    int
	NamesWindow time.Duration
	// Upstream is how many queries may wait for upstream; the rest is
	// SERVFAIL. 256.
	Upstream int
	// Connections is how many TCP connections may be open; more are closed
	// at once. 64.
	Connections int
	// PerConnection is how many queries of one TCP connection may be under
	// way; the next one is not read until then. 16.
	PerConnection int
}

func (l Limits) orDefaults() Limits {
	return Limits{
		QueriesPerSecond: orDefault(l.QueriesPerSecond, 1000),
		NewNames:         orDefault(l.NewNames, 300),
		NamesWindow:      orDefault(l.NamesWindow, 10*time.Minute),
		Upstream:         orDefault(l.Upstream, 256),
		Connections:      orDefault(l.Connections, 64),
		PerConnection:    orDefault(l.PerConnection, 16),
	}
}

// maxDomains is how many registrable domains are counted apart; those beyond
// share one budget.
const maxDomains = 4096

// budget counts the different names asked for under each registrable domain.
type budget struct {
	names  int
	window time.Duration
	seed   maphash.Seed

	mu      sync.Mutex
	domains map[string]*spent
}

type spent struct {
	until time.Time
	seen  map[uint64]struct{}
}

// allow says whether name may be asked for, and the domain it counts for.
func (b *budget) allow(name string, now time.Time) (domain string, ok bool) {
	domain, err := publicsuffix.EffectiveTLDPlusOne(name)
	if err != nil {
		domain = name // a public suffix itself, or a single label
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.domains[domain]
	if s == nil {
		if len(b.domains) >= maxDomains {
			b.forget(now)
		}
		bucket := domain
		if len(b.domains) >= maxDomains {
			bucket = "" // shared
		}
		if s = b.domains[bucket]; s == nil {
			s = &spent{}
			b.domains[bucket] = s
		}
	}
	if !now.Before(s.until) {
		s.until = now.Add(b.window)
		s.seen = map[uint64]struct{}{}
	}
	h := maphash.String(b.seed, name)
	if _, known := s.seen[h]; known {
		return domain, true
	}
	if len(s.seen) >= b.names {
		return domain, false
	}
	s.seen[h] = struct{}{}
	return domain, true
}

func (b *budget) forget(now time.Time) {
	for d, s := range b.domains {
		if !now.Before(s.until) {
			delete(b.domains, d)
		}
	}
}

// limitKind is one of the limits, in the words of its event.
type limitKind int

const (
	limitQueries limitKind = iota
	limitNames
	limitUpstream
	limitConnections
	limitKinds
)

func (k limitKind) text(l Limits) string {
	switch k {
	case limitQueries:
		return fmt.Sprintf("more than %d DNS queries per second", l.QueriesPerSecond)
	case limitNames:
		return fmt.Sprintf("more than %d names below one domain within %s", l.NewNames, l.NamesWindow)
	case limitUpstream:
		return fmt.Sprintf("more than %d DNS queries waiting for upstream", l.Upstream)
	case limitConnections:
		return fmt.Sprintf("more than %d DNS connections over TCP", l.Connections)
	}
	return "unknown limit"
}

// hits counts how often limits were hit, so that each kind is reported at most
// once a second.
type hits struct {
	mu     sync.Mutex
	counts [limitKinds]int
	next   [limitKinds]time.Time
}

// add counts one hit and returns how many are to be reported now; 0: later.
func (h *hits) add(k limitKind, now time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[k]++
	return h.take(k, now)
}

// due returns how many hits of k are to be reported now.
func (h *hits) due(k limitKind, now time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.take(k, now)
}

func (h *hits) take(k limitKind, now time.Time) int {
	n := h.counts[k]
	if n == 0 || now.Before(h.next[k]) {
		return 0
	}
	h.counts[k] = 0
	h.next[k] = now.Add(time.Second)
	return n
}
