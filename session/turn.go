package session

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// turn is a lock whose holder can be seen to get on, or not. The zero value is
// free.
type turn struct {
	mu    sync.Mutex
	since atomic.Pointer[time.Time] // its last step; nil while nobody has it
}

func (t *turn) Lock() {
	t.mu.Lock()
	t.step()
}

func (t *turn) Unlock() {
	t.since.Store(nil)
	t.mu.Unlock()
}

// step says that the holder gets on: who works on many attachments in one turn
// calls it for each.
func (t *turn) step() {
	now := time.Now()
	t.since.Store(&now)
}

// turnLimit is how long work on one attachment may take before it counts as
// hanging. Usually it is milliseconds; the connections that are given time to
// end, and a runtime that does not answer, make it seconds.
const turnLimit = time.Minute

// Healthy fails when the work on an attachment hangs, and waits as long as
// sessions and rules cannot be read. However many wait for their turn, and
// however many there are to restore, it is fine as long as one after the other
// is done.
func (c *Conductor) Healthy() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if since := c.attaching.since.Load(); since != nil && time.Since(*since) > turnLimit {
		return fmt.Errorf("the work on an attachment hangs for %s", time.Since(*since).Round(time.Second))
	}
	return nil
}
