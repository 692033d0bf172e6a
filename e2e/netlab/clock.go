package netlab

import (
	"sync/atomic"
	"time"
)

// Clock is the real one, moved ahead by tests. The zero value is on time. Safe
// for concurrent use.
type Clock struct{ ahead atomic.Int64 }

// Now is what the clock shows.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Advance moves it.
func (c *Clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }
