package dnsmap

import (
	"hash/maphash"
	"sync"
	"time"
)

// key is one question; the class is always IN.
type key struct {
	name  string // lower case, without the trailing dot
	qtype uint16
}

const cacheShards = 16

// entryCost is what an entry takes besides its packed bytes, roughly.
const entryCost = 256

// cache keeps packed answers until they run out. It is bounded in bytes; when
// it is full, whichever of a few entries picked at random runs out first makes
// room, so that keeping order costs nothing on the read path.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]shard
	limit  int // bytes per shard
}

type shard struct {
	mu      sync.RWMutex
	answers map[key]*answer
	bytes   int
}

func newCache(limit int) *cache {
	c := &cache{seed: maphash.MakeSeed(), limit: max(1, limit/cacheShards)}
	for i := range c.shards {
		c.shards[i].answers = map[key]*answer{}
	}
	return c
}

func (c *cache) shard(k key) *shard {
	return &c.shards[(maphash.String(c.seed, k.name)+uint64(k.qtype))%cacheShards]
}

// get returns nil when there is no answer that still counts.
func (c *cache) get(k key, now time.Time) *answer {
	s := c.shard(k)
	s.mu.RLock()
	a := s.answers[k]
	s.mu.RUnlock()
	if a == nil || !a.expires.After(now) {
		return nil
	}
	return a
}

func (c *cache) put(k key, a *answer, now time.Time) {
	if !a.expires.After(now) || cost(a) > c.limit {
		return
	}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.answers[k]; old != nil {
		s.bytes -= cost(old)
	}
	s.answers[k] = a
	s.bytes += cost(a)
	for s.bytes > c.limit {
		s.evict(k)
	}
}

// evict removes one entry other than keep, which alone fits.
func (s *shard) evict(keep key) {
	var victim key
	var first time.Time
	looked := 0
	for k, a := range s.answers {
		if k == keep {
			continue
		}
		if looked == 0 || a.expires.Before(first) {
			victim, first = k, a.expires
		}
		if looked++; looked == 8 {
			break
		}
	}
	s.bytes -= cost(s.answers[victim])
	delete(s.answers, victim)
}

func cost(a *answer) int { return entryCost + len(a.packed) + 8*len(a.ttls) + 32*len(a.addrs) }
