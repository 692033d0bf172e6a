package container

import (
	"context"
	"fmt"
	"maps"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// Starting describes a container that its runtime is about to start: its
// process exists, in its namespaces, and waits to become the container's own.
// It asks the runtime only for what can be had while the runtime itself waits:
// name and labels. Networks are not known yet.
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
	if !r.introduce(ctx, &c) {
		return c, fmt.Errorf("container %s: no runtime that answers knows it: %w", id, ErrNotFound)
	}
	if err := c.requireAttachable(); err != nil {
		return c, fmt.Errorf("container %s: %w", c.Name, err)
	}
	return c, nil
}

// introduce fills in what the runtimes know of a container while one of them
// waits for its start. Docker answers nothing about it then but its list. Podman
// does not even give that; it has told of the container's creation, though. All
// are asked at once, and the first that knows it has said enough.
func (r *Runtimes) introduce(ctx context.Context, c *Container) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked := 0
	answers := make(chan *Container)
	for _, rt := range r.live() {
		for _, ask := range []func(context.Context, string) *Container{rt.listed, rt.announced} {
			asked++
			go func() {
				select {
				case answers <- ask(ctx, c.ID):
				case <-ctx.Done():
				}
			}()
		}
	}
	for range asked {
		if a := <-answers; a != nil {
			c.Name, c.Image, c.Labels, c.Runtime, c.NetworkMode = a.Name, a.Image, a.Labels, a.Runtime, a.NetworkMode
			return true
		}
	}
	return false
}

// listed is what the runtime's list has of a container; nil: nothing.
func (rt *runtime) listed(ctx context.Context, id string) *Container {
	items, err := rt.list(ctx)
	if err != nil {
		return nil // another runtime may know it
	}
	for _, s := range items {
		if s.ID == id {
			return &Container{Name: nameOf(s.Names), Image: s.Image, Labels: s.Labels, Runtime: rt.socket, NetworkMode: s.HostConfig.NetworkMode}
		}
	}
	return nil
}

// announced is what the runtime told when it made a container; nil: nothing that
// it remembers. Such an event has the labels among its attributes, beside name
// and image, which are told last and count.
func (rt *runtime) announced(ctx context.Context, id string) *Container {
	ctx, cancel := context.WithTimeout(ctx, rt.owner.timeout())
	defer cancel()
	cli, err := rt.client()
	if err != nil {
		return nil
	}
	stream := cli.Events(ctx, client.EventsListOptions{
		Since: "1", Filters: client.Filters{}.Add("type", "container").Add("container", id).Add("event", "create"),
	})
	for {
		select {
		case m := <-stream.Messages:
			if m.Action != events.ActionCreate || m.Actor.ID != id {
				continue
			}
			labels := maps.Clone(m.Actor.Attributes)
			c := &Container{Name: labels["name"], Image: labels["image"], Labels: labels, Runtime: rt.socket}
			delete(labels, "name")
			delete(labels, "image")
			return c
		case <-stream.Err:
			return nil
		}
	}
}
