package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"weir/audit"
	"weir/container"
	"weir/redirect"
	"weir/rules"
	"weir/store"
)

// restore brings back every stored attachment: containers that run are
// captured again, with new listeners behind the rules that held them
// meanwhile; those that do not run wait.
func (c *Conductor) restore(ctx context.Context) error {
	stored, err := c.store.Attachments(ctx)
	if err != nil {
		return err
	}
	c.attaching.Lock()
	defer c.attaching.Unlock()
	for _, s := range stored {
		c.attaching.step()
		found, err := c.config.Runtimes.Find(ctx, lookup(s))
		gone := errors.Is(err, container.ErrNotFound)
		if err == nil && s.Runtime == "" && found.NetNSID.String() != s.NetNS {
			// A bare namespace is identified by itself alone.
			gone = true
		}
		switch {
		case s.Desired == store.Detached && locked(s, err):
			c.wait(s)
		case s.Desired == store.Detached:
			err = c.finishDetach(ctx, s, found)
		case gone:
			heirs, listErr := c.heirs(ctx, s.NetNS)
			if err = listErr; len(heirs) > 0 {
				_, _, err = c.attach(ctx, heirs[0], heirs[0].ID)
			}
			err = errors.Join(err, c.finishDetach(ctx, s, found))
		case err == nil:
			c.wait(s)
			var a *attachment
			if a, _, err = c.attach(ctx, found, s.Ref); err != nil {
				c.fail(s.ContainerID, true)
			} else if a.ID != s.ContainerID {
				// Its namespace is another's attachment by now.
				c.mu.Lock()
				delete(c.attachments, s.ContainerID)
				c.mu.Unlock()
			}
		default:
			c.wait(s)
			if errors.Is(err, container.ErrNotRunning) {
				// The namespace is gone; what is left of its lock is not needed.
				err = redirect.Remove(nil, LockName(s.ContainerID))
			}
		}
		if err != nil {
			c.logger.Error("restoring an attachment; the container stays without egress", "container", s.Name, "error", err)
		}
	}
	return nil
}

// lookup is what finds a stored attachment's container again.
func lookup(s store.Attachment) string {
	if s.Runtime == "" {
		return s.Ref
	}
	return s.ContainerID
}

// locked reports whether a stored attachment's namespace may still hold what an
// earlier daemon installed in it although its container could not be looked
// up, with err: until the runtime answers, that cannot be taken away.
func locked(s store.Attachment, err error) bool {
	if err == nil || errors.Is(err, container.ErrNotFound) || errors.Is(err, container.ErrNotRunning) {
		return false
	}
	ns, openErr := redirect.Open(s.NetNSPath)
	if openErr != nil {
		return false
	}
	defer ns.Close()
	return ns.ID() == s.NetNS
}

// wait keeps an attachment whose container does not run, or cannot be looked
// at, until the runtime says that it started.
func (c *Conductor) wait(s store.Attachment) {
	a := &attachment{ID: s.ContainerID, Name: s.Name, ref: s.Ref, runtime: s.Runtime, started: s.StartedAt, since: s.AttachedAt, stored: s}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compile(a, c.now())
	c.attachments[a.ID] = a
}

// finishDetach completes what a killed daemon had begun, or clears away what
// is left of a container that is gone.
func (c *Conductor) finishDetach(ctx context.Context, s store.Attachment, found container.Container) error {
	if found.Running && found.NetNSID.String() == s.NetNS {
		a, _, err := c.attach(ctx, found, s.Ref)
		if err != nil {
			return err
		}
		if a.ID == s.ContainerID { // else its namespace is another one's attachment
			c.mu.Lock()
			l := a.live
			a.live = nil
			delete(c.attachments, a.ID)
			c.mu.Unlock()
			if err := l.close(); err != nil {
				return err
			}
		}
	} else if err := redirect.Remove(nil, LockName(s.ContainerID)); err != nil {
		return err
	}
	c.mu.Lock()
	c.letGo(ctx, s.ContainerID, s.Runtime)
	c.mu.Unlock()
	return c.store.DeleteAttachment(ctx, s.ContainerID)
}

