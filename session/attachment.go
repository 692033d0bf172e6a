package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/proxy"
	"weir/redirect"
	"weir/rules"
	"weir/store"
)

// An attachment is one container that Weir decides for. It is live while the
// container runs, and waits, without listeners, while the container is
// stopped.
type attachment struct {
	ID       string // full runtime id, or that of the bare namespace
	Name     string
	ref      string // what the user called it
	runtime  string
	netnsID  container.NetNSID
	warnings []string
	started  time.Time // its container, to the microsecond; zero without a runtime
	since    time.Time
	stored   store.Attachment // from an earlier daemon; zero once it was live
	failed   bool             // to attach while its container ran; guarded by the Conductor's mu
	deaf     bool             // its listeners were destroyed; guarded by the Conductor's mu

	policy     atomic.Pointer[rules.Policy]
	denied     atomic.Int64
	nextExpiry time.Time // of a rule in policy; guarded by the Conductor's mu

	live *live // nil while waiting; guarded by the Conductor's mu
}

// live is what runs for an attached container.
type live struct {
	forget   func() // the listeners need not be kept any longer
	netns    *redirect.NetNS
	claim    *claim
	kernel   *redirect.Attachment
	names    *dnsmap.Table
	dns      *dnsmap.Server
	proxy    *proxy.Server
	relay    *proxy.Relay
	programs *container.Programs
	again    chan struct{} // capacity 1: flows are to be judged again
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	closed   []redirect.Connection
}

// LockName is what a container's lock on the host is called, redirect.Left's
// Name: its id as the names of nftables tables allow it.
func LockName(id string) string {
	return strings.NewReplacer(":", "-", ".", "-").Replace(id)[:min(len(id), 64)]
}

func (a *attachment) who() rules.Container { return rules.Container{ID: a.ID, Name: a.Name} }

// rejudge has the live flows judged again, soon and once, however often it is
// called meanwhile.
func (a *attachment) rejudge() {
	if a.live == nil {
		return
	}
	select {
	case a.live.again <- struct{}{}:
	default: // about to be
	}
}

// open installs the capture of a container and starts to serve it. The policy
// must be set. On an error nothing is left behind.
func (c *Conductor) open(ctx context.Context, a *attachment, found container.Container, names []store.Name) (*live, error) {
	file, err := found.OpenNetNS()
	if err != nil {
		return nil, containerError(err)
	}
	defer file.Close()
	ns, err := redirect.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		return nil, err
	}
	held, err := claimNetNS(ns.ID())
	if err != nil {
		return nil, &Error{Conflict, errors.Join(err, ns.Close())}
	}
	programs, err := container.OpenPrograms(file, func() []int { return c.mainProcesses(found) })
	if err != nil {
		return nil, errors.Join(err, held.giveUp(), ns.Close())
	}
	kernel, err := redirect.Install(ctx, ns, redirect.Spec{
		Name: LockName(a.ID), Sockets: c.inherited(ns.ID()), Evict: found.HostNetAdmin,
	})
	if err != nil {
		return nil, errors.Join(err, programs.Close(), held.giveUp(), ns.Close())
	}
	l := &live{forget: func() { c.forgetSockets(ns.ID()) }, netns: ns, claim: held, kernel: kernel, programs: programs, again: make(chan struct{}, 1), closed: kernel.Closed()}
	l.names = &dnsmap.Table{Now: c.now}
	placeholders := &dnsmap.Placeholders{Now: c.now}
	var entries []dnsmap.Entry
	for _, n := range names {
		entries = append(entries, dnsmap.Entry{Name: n.Name, Addr: n.Addr, Expires: n.Expires})
	}
	l.names.Restore(entries)
	record := func(e audit.Event) int64 {
		e.ContainerID, e.ContainerName = a.ID, a.Name
		if e.SessionID == "" {
			e.SessionID = a.policy.Load().Session()
		}
		if e.Verdict == "deny" {
			a.denied.Add(1)
		}
		return c.record(e)
	}
	l.dns = &dnsmap.Server{
		Container: a.who(),
		Policy: func(name string, _ uint16) rules.Decision {
			return proxy.Decide(c.config.Meter, a.policy.Load(), rules.Request{
				Time: c.now(), Container: a.who(), Stage: rules.Resolve, Names: []string{name},
			})
		},
		Upstream: c.config.Upstream,
		// A runtime that does not answer knows no names: the question then
		// goes the way of every other.
		Local: func(ctx context.Context, name string) []netip.Addr {
			ctx, cancel := context.WithTimeout(ctx, runtimePatience)
			defer cancel()
			addrs, _ := c.config.Runtimes.Resolve(ctx, a.ID, name)
			return addrs
		},
		Reverse: func(ctx context.Context, addr netip.Addr) string {
			ctx, cancel := context.WithTimeout(ctx, runtimePatience)
			defer cancel()
			name, _ := c.config.Runtimes.Reverse(ctx, a.ID, addr)
			return name
		},
		Table:        l.names,
		Placeholders: placeholders,
		Record:       func(e audit.Event) { record(e) },
		Limits:       c.config.DNSLimits,
		Now:          c.now,
	}
	program := func(ctx context.Context, transport rules.Transport, client, dst netip.AddrPort) (*rules.Program, error) {
		var p container.Program
		var err error
		for range programTries {
			p, err = programs.Find(ctx, string(transport), client, dst)
			if !errors.Is(err, container.ErrGone) {
				break
			}
		}
		if err != nil {
			return nil, err
		}
		return &rules.Program{Path: p.Path, Ancestors: p.Ancestors}, nil
	}
	l.relay = &proxy.Relay{
		Authority: c.config.Authority,
		Roots:     c.config.Roots,
		CRLs:      c.config.CRLs,
		Policy:    a.policy.Load,
		Program:   program,
		Record:    record,
		Limits:    c.config.RelayLimits,
		Meter:     c.config.Meter,
		Now:       c.now,
	}
	l.proxy = &proxy.Server{
		Container:   a.who(),
		Policy:      a.policy.Load,
		Names:       l.names.Names,
		Hold:        l.names.Hold,
		Prove:       l.dns.Prove,
		Program:     program,
		Relay:       l.relay.Serve,
		StandsFor:   placeholders.Name,
		Lookup:      l.dns.Lookup,
		Ask:         c.ask,
		OriginalDst: redirect.OriginalDst,
		Record:      record,
		Limits:      c.config.ProxyLimits,
		Meter:       c.config.Meter,
		Log:         c.logger,
		Now:         c.now,
	}
	var serveCtx context.Context
	serveCtx, l.cancel = context.WithCancel(c.ctx)
	l.tasks.Go(func() { c.report(a, "proxy", l.proxy.Serve(serveCtx, kernel.TCP())) })
	l.tasks.Go(func() { c.report(a, "udp", l.proxy.ServeUDP(serveCtx, kernel.UDP())) })
	packets, listener := kernel.DNS()
	l.tasks.Go(func() { c.report(a, "dns", l.dns.Serve(serveCtx, packets, listener)) })
	l.tasks.Go(func() { c.watch(serveCtx, a, kernel) })
	l.tasks.Go(func() {
		for {
			select {
			case <-serveCtx.Done():
				return
			case <-l.again:
				// First the requests, so that theirs are the events that say why.
				l.relay.Rejudge()
				l.proxy.Rejudge()
			}
		}
	})
	return l, nil
}

