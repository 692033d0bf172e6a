package session

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/net/publicsuffix"

	"weir/audit"
	"weir/learn"
	"weir/rules"
)

// maxInspect is how many hosts a session's learning mode looks into.
const maxInspect = 100

// inspectHosts makes a list of hosts canonical, each once.
func inspectHosts(hosts []string) ([]string, error) {
	var list []string
	for _, h := range hosts {
		canonical, err := rules.CanonicalInspectHost(h)
		if err != nil {
			return nil, invalid("inspect_hosts: %w", err)
		}
		if !slices.Contains(list, canonical) {
			list = append(list, canonical)
		}
	}
	if len(list) > maxInspect {
		return nil, invalid("inspect_hosts: %d hosts, more than %d", len(list), maxInspect)
	}
	return list, nil
}

// SetInspect replaces the hosts whose requests a session in learning mode
// looks at. Connections that are open already stay as they are.
func (c *Conductor) SetInspect(ctx context.Context, id string, hosts []string) (Session, error) {
	list, err := inspectHosts(hosts)
	if err != nil {
		return Session{}, err
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.find(id)
	if i < 0 || !c.sessions[i].Live(now) {
		return Session{}, unknownSession(id)
	}
	s := &c.sessions[i]
	if !s.AllowAll && len(list) > 0 {
		return Session{}, &Error{Conflict, fmt.Errorf("session %s enforces its rules, and what is inspected is said by its policy; hosts are looked into while learning: weir session create %s --id %s --allow-all --inspect HOST", id, s.Container, id)}
	}
	if err := c.store.SetInspect(ctx, id, list, now); err != nil {
		return Session{}, err
	}
	s.Inspect = list
	c.changed(now, s.Container)
	c.lifecycle(s.Container, id, "session looks into the requests to %v", list)
	return Session{SessionState: *s, Current: c.isCurrent(s, now)}, nil
}

// Learn writes the policy that admits what a container was seen doing at
// since or later: what is stored, and what goes on at this moment. The
// container need not be attached any more.
func (c *Conductor) Learn(ctx context.Context, ref string, since time.Time, suffix bool) (learn.Learned, error) {
	who, log, err := c.observed(ctx, ref, since)
	if err != nil {
		return learn.Learned{}, err
	}
	obs := log.Observations()
	if !slices.ContainsFunc(obs, func(o learn.Observation) bool { return o.Allowed }) {
		return learn.Learned{}, &Error{NotFound, fmt.Errorf("nothing that container %s was allowed to do is on record%s: let it work in learning mode first: weir attach %s --allow-all", who.Name, sinceText(since), who.Name)}
	}
	learned, err := learn.Learn(obs, learn.Options{Container: who.Name, Suffix: suffix, PublicSuffix: publicsuffix.PublicSuffix})
	if err != nil {
		return learn.Learned{}, &Error{Conflict, err}
	}
	return learned, nil
}

// Replay says what a policy, as that of the container's session, would have
// made of what the container was seen doing at since or later. The global
// layer is the one in force.
func (c *Conductor) Replay(ctx context.Context, ref string, since time.Time, policy []byte) (learn.Report, error) {
	doc, _, err := rules.ParseDocument("policy", policy)
	if err != nil {
		return learn.Report{}, invalid("%w", err)
	}
	layer, err := newSessionLayer(&rules.SessionState{ID: "replay", Document: doc})
	if err != nil {
		return learn.Report{}, invalid("%w", err)
	}
	who, log, err := c.observed(ctx, ref, since)
	if err != nil {
		return learn.Report{}, err
	}
	obs := log.Observations()
	if len(obs) == 0 {
		return learn.Report{}, &Error{NotFound, fmt.Errorf("nothing that container %s did is on record%s: let it work first, best in learning mode: weir attach %s --allow-all", who.Name, sinceText(since), who.Name)}
	}
	c.mu.Lock()
	stack := rules.Stack{Layers: []*rules.Layer{c.globalLayer, layer, builtinLayer}, Guard: c.guard}
	c.mu.Unlock()
	return learn.Replay(rules.Compile(stack), obs, who, c.now()), nil
}

func sinceText(since time.Time) string {
	if since.IsZero() {
		return ""
	}
	return " since " + since.UTC().Format(time.RFC3339)
}

// observed gathers what is on record about a container.
func (c *Conductor) observed(ctx context.Context, ref string, since time.Time) (who rules.Container, log learn.Log, err error) {
	id, err := c.literal(ctx, ref)
	if err != nil {
		return who, log, err
	}
	who = rules.Container{ID: id, Name: ref}
	c.catchUp(ctx)
	f := audit.Filter{Container: id, Since: since, Limit: audit.MaxLimit}
	for {
		page, err := c.store.Events(ctx, f)
		if err != nil {
			return who, log, err
		}
		for i := range page {
			log.Add(&page[i])
		}
		if len(page) < f.Page() {
			break
		}
		f.Cursor = page[len(page)-1].ID
	}
	c.mu.Lock()
	a := c.attachedAs(id)
	var l *live
	if a != nil {
		who.Name, l = a.Name, a.live
	}
	c.mu.Unlock()
	if l != nil {
		for _, e := range slices.Concat(l.proxy.Live(), l.relay.Live()) {
			log.Add(&e)
		}
	}
	if log.Dropped > 0 {
		return who, log, &Error{Conflict, fmt.Errorf("container %s did more than %d different things; look at a shorter time (--since)", who.Name, learn.MaxObservations)}
	}
	return who, log, nil
}

// catchUp waits until what was recorded is stored, though not long: on a busy
// machine something always waits.
func (c *Conductor) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for c.log.Waiting() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
