package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"weir/container"
	"weir/redirect"
	"weir/rules"
	"weir/store"
)

// Status is an attachment as it is shown.
type Status struct {
	ContainerID string
	Name        string
	NetNS       string // "dev:ino"
	Interfaces  []redirect.Interface
	AttachedAt  time.Time
	Waiting     bool // stopped; attached again when it starts
	Closed      []redirect.Connection
	Warnings    []string
	Session     string // current, or ""
	AllowAll    bool
	Ask         bool
	Flows       int
	Denied      int64
}

func (a *attachment) status() Status {
	p := a.policy.Load()
	s := Status{
		ContainerID: a.ID, Name: a.Name, NetNS: a.netnsID.String(), AttachedAt: a.since, Waiting: a.live == nil,
		Warnings: a.warnings, Session: p.Session(), AllowAll: p.AllowAll(), Ask: p.Asks(), Denied: a.denied.Load(),
	}
	if l := a.live; l != nil {
		s.Interfaces, s.Closed, s.Flows = l.kernel.Interfaces(), l.closed, l.proxy.Open()
	}
	return s
}

// Attach puts a running container behind the firewall. Attaching again, or
// attaching another container of the same namespace, answers with what is
// there; created is false then.
func (c *Conductor) Attach(ctx context.Context, ref string) (s Status, created bool, err error) {
	found, err := c.config.Runtimes.Find(ctx, ref)
	if err != nil {
		return s, false, containerError(err)
	}
	c.attaching.Lock()
	defer c.attaching.Unlock()
	a, created, err := c.attach(ctx, found, ref)
	if err != nil {
		return s, false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return a.status(), created, nil
}

// attach does what Attach says. attaching is held.
func (c *Conductor) attach(ctx context.Context, found container.Container, ref string) (*attachment, bool, error) {
	c.mu.Lock()
	if a := c.attachedTo(found); a != nil {
		c.mu.Unlock()
		return a, false, nil
	}
	old := c.attachments[found.ID]
	c.mu.Unlock()
	if old != nil && old.live != nil {
		// The container has a new namespace and nobody told us yet.
		c.dropLive(old)
	}

	now := c.now().UTC().Truncate(time.Microsecond) // as it is stored: a restart does not change it
	a := &attachment{
		ID: found.ID, Name: found.Name, ref: ref, runtime: found.Runtime, netnsID: found.NetNSID,
		warnings: found.Warnings(), started: found.StartedAt.Truncate(time.Microsecond), since: now,
	}
	// A namespace's number alone does not say: after a restart the next one may have it.
	if old != nil && old.started.Equal(a.started) && (old.netnsID == found.NetNSID || old.stored.NetNS == found.NetNSID.String()) {
		a.since = old.since // taken over, not attached anew
	}
	record := store.Attachment{
		ContainerID: a.ID, Ref: ref, Name: a.Name, Runtime: a.runtime, NetNS: a.netnsID.String(), NetNSPath: found.NetNS,
		StartedAt: a.started, AttachedAt: a.since,
	}
	names, err := c.store.Names(ctx, a.ID)
	if err != nil {
		return nil, false, err
	}
	// Stored before anything is installed: a daemon that is killed in between
	// finds it, and either completes it or takes it away.
	if err := c.store.PutAttachment(ctx, record); err != nil {
		return nil, false, err
	}
	c.mu.Lock()
	c.compile(a, now)
	c.mu.Unlock()
	l, err := c.open(ctx, a, found, names)
	if err != nil {
		if old == nil {
			err = errors.Join(err, c.store.DeleteAttachment(context.WithoutCancel(ctx), a.ID))
		}
		return nil, false, fmt.Errorf("attach %s: %w", found.Name, err)
	}
	for _, i := range l.kernel.Interfaces() {
		record.Interfaces = append(record.Interfaces, i.Host)
		if !i.Locked && i.Reason != "" {
			a.warnings = append(a.warnings, fmt.Sprintf("interface %s has no lock on the host's side: %s", i.Name, i.Reason))
		}
	}
	for _, conn := range l.closed {
		record.Closed = append(record.Closed, fmt.Sprintf("%s %s %s", conn.Protocol, conn.Local, conn.Remote))
	}
	if err := c.store.PutAttachment(ctx, record); err != nil {
		c.logger.Error("storing an attachment's details", "container", a.Name, "error", err)
	}
	c.keepSockets(l)
	c.mu.Lock()
	a.live = l
	c.attachments[a.ID] = a
	// What changed while the kernel was worked on counts as well.
	c.compile(a, c.now())
	c.lifecycle(a.ID, a.policy.Load().Session(), "attached; %d connections from before were cut", len(l.closed))
	c.mu.Unlock()
	c.wake()
	return a, true, nil
}

// Detach gives a container its network back, exactly as it was.
func (c *Conductor) Detach(ctx context.Context, ref string) error {
	a, err := c.attachment(ctx, ref)
	if err != nil {
		return err
	}
	c.attaching.Lock()
	defer c.attaching.Unlock()
	c.mu.Lock()
	if c.attachments[a.ID] != a {
		c.mu.Unlock()
		return notAttached(ref)
	}
	l := a.live
	c.mu.Unlock()
	record := store.Attachment{ContainerID: a.ID, Ref: a.ref, Name: a.Name, Runtime: a.runtime, NetNS: a.netnsID.String(), AttachedAt: a.since}
	var found container.Container
	if l == nil {
		// Stopped, or a detach before this one failed half-way.
		if a.stored.ContainerID != "" {
			record = a.stored
		}
		if found, err = c.config.Runtimes.Find(ctx, lookup(record)); err == nil {
			record.NetNS = found.NetNSID.String()
		} else if locked(record, err) {
			return fmt.Errorf("detach %s: %w", a.Name, containerError(err))
		}
	}
	record.Desired = store.Detached
	if err := c.store.PutAttachment(ctx, record); err != nil {
		return err
	}
	// From here on it is done to the end, whether or not the caller waits.
	ctx = context.WithoutCancel(ctx)
	if l == nil {
		if err := c.finishDetach(ctx, record, found); err != nil {
			c.leaving(a, record)
			return fmt.Errorf("detach %s: %w", a.Name, err)
		}
	} else {
		err := l.close()
		c.mu.Lock()
		a.live = nil
		c.mu.Unlock()
		if err != nil {
			c.leaving(a, record)
			return fmt.Errorf("detach %s: %w; what is left keeps it locked in: run 'weir detach %s' again", a.Name, err, a.Name)
		}
		if err := c.store.DeleteAttachment(ctx, a.ID); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.letGo(ctx, a.ID, a.runtime)
	c.lifecycle(a.ID, "", "detached")
	delete(c.attachments, a.ID)
	return nil
}

// leaving notes that a detach is still to be completed.
func (c *Conductor) leaving(a *attachment, record store.Attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.stored, a.failed = record, true
}

// Attachments lists what is attached or waits for its container to start, by
// name.
func (c *Conductor) Attachments() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Status
	for _, a := range c.attachments {
		list = append(list, a.status())
	}
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ContainerID, b.ContainerID))
	})
	return list
}

