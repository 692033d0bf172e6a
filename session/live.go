package session

import (
	"context"
	"fmt"

	"weir/proxy"
)

// Flow is a connection as it is at one moment.
type Flow = proxy.Flow

// Flows lists the connections of a container that are open now, oldest first.
func (c *Conductor) Flows(ctx context.Context, ref string) ([]Flow, error) {
	l, err := c.liveOf(ctx, ref)
	if l == nil || err != nil {
		return nil, err
	}
	return l.proxy.Flows(), nil
}

// Kill cuts one connection of a container. Nothing keeps the container from
// opening it again: a rule does that.
func (c *Conductor) Kill(ctx context.Context, ref string, id uint64) error {
	l, err := c.liveOf(ctx, ref)
	if err != nil {
		return err
	}
	if l == nil || !l.proxy.Kill(id) {
		return &Error{NotFound, fmt.Errorf("container %s has no connection %d: it has ended; see 'weir flows %s'", ref, id, ref)}
	}
	return nil
}

// liveOf is what runs for an attached container; nil while it is stopped.
func (c *Conductor) liveOf(ctx context.Context, ref string) (*live, error) {
	a, err := c.attachment(ctx, ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return a.live, nil
}
