package container

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// Without an event stream a snapshot of the networks is this old at most,
	freshUnwatched = time.Second
	// with one, events make it old; this catches what they might not tell.
	freshWatched = 30 * time.Second
	// How long a snapshot still counts while the runtime does not answer: it
	// changes no addresses then.
	staleLimit = time.Minute
)

// snapshot is what the names of one runtime's containers mean. Never changed
// once made.
type snapshot struct {
	at      time.Time
	changes uint64 // the runtime's counter when it was begun
	byID    map[string]*snapshotEntry
	byNetNS map[NetNSID]*snapshotEntry         // those with networks of their own
	names   map[string]map[string][]netip.Addr // network id → lower-case name → addresses
	hosts   map[string]map[netip.Addr]string   // network id → address → container name
}

type snapshotEntry struct {
	Container
	at time.Time
}

// Resolve answers a name as the runtime's own DNS would answer the container
// with this id (full, or "netns:DEV-INO"): container names, aliases, short ids
// and links on its user-defined networks, bare or followed by ".NETWORK",
// whatever their case. Addresses of both families come together, of the first
// network that knows the name, non-internal networks before internal ones and
// then by name. None, without an error: nobody here has that name.
//
// Answers are at most a second old, or follow the events while [Runtimes.Watch]
// runs. An error means that the runtime could not be asked; the name may exist.
func (r *Runtimes) Resolve(ctx context.Context, id, name string) ([]netip.Addr, error) {
	snap, c, err := r.asker(ctx, id)
	if c == nil {
		return nil, err
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	networks := c.dnsNetworks()
	// a.b.c is tried as "a.b.c", then "a.b" on network "c", then "a" on
	// network "b.c", each first as a link and then as a name: libnetwork's order.
	for cut := len(name); cut > 0; cut = strings.LastIndexByte(name[:cut], '.') {
		host, on := name[:cut], strings.TrimPrefix(name[cut:], ".")
		for _, links := range []bool{true, false} {
			for _, n := range networks {
				target, isLink := n.Links[host]
				if on != "" && !strings.EqualFold(on, n.Name) || links != isLink {
					continue
				}
				if !links {
					target = host
				}
				if addrs := snap.names[n.ID][target]; len(addrs) > 0 {
					return slices.Clone(addrs), nil
				}
			}
		}
	}
	return nil, nil
}

// Reverse answers the name of an address on the user-defined networks of the
// container with this id, as "NAME.NETWORK" (libnetwork's PTR form), or "".
func (r *Runtimes) Reverse(ctx context.Context, id string, addr netip.Addr) (string, error) {
	snap, c, err := r.asker(ctx, id)
	if c == nil {
		return "", err
	}
	for _, n := range c.dnsNetworks() {
		if host := snap.hosts[n.ID][addr.Unmap()]; host != "" {
			return host + "." + n.Name, nil
		}
	}
	return "", nil
}

// dnsNetworks are the networks whose names c sees, in the order they are asked.
func (c *Container) dnsNetworks() []Network {
	var ns []Network
	for _, n := range c.Networks {
		if n.UserDefined && !n.Internal {
			ns = append(ns, n)
		}
	}
	for _, n := range c.Networks {
		if n.UserDefined && n.Internal {
			ns = append(ns, n)
		}
	}
	return ns
}

// asker finds the container that asks, or the one whose namespace it shares.
func (r *Runtimes) asker(ctx context.Context, id string) (*snapshot, *Container, error) {
	var failed []error
	for _, rt := range r.live() {
		snap, err := rt.current(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if e := snap.find(id); e != nil {
			return snap, &e.Container, nil
		}
	}
	if len(failed) > 0 {
		return nil, nil, fmt.Errorf("container names: %w", errors.Join(failed...))
	}
	return nil, nil, nil
}

func (s *snapshot) find(id string) *snapshotEntry {
	e := s.byID[id]
	if e == nil && strings.HasPrefix(id, "netns:") {
		for ns, other := range s.byNetNS {
			if ns.containerID() == id {
				return other
			}
		}
	}
	if e != nil && len(e.Networks) == 0 {
		if owner := s.byNetNS[e.NetNSID]; owner != nil {
			return owner
		}
	}
	return e
}

// fresh is the snapshot if it still counts, else nil.
func (rt *runtime) fresh(now time.Time) *snapshot {
	s := rt.snapshot.Load()
	if s == nil || s.changes != rt.changes.Load() {
		return nil
	}
	limit := freshUnwatched
	if rt.watching.Load() {
		limit = freshWatched
	}
	if now.Sub(s.at) > limit {
		return nil
	}
	return s
}

// current returns a snapshot that counts, making one if needed; callers that
// come meanwhile wait for the same one.
func (rt *runtime) current(ctx context.Context) (*snapshot, error) {
	if s := rt.fresh(time.Now()); s != nil {
		return s, nil
	}
	select {
	case rt.refresh <- struct{}{}:
		defer func() { <-rt.refresh }()
	case <-ctx.Done():
		return nil, fmt.Errorf("ask %s: %w", rt.socket, context.Cause(ctx))
	}
	now := time.Now()
	if s := rt.fresh(now); s != nil {
		return s, nil
	}
	old := rt.snapshot.Load()
	s, err := rt.snap(ctx, old, now)
	if err != nil {
		if old != nil && now.Sub(old.at) < staleLimit && errors.Is(err, ErrUnreachable) {
			return old, nil
		}
		return nil, err
	}
	rt.snapshot.Store(s)
	return s, nil
}

// snap asks the runtime, about those containers only that are new or have
// changed since the old snapshot.
func (rt *runtime) snap(ctx context.Context, old *snapshot, now time.Time) (*snapshot, error) {
	s := &snapshot{
		at: now, changes: rt.changes.Load(),
		byID: map[string]*snapshotEntry{}, byNetNS: map[NetNSID]*snapshotEntry{},
		names: map[string]map[string][]netip.Addr{}, hosts: map[string]map[netip.Addr]string{},
	}
	rt.mu.Lock()
	dirty, expire := rt.dirty, rt.expire || !rt.watching.Load()
	rt.dirty, rt.expire = nil, false
	rt.mu.Unlock()
	failed := true
	defer func() {
		if failed {
			rt.touch("")
		}
	}()

	items, err := rt.list(ctx)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if item.State != "running" && item.State != "paused" {
			continue
		}
		if old != nil && !expire && !dirty[item.ID] {
			if e := old.byID[item.ID]; e != nil && now.Sub(e.at) < freshWatched {
				s.add(e)
				continue
			}
		}
		c, err := rt.inspect(ctx, item.ID)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if c.Running {
			s.add(&snapshotEntry{Container: c, at: now})
		}
	}
	failed = false
	return s, nil
}

func (s *snapshot) add(e *snapshotEntry) {
	s.byID[e.ID] = e
	if len(e.Networks) > 0 {
		s.byNetNS[e.NetNSID] = e
	}
	for _, n := range e.Networks {
		if s.names[n.ID] == nil {
			s.names[n.ID] = map[string][]netip.Addr{}
			s.hosts[n.ID] = map[netip.Addr]string{}
		}
		for _, name := range n.Names {
			s.names[n.ID][name] = append(s.names[n.ID][name], n.Addrs...)
		}
		for _, a := range n.Addrs {
			s.hosts[n.ID][a] = e.Name
		}
	}
}

// touch makes the snapshot old for one container, "" for all.
func (rt *runtime) touch(id string) {
	rt.mu.Lock()
	if id == "" {
		rt.expire = true
	} else {
		if rt.dirty == nil {
			rt.dirty = map[string]bool{}
		}
		rt.dirty[id] = true
	}
	// Containers that come and go while nobody asks for names.
	if len(rt.dirty) > 4096 {
		rt.dirty, rt.expire = nil, true
	}
	rt.mu.Unlock()
	rt.changes.Add(1)
}