// watchRuntimes follows what happens to containers.
func (c *Conductor) watchRuntimes(ctx context.Context) {
	err := c.config.Runtimes.Watch(ctx, func(e container.Event) { c.handle(ctx, e) })
	if err != nil && ctx.Err() == nil {
		c.logger.Error("watching the container runtimes", "error", err)
	}
}

func (c *Conductor) handle(ctx context.Context, e container.Event) {
	switch e.Kind {
	case container.Started:
		c.started(ctx, e.Container)
	case container.Stopped:
		c.stopped(ctx, e.Container.ID)
	case container.Removed:
		c.removed(ctx, e.Container.ID)
	case container.Renamed:
		c.renamed(ctx, e.Container)
	case container.Resync:
		c.resync(ctx, e)
	case container.Disconnected:
		c.logger.Warn("container runtime does not answer; attached containers stay attached", "runtime", e.Runtime, "error", e.Err)
	}
}

// started attaches a container that was attached before it restarted, or that
// asks for it by its labels.
func (c *Conductor) started(ctx context.Context, found container.Container) {
	if err := c.start(ctx, found); err != nil {
		c.fail(found.ID, true)
		c.logger.Error("attaching a started container", "container", found.Name, "error", err)
		c.log.Record(audit.Event{Type: audit.Lifecycle, ContainerID: found.ID, ContainerName: found.Name, Reason: "attach at start: " + err.Error()})
	}
}

func (c *Conductor) start(ctx context.Context, found container.Container) error {
	c.mu.Lock()
	a := c.attachments[found.ID]
	current := a != nil && a.live != nil && a.netnsID == found.NetNSID
	leaving := a != nil && a.live == nil && a.stored.Desired == store.Detached
	c.mu.Unlock()
	if current {
		return nil
	}
	if leaving {
		return c.Detach(ctx, a.ID)
	}
	labels, err := container.ParseLabels(found.Labels)
	if a == nil && err == nil && !labels.Attach {
		return nil
	}
	_, err = c.attachWithLabels(ctx, found, a != nil)
	return err
}

// retry attaches what was to be attached, or detached, and could not be when
// its container or the daemon started, and anew what lost its listeners.
func (c *Conductor) retry(ctx context.Context) {
	c.releaseDeaf()
	var failed []string
	c.mu.Lock()
	for id, a := range c.attachments {
		if a.live == nil && a.failed {
			failed = append(failed, id)
		}
	}
	c.mu.Unlock()
	for _, id := range failed {
		found, err := c.config.Runtimes.Find(ctx, id)
		switch {
		case err == nil:
			err = c.start(ctx, found)
		case errors.Is(err, container.ErrNotRunning), errors.Is(err, container.ErrNotFound):
			c.fail(id, false) // its next start will be told
			continue
		}
		if err != nil {
			c.logger.Error("attaching a container again", "container", id, "error", err)
		}
	}
}

// releaseDeaf makes attachments whose listeners were destroyed ones that could
// not be attached. Their containers stay locked in.
func (c *Conductor) releaseDeaf() {
	c.attaching.Lock()
	defer c.attaching.Unlock()
	var deaf []*attachment
	c.mu.Lock()
	for _, a := range c.attachments {
		if a.live != nil && a.deaf {
			a.deaf, a.failed = false, true
			deaf = append(deaf, a)
		}
	}
	c.mu.Unlock()
	for _, a := range deaf {
		c.attaching.step()
		c.dropForTakeover(a)
	}
}

// fail notes whether an attachment, if it is still wanted, is to be tried again.
func (c *Conductor) fail(id string, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.attachments[id]; a != nil {
		a.failed = failed
	}
}