// programTries is how often a program is looked for while processes around it
// come and go; what is not certain then counts as not found.
const programTries = 3

// runtimePatience is how long a container's own DNS query waits for the
// runtime; while its events are followed the answers come from memory.
const runtimePatience = time.Second

// mainProcesses are those of all containers that live in found's namespace.
func (c *Conductor) mainProcesses(found container.Container) []int {
	ctx, cancel := context.WithTimeout(c.ctx, runtimePatience)
	defer cancel()
	pids := []int{found.PID}
	others, err := c.config.Runtimes.Sharing(ctx, found.NetNSID)
	if err != nil {
		// Fewer file systems to compare with: fewer programs are certain.
		return pids
	}
	for _, o := range others {
		if o.PID != found.PID {
			pids = append(pids, o.PID)
		}
	}
	return pids
}

// report logs a server that ended although nobody ended it.
func (c *Conductor) report(a *attachment, what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		c.logger.Error(what+" ended", "container", a.Name, "error", err)
	}
}

// watch keeps the capture whole. A container can make looks at its ruleset
// fail, so failing is tampering too, and never the end of it.
func (c *Conductor) watch(ctx context.Context, a *attachment, kernel *redirect.Attachment) {
	report := func(t redirect.Tamper) { c.tampered(a, t) }
	always(ctx, func(ctx context.Context) error { return kernel.Watch(ctx, report) }, func(err error) {
		c.logger.Error("watch failed; it begins again", "container", a.Name, "error", err)
		report(redirect.Tamper{What: "the watch over the capture failed and begins again", Err: err})
	})
}

// tampered records that somebody changed the capture from inside.
func (c *Conductor) tampered(a *attachment, t redirect.Tamper) {
	reason := t.What
	if t.Kind == redirect.Deaf {
		c.mu.Lock()
		a.deaf = true // seen by retry
		c.mu.Unlock()
	}
	switch {
	case t.Restored:
		reason += "; restored"
	case t.Err != nil:
		reason += "; NOT restored: " + t.Err.Error()
	}
	c.log.Record(audit.Event{
		Type: audit.Tamper, ContainerID: a.ID, ContainerName: a.Name, SessionID: a.policy.Load().Session(),
		Verdict: "deny", Reason: reason,
	})
}

// stop ends serving; flows are cut. What happens to the kernel's side is the
// caller's: Close to give the network back, Release to leave it locked.
func (l *live) stop() {
	l.cancel()
	l.tasks.Wait()
}

// close gives the container its network back.
func (l *live) close() error {
	l.stop()
	l.forget()
	return errors.Join(l.kernel.Close(), l.programs.Close(), l.claim.giveUp(), l.netns.Close())
}

// release leaves the container locked in.
func (l *live) release() error {
	l.stop()
	return errors.Join(l.kernel.Release(), l.programs.Close(), l.claim.giveUp(), l.netns.Close())
}

// storedNames is a container's table of names as it is stored, so that a
// restart of the daemon forgets none.
func storedNames(entries []dnsmap.Entry) []store.Name {
	var names []store.Name
	for _, e := range entries {
		names = append(names, store.Name{Name: e.Name, Addr: e.Addr, Expires: e.Expires})
	}
	return names
}