// Attachment returns one attachment, by anything that names its container.
func (c *Conductor) Attachment(ctx context.Context, ref string) (Status, error) {
	a, err := c.attachment(ctx, ref)
	if err != nil {
		return Status{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return a.status(), nil
}

// attachment finds an attachment by name, id or unique id prefix; what it does
// not know by name, the runtime may.
func (c *Conductor) attachment(ctx context.Context, ref string) (*attachment, error) {
	a := c.knownAs(ctx, ref)
	c.mu.Lock()
	var prefixed []string
	for id := range maps.Keys(c.attachments) {
		if a == nil && len(ref) > 0 && len(ref) < len(id) && id[:len(ref)] == ref {
			prefixed = append(prefixed, id)
		}
	}
	if a == nil && len(prefixed) == 1 {
		a = c.attachments[prefixed[0]]
	}
	c.mu.Unlock()
	if a != nil {
		return a, nil
	}
	if len(prefixed) > 1 {
		slices.Sort(prefixed)
		return nil, &Error{Conflict, fmt.Errorf("%q is the beginning of several ids: %v; give more digits", ref, prefixed)}
	}
	found, err := c.config.Runtimes.Find(ctx, ref)
	if err != nil {
		if errors.Is(err, container.ErrNotFound) || errors.Is(err, container.ErrUnreachable) {
			return nil, notAttached(ref)
		}
		return nil, containerError(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.attachments[found.ID]; a != nil {
		return a, nil
	}
	if a := c.attachedTo(found); a != nil {
		return a, nil
	}
	return nil, notAttached(ref)
}

// attachedTo finds the live attachment of a container's namespace. mu is held.
func (c *Conductor) attachedTo(found container.Container) *attachment {
	for _, a := range c.attachments {
		if a.live != nil && a.netnsID == found.NetNSID {
			return a
		}
	}
	return nil
}

// attachedAs finds an attachment by its exact id or name. mu is held.
func (c *Conductor) attachedAs(ref string) *attachment {
	if ref == "" {
		return nil
	}
	if a := c.attachments[ref]; a != nil {
		return a
	}
	for _, a := range c.attachments {
		if a.Name == ref || a.ref == ref {
			return a
		}
	}
	return nil
}

// knownAs is attachedAs for a name that a caller gave. What a process id or a
// path stood for when it was attached it may not stand for any more.
func (c *Conductor) knownAs(ctx context.Context, ref string) *attachment {
	c.mu.Lock()
	a := c.attachedAs(ref)
	c.mu.Unlock()
	if a != nil && a.runtime == "" && a.ID != ref {
		if found, err := c.config.Runtimes.Find(ctx, ref); err == nil && found.ID != a.ID {
			return nil
		}
	}
	return a
}

func notAttached(ref string) error {
	return &Error{NotFound, fmt.Errorf("container %q is not attached: see 'weir ps', or attach it with 'weir attach %s'", ref, ref)}
}

// containerError says what kind of error a failed lookup is.
func containerError(err error) error {
	kind := Invalid
	var ambiguous *container.AmbiguousError
	switch {
	case errors.Is(err, container.ErrUnreachable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		kind = Unavailable
	case errors.Is(err, container.ErrNotFound):
		kind = NotFound
	case errors.As(err, &ambiguous), errors.Is(err, container.ErrNotRunning), errors.Is(err, container.ErrGone):
		kind = Conflict
	}
	return &Error{kind, err}
}

// dropLive takes away what runs for a container whose namespace is gone or
// going: its processes have ended, and the host-side lock goes with them.
func (c *Conductor) dropLive(a *attachment) {
	c.mu.Lock()
	l := a.live
	a.live = nil
	c.mu.Unlock()
	if l == nil {
		return
	}
	if err := l.close(); err != nil {
		c.logger.Error("taking away a stopped container's capture", "container", a.Name, "error", err)
	}
}

// Names lists the names that a container resolved and that still count.
func (c *Conductor) Names(ctx context.Context, ref string) ([]NameEntry, error) {
	a, err := c.attachment(ctx, ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	l := a.live
	c.mu.Unlock()
	var list []NameEntry
	if l != nil {
		for _, e := range l.names.Entries() {
			list = append(list, NameEntry{Name: e.Name, Address: e.Addr.String(), Until: e.Expires})
		}
	}
	slices.SortFunc(list, func(a, b NameEntry) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Address, b.Address))
	})
	return list, nil
}

// NameEntry is one name that a container resolved.
type NameEntry struct {
	Name    string
	Address string
	Until   time.Time
}

// Effective is what holds for one container now.
type Effective struct {
	Container string
	Session   string // current, or ""
	AllowAll  bool
	Ask       bool
	Rules     []ListedRule // in the order in which they are asked
	// Documents are the inspected endpoints in force as YAML, by layer.
	Documents map[string]string
}

// Policy returns what holds for a container now.
func (c *Conductor) Policy(ctx context.Context, ref string) (Effective, error) {
	a, err := c.attachment(ctx, ref)
	if err != nil {
		return Effective{}, err
	}
	e, err := c.effective(a)
	shadow(e.Rules)
	return e, err
}

func (c *Conductor) effective(a *attachment) (e Effective, err error) {
	p := a.policy.Load()
	e = Effective{Container: a.ID, Session: p.Session(), AllowAll: p.AllowAll(), Ask: p.Asks(), Documents: map[string]string{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range p.Layers() {
		var inspected []rules.Rule
		for _, r := range l.InOrder() {
			if !r.AppliesTo(a.who()) || !r.Expires.IsZero() && !r.Expires.After(c.now()) {
				continue
			}
			e.Rules = append(e.Rules, ListedRule{Rule: r, LastUsed: c.used[r.ID]})
			if r.Endpoint != nil {
				inspected = append(inspected, r)
			}
		}
		if len(inspected) > 0 {
			if e.Documents[string(l.Source())], err = rules.FormatDocument(inspected); err != nil {
				return e, err
			}
		}
	}
	return e, nil
}