// attachWithLabels attaches a container and opens the session that its labels
// ask for: the first time, and at a later start when the container has no live
// session any more, so that one that slept longer than its session's life
// comes back as it was meant to be. With again, one that was detached meanwhile
// is left alone.
func (c *Conductor) attachWithLabels(ctx context.Context, found container.Container, again bool) (*attachment, error) {
	labels, err := container.ParseLabels(found.Labels)
	ref := found.ID
	c.attaching.Lock()
	c.mu.Lock()
	known := c.attachments[found.ID]
	if known != nil {
		ref = known.ref
	}
	c.mu.Unlock()
	if again && known == nil {
		c.attaching.Unlock()
		return nil, nil
	}
	a, created, attachErr := c.attach(ctx, found, ref)
	c.attaching.Unlock()
	switch {
	case attachErr != nil:
		return nil, attachErr
	case err != nil || !created || !labels.Session || known != nil && c.hasSession(a):
		return a, err
	}
	return a, c.labelSession(ctx, found, labels)
}

func (c *Conductor) hasSession(a *attachment) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return rules.Current(c.sessions, a.who(), c.now()) != nil
}

// AttachStarting attaches a container that its runtime is about to start,
// before its first instruction, and opens the session that its labels ask
// for. pid is its process. When ctx ends first, the error is of kind
// Unavailable.
func (c *Conductor) AttachStarting(ctx context.Context, id string, pid int) (Status, error) {
	var a *attachment
	found, err := c.config.Runtimes.Starting(ctx, id, pid)
	if err != nil {
		err = containerError(err)
	} else {
		a, err = c.attachWithLabels(ctx, found, false)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		// Not the container's fault: the daemon ends, or who asked is gone.
		return Status{}, &Error{Unavailable, fmt.Errorf("not attached before the end: %w", err)}
	case err != nil:
		return Status{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return a.status(), nil
}

// labelSession opens the session that a container's labels ask for.
func (c *Conductor) labelSession(ctx context.Context, found container.Container, labels container.SessionLabels) error {
	spec := Spec{ID: "label-" + found.ShortID(), Container: found.ID, TTL: labels.TTL, AllowAll: labels.AllowAll, Ask: labels.Ask}
	if labels.PolicyFile != "" {
		text, err := os.ReadFile(labels.PolicyFile)
		if err != nil {
			return fmt.Errorf("label %s: %w", container.LabelPolicy, err)
		}
		spec.Policy = text
	}
	_, err := c.CreateSession(ctx, spec)
	return err
}

// stopped lets an attachment wait for its container to start again.
func (c *Conductor) stopped(ctx context.Context, id string) {
	c.mu.Lock()
	a := c.attachments[id]
	live := a != nil && a.live != nil
	c.mu.Unlock()
	if !live {
		return
	}
	// The news may be late, and other containers may live on in the namespace:
	// as long as somebody is in it, it stays captured.
	if found, err := c.config.Runtimes.Find(ctx, id); err == nil && found.NetNSID == a.netnsID {
		return
	}
	if others, err := c.config.Runtimes.Sharing(ctx, a.netnsID); err != nil || len(others) > 0 {
		return
	}
	c.attaching.Lock()
	defer c.attaching.Unlock()
	c.dropLive(a)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lifecycle(id, "", "container stopped; it is attached again when it starts")
}

// removed forgets a container that is no more, and ends its sessions.
func (c *Conductor) removed(ctx context.Context, id string) {
	c.mu.Lock()
	a := c.attachments[id]
	live := a != nil && a.live != nil
	c.mu.Unlock()
	if a == nil {
		return
	}
	var heirs []container.Container
	if live {
		var err error
		if heirs, err = c.heirs(ctx, a.netnsID.String()); err != nil && len(heirs) == 0 {
			c.logger.Error("a removed container stays attached: whether others use its network is not known", "container", a.Name, "error", err)
			return
		}
	}
	c.attaching.Lock()
	defer c.attaching.Unlock()
	if len(heirs) > 0 {
		c.dropForTakeover(a)
		if _, _, err := c.attach(ctx, heirs[0], heirs[0].ID); err != nil {
			c.logger.Error("attaching who shared a removed container's network; it stays without egress", "container", heirs[0].Name, "error", err)
		}
	}
	c.dropLive(a)
	// One that waited since the daemon's start may have a lock from before it.
	if err := redirect.Remove(nil, LockName(id)); err != nil {
		c.logger.Error("removing what locked a removed container", "container", a.Name, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.store.DeleteAttachment(ctx, id); err != nil && !errors.Is(err, store.ErrNotFound) {
		c.logger.Error("forgetting a removed container", "container", a.Name, "error", err)
	}
	c.endSessionsOf(ctx, id, "ended: its container was removed")
	c.lifecycle(id, "", "container removed")
	delete(c.attachments, id)
}

// endSessionsOf ends all sessions of a container. mu is held.
func (c *Conductor) endSessionsOf(ctx context.Context, id, how string) {
	now := c.now()
	for i := len(c.sessions) - 1; i >= 0; i-- {
		if s := c.sessions[i]; s.Container == id {
			if err := c.store.EndSession(ctx, s.ID, now); err != nil {
				c.logger.Error("ending a session", "session", s.ID, "error", err)
			}
			c.forget(i, now, how)
		}
	}
}

// letGo ends the sessions of a bare namespace that is not attached any more:
// nothing keeps it alive now, and the kernel gives its number to the next one,
// which is somebody else. mu is held.
func (c *Conductor) letGo(ctx context.Context, id, runtime string) {
	if runtime == "" {
		c.endSessionsOf(ctx, id, "ended: its namespace was detached, and its number may become another's")
	}
}

// heirs are the running containers that live on in a namespace. When the one
// that it was attached as is gone, one of them takes its place: they must not
// come free. The sessions were the other's, and end with it.
func (c *Conductor) heirs(ctx context.Context, netns string) ([]container.Container, error) {
	all, err := c.config.Runtimes.List(ctx)
	return slices.DeleteFunc(all, func(o container.Container) bool { return !o.Running || o.NetNSID.String() != netns }), err
}

// renamed keeps patterns over names true.
func (c *Conductor) renamed(ctx context.Context, found container.Container) {
	c.attaching.Lock()
	defer c.attaching.Unlock()
	c.mu.Lock()
	a := c.attachments[found.ID]
	if a == nil || a.Name == found.Name {
		c.mu.Unlock()
		return
	}
	if a.live == nil {
		waiting := &attachment{ID: a.ID, Name: found.Name, ref: a.ref, runtime: a.runtime, started: a.started, since: a.since, stored: a.stored, failed: a.failed}
		c.compile(waiting, c.now())
		c.attachments[a.ID] = waiting
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	// The servers carry the name in their facts: attached anew, they carry
	// the new one. The capture's rules stay in force meanwhile.
	c.dropForTakeover(a)
	if _, _, err := c.attach(ctx, found, a.ref); err != nil {
		c.logger.Error("attaching a renamed container again; it stays without egress", "container", found.Name, "error", err)
	}
}

// dropForTakeover ends serving and leaves the container locked in, for an
// attach that follows.
func (c *Conductor) dropForTakeover(a *attachment) {
	c.mu.Lock()
	l := a.live
	a.live = nil
	c.mu.Unlock()
	if l != nil {
		if err := l.release(); err != nil {
			c.logger.Error("releasing", "container", a.Name, "error", err)
		}
	}
}

// resync compares what one runtime has with what is attached.
func (c *Conductor) resync(ctx context.Context, e container.Event) {
	have := map[string]container.Container{}
	for _, found := range e.Containers {
		have[found.ID] = found
		if found.Running {
			c.started(ctx, found)
		}
	}
	c.mu.Lock()
	var stopped, removed []string
	for id, a := range c.attachments {
		if a.runtime != e.Runtime || strings.HasPrefix(id, "netns:") {
			continue
		}
		if found, ok := have[id]; !ok {
			removed = append(removed, id)
		} else if !found.Running && a.live != nil {
			stopped = append(stopped, id)
		}
	}
	c.mu.Unlock()
	for _, id := range stopped {
		c.stopped(ctx, id)
	}
	for _, id := range removed {
		c.removed(ctx, id)
	}
}
