package container

import (
	"context"
	"fmt"
)

// Starting describes a container that its runtime is about to start: its
// process exists, in its namespaces, and waits to become the container's own.
// It asks the runtime only for what can be had while the runtime itself waits
// (its list; Docker answers nothing else about a container that it is
// starting): name and labels. Networks are not known yet.
//
// Errors are those of [Runtimes.Find].
func (r *Runtimes) Starting(ctx context.Context, id string, pid int) (Container, error) {
	netns, start, err := processNetNS(pid)
	if isGone(err) {
		return Container{}, fmt.Errorf("no process %d: %w", pid, ErrNotFound)
	}
	if err != nil {
		return Container{}, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	c := Container{ID: id, Running: true, PID: pid, PIDStart: start, NetNS: procPath(pid, "ns/net"), NetNSID: netns}
	if c.HostNetwork, err = isHostNetNS(netns); err != nil {
		return Container{}, err
	}
	if err := c.readCapabilities(); err != nil {
		return Container{}, fmt.Errorf("capabilities of process %d: %w", pid, err)
	}
	for _, rt := range r.live() {
		items, err := rt.list(ctx)
		if err != nil {
			continue // another runtime may know it
		}
		for _, s := range items {
			if s.ID == id {
				c.Name, c.Image, c.Labels, c.Runtime = nameOf(s.Names), s.Image, s.Labels, rt.socket
				c.NetworkMode = s.HostConfig.NetworkMode
			}
		}
	}
	if c.Runtime == "" {
		return c, fmt.Errorf("container %s: no runtime that answers knows it: %w", id, ErrNotFound)
	}
	if err := c.requireAttachable(); err != nil {
		return c, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return c, nil
}
