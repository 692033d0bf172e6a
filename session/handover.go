package session

import (
	"context"
	"sync"

	"weir/redirect"
)

// inherited takes the listeners that an earlier process left for a namespace;
// nil when there are none.
func (c *Conductor) inherited(netns string) *redirect.Sockets {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.config.Inherited[netns]
	delete(c.config.Inherited, netns)
	return s
}

// dropInherited closes what no attachment took over.
func (c *Conductor) dropInherited() {
	c.mu.Lock()
	left := c.config.Inherited
	c.config.Inherited = nil
	c.mu.Unlock()
	for netns, s := range left {
		if err := s.Close(); err != nil {
			c.logger.Error("closing inherited listeners", "netns", netns, "error", err)
		}
		c.forgetSockets(netns)
	}
}

// keepSockets has an attachment's listeners kept beyond this process.
func (c *Conductor) keepSockets(l *live) {
	if c.config.Keep == nil {
		return
	}
	s, err := l.kernel.Sockets()
	if err != nil {
		c.logger.Error("keeping listeners", "error", err)
		return
	}
	c.config.Keep(l.netns.ID(), s)
}

func (c *Conductor) forgetSockets(netns string) {
	if c.config.Forget != nil {
		c.config.Forget(netns)
	}
}

// Handover has Run keep duplicates of all listeners when it ends, for the
// process that comes next; Sockets returns them then.
func (c *Conductor) Handover() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handover = map[string]*redirect.Sockets{}
}

// Sockets are the listeners that were kept, by "dev:ino" of their namespace;
// nil unless Handover was called before Run ended.
func (c *Conductor) Sockets() map[string]*redirect.Sockets {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handover
}

// release takes on no further connections, gives the live ones until Drain to
// end, and leaves every container locked in.
func (c *Conductor) release() {
	c.attaching.Lock()
	defer c.attaching.Unlock()
	c.mu.Lock()
	handover := c.handover
	var all []*attachment
	for _, a := range c.attachments {
		if a.live != nil {
			all = append(all, a)
		}
	}
	c.mu.Unlock()
	drain, cancel := context.WithTimeout(context.Background(), c.config.Drain)
	defer cancel()
	var draining sync.WaitGroup
	for _, a := range all {
		draining.Go(func() {
			// An error says that the rest was cut; their events say so too.
			_ = a.live.proxy.Shutdown(drain)
		})
	}
	draining.Wait()
	for _, a := range all {
		c.attaching.step()
		if handover != nil {
			if s, err := a.live.kernel.Sockets(); err != nil {
				c.logger.Error("handing over listeners", "container", a.Name, "error", err)
			} else {
				handover[a.live.netns.ID()] = s
			}
		}
		if err := a.live.release(); err != nil {
			c.logger.Error("releasing", "container", a.Name, "error", err)
		}
	}
}
