package session

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"weir/ask"
	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/proxy"
	"weir/redirect"
	"weir/rules"
	"weir/store"
)

// Config is what a Conductor works with. Fields without a default named are
// required.
type Config struct {
	Store    *store.Store
	Log      *audit.Log
	Runtimes *container.Runtimes
	Upstream *dnsmap.Upstream
	Logger   *slog.Logger
	// ControlPorts are the TCP ports of Weir's own API; never dialled.
	ControlPorts []uint16
	// Authority signs what inspected containers are shown; Roots are whom
	// servers must be certified by (nil: the system's), CRLs what is revoked.
	Authority *proxy.CA
	Roots     *x509.CertPool
	CRLs      []*x509.RevocationList
	// Inherited are listeners of an earlier process, by "dev:ino" of their
	// namespace; who connected to them meanwhile is served. Nil: none.
	Inherited map[string]*redirect.Sockets
	// Keep is given the listeners of every new attachment, to be kept beyond
	// this process, and Forget is told when they are not needed any more. Keep
	// closes the files. Nil: they end with the process.
	Keep   func(netns string, s *redirect.Sockets)
	Forget func(netns string)
	// Drain is how long live connections may go on when Run ends.
	Drain time.Duration
	// ProxyLimits, RelayLimits and DNSLimits bound every container; zero fields
	// are defaults.
	ProxyLimits proxy.Limits
	RelayLimits proxy.RelayLimits
	DNSLimits   dnsmap.Limits
	// Questions bounds what people are asked; zero fields are defaults.
	Questions ask.Limits
	// Meter is told how long decisions and handshakes took. Nil: nobody is.
	Meter Meter
	// Retention bounds the audit trail.
	Retention store.Retention
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Conductor keeps every attached container's policy, listeners and flows in
// step with sessions, rules and the runtime. All methods are safe for
// concurrent use.
type Conductor struct {
	config Config
	store  *store.Store
	log    *audit.Log
	logger *slog.Logger
	now    func() time.Time

	// questions has a lock of its own, and takes none of those below.
	questions ask.Book

	// attaching serialises what installs and removes attachments. It is taken
	// before mu and held over kernel work, never over a runtime's answer.
	attaching turn
	// publishing serialises the indexing of the global layer. It is taken
	// before mu, and mu is free while the index is made.
	publishing sync.Mutex

	// mu guards the fields below. Nothing on the way of a connection waits for
	// it: whoever changes rules and sessions holds it while the store writes.
	mu       sync.Mutex
	ctx      context.Context         // of Run: what attachments live under
	sessions []rules.SessionState    // live ones, by Seq
	layers   map[string]*rules.Layer // by session id
	// global are the stored global rules, canonical. Layers share them:
	// appending is fine, anything else needs a copy.
	global      []rules.Rule
	documents   map[string]document // of the global layer, by name
	globalLayer *rules.Layer
	changes     uint64 // how often global or documents changed
	rewritten   uint64 // the last change that did more than append to global
	published   uint64 // the change as of which globalLayer is
	indexed     int    // how many of global it has
	guard       rules.Guard
	attachments map[string]*attachment       // by container id
	handover    map[string]*redirect.Sockets // nil unless Handover was called
	used        map[string]time.Time         // when rules last decided

	usedMu sync.Mutex
	fresh  map[string]time.Time // of used, not stored yet
	woken  chan struct{}        // capacity 1: expiries changed
}

var builtinLayer = rules.BuiltinLayer()

// sweepEvery bounds how late an expiry is noticed when the wall clock jumps.
const sweepEvery = time.Second

// New loads everything that is stored. Run makes it live.
func New(ctx context.Context, config Config) (*Conductor, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &Conductor{
		config: config, store: config.Store, log: config.Log, logger: config.Logger, now: config.Now,
		layers: map[string]*rules.Layer{}, documents: map[string]document{},
		attachments: map[string]*attachment{}, used: map[string]time.Time{}, fresh: map[string]time.Time{},
		woken: make(chan struct{}, 1),
	}
	c.questions.Limits, c.questions.Tell, c.questions.Now = config.Questions, c.told, config.Now
	if err := c.load(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// load reads sessions, rules and policies. What cannot be understood stops
// the daemon: a rule that silently does not count is worse.
func (c *Conductor) load(ctx context.Context) error {
	now := c.now()
	if _, err := c.store.Sweep(ctx, now, keepSessions); err != nil {
		return err
	}
	stored, err := c.store.Rules(ctx, store.RuleFilter{Source: rules.Global, LiveAt: now})
	if err != nil {
		return err
	}
	for _, r := range stored {
		c.global = append(c.global, r.Rule)
		if !r.LastUsed.IsZero() {
			c.used[r.ID] = r.LastUsed
		}
	}
	policies, err := c.store.Policies(ctx)
	if err != nil {
		return err
	}
	for _, p := range policies {
		doc, _, err := rules.ParseDocument(p.Name, []byte(p.Text))
		if err != nil {
			return fmt.Errorf("stored global policy %s: %w", p.Name, err)
		}
		c.documents[p.Name] = newDocument(p.Name, doc, p.Updated)
	}
	sessions, err := c.store.Sessions(ctx, store.SessionFilter{LiveAt: now})
	if err != nil {
		return err
	}
	for _, s := range sessions {
		state := s.SessionState
		if s.PolicyText != "" {
			if state.Document, _, err = rules.ParseDocument(s.PolicyName, []byte(s.PolicyText)); err != nil {
				return fmt.Errorf("stored session %s: %w", s.ID, err)
			}
		}
		layer, err := newSessionLayer(&state)
		if err != nil {
			return fmt.Errorf("stored session %s: %w", s.ID, err)
		}
		c.sessions = append(c.sessions, state)
		c.layers[s.ID] = layer
	}
	slices.SortFunc(c.sessions, func(a, b rules.SessionState) int { return int(a.Seq - b.Seq) })
	hosts, err := redirect.HostAddresses()
	if err != nil {
		return err
	}
	c.setGuard(hosts)
	c.indexed = len(c.global)
	c.globalLayer, err = rules.NewLayer(rules.Global, c.globalRules())
	return err
}

// Run restores the stored attachments, calls ready, and then follows the
// runtimes, the host's addresses and the clock until ctx ends. It leaves the
// containers locked in: without Weir they reach nothing.
func (c *Conductor) Run(ctx context.Context, ready func()) error {
	c.mu.Lock()
	// Attachments outlive ctx until they have been drained.
	c.ctx = context.WithoutCancel(ctx)
	c.mu.Unlock()
	if err := c.restore(ctx); err != nil {
		return err
	}
	c.dropInherited()
	if err := clearClaims(); err != nil {
		c.logger.Error("clearing away what killed daemons claimed", "error", err)
	}
	ready()
	var tasks sync.WaitGroup
	tasks.Go(func() { c.watchRuntimes(ctx) })
	tasks.Go(func() { c.watchHost(ctx) })
	tasks.Go(func() { c.watchClock(ctx) })
	tasks.Go(func() { c.housekeep(ctx) })
	<-ctx.Done()
	tasks.Wait()
	c.release()
	return nil
}

// canonical validates a rule with what this machine knows of public suffixes.
func (c *Conductor) canonical(r rules.Rule) (rules.Rule, []string, error) {
	r, warnings, err := rules.Canonical(r)
	if w := rules.SuffixWarning(r.Destination, publicsuffix.PublicSuffix); err == nil && w != "" {
		warnings = append(warnings, w)
	}
	return r, warnings, err
}

// literal turns what a user calls a container into its identity. A container
// that is not there (yet) keeps the name it was called by.
func (c *Conductor) literal(ctx context.Context, ref string) (string, error) {
	if a := c.knownAs(ctx, ref); a != nil {
		return a.ID, nil
	}
	found, err := c.config.Runtimes.Find(ctx, ref)
	switch {
	case err == nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		// Containers that share a namespace are one attachment.
		if a := c.attachedTo(found); a != nil {
			return a.ID, nil
		}
		return found.ID, nil
	case errors.Is(err, container.ErrNotRunning) && found.ID != "":
		return found.ID, nil
	case errors.Is(err, container.ErrNotFound), errors.Is(err, container.ErrUnreachable):
		return ref, nil
	}
	return "", containerError(err)
}

// changed makes a change of a container's sessions count: now for new
// connections, and for the live ones as well. mu is held.
func (c *Conductor) changed(now time.Time, ref string) {
	if a := c.attachedAs(ref); a != nil {
		c.compile(a, now)
	}
	c.wake()
}

func (c *Conductor) compileAll(now time.Time) {
	for _, a := range c.attachments {
		c.compile(a, now)
	}
}

// compile makes what is stored the policy of a, and has its flows judged
// again. mu is held.
func (c *Conductor) compile(a *attachment, now time.Time) {
	stack := rules.Stack{Layers: []*rules.Layer{c.globalLayer, builtinLayer}, Guard: c.guard}
	if s := rules.Current(c.sessions, a.who(), now); s != nil {
		stack.Layers = append(stack.Layers, c.layers[s.ID])
		stack.AllowAll, stack.Ask, stack.Session = s.AllowAll, s.Ask, s.ID
		var err error
		if stack.Inspect, err = rules.InspectLayer(s.Inspect); err != nil {
			// Checked when the session was made: nothing is looked into.
			c.logger.Error("hosts to look into", "session", s.ID, "error", err)
		}
	}
	a.policy.Store(rules.Compile(stack))
	a.rejudge()
}

// wake has the clock's watcher look at the expiries again.
func (c *Conductor) wake() {
	select {
	case c.woken <- struct{}{}:
	default: // awake already
	}
}

// watchClock acts on expiries: within a moment of each, and at the latest
// sweepEvery after the wall clock jumped over one.
func (c *Conductor) watchClock(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.woken:
		}
		c.expire(ctx)
		timer.Reset(c.nextExpiry())
	}
}

func (c *Conductor) nextExpiry() time.Duration {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := sweepEvery
	for i := range c.sessions {
		wait = min(wait, c.sessions[i].Expires.Sub(now))
	}
	for _, a := range c.attachments {
		if t, ok := a.policy.Load().NextExpiry(now); ok {
			wait = min(wait, t.Sub(now))
		}
	}
	return max(wait, 0)
}

// expire takes what has expired out of memory and store, and has the flows
// that lived by it judged again.
func (c *Conductor) expire(ctx context.Context) {
	now := c.now()
	c.mu.Lock()
	expired := false
	for i := 0; i < len(c.sessions); i++ {
		if !c.sessions[i].Live(now) {
			c.forget(i, now, "expired")
			expired = true
			i--
		}
	}
	dead := func(r rules.Rule) bool { return !r.Expires.IsZero() && !r.Expires.After(now) }
	change := uint64(0)
	if slices.ContainsFunc(c.global, dead) {
		for _, r := range c.global {
			if dead(r) {
				delete(c.used, r.ID)
				c.lifecycle("", "", "global rule %s expired: %s", r.ID, describeRule(r))
			}
		}
		c.global = slices.DeleteFunc(slices.Clone(c.global), dead)
		change, expired = c.rewrote(), true
	}
	for _, a := range c.attachments {
		if t, ok := a.nextExpiry, !a.nextExpiry.IsZero(); ok && !t.After(now) {
			a.rejudge()
		}
		a.nextExpiry, _ = a.policy.Load().NextExpiry(now)
	}
	c.mu.Unlock()
	if !expired {
		return
	}
	if err := c.publish(change); err != nil {
		c.logger.Error("recompiling after an expiry", "error", err)
	}
	if _, err := c.store.Sweep(ctx, now, keepSessions); err != nil {
		c.logger.Error("sweeping expired sessions", "error", err)
	}
}

// watchHost keeps the address guard's idea of the host's own addresses true.
func (c *Conductor) watchHost(ctx context.Context) {
	changed := func(hosts []netip.Addr) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.setGuard(hosts)
		c.compileAll(c.now())
	}
	watch := func(ctx context.Context) error { return redirect.WatchHostAddresses(ctx, changed) }
	always(ctx, watch, func(err error) { c.logger.Error("watching the host's addresses; it begins again", "error", err) })
}

func (c *Conductor) setGuard(hosts []netip.Addr) {
	g := rules.Guard{Hosts: map[netip.Addr]bool{}, ControlPorts: map[uint16]bool{}}
	for _, a := range hosts {
		g.Hosts[a.Unmap().WithZone("")] = true
	}
	for _, p := range c.config.ControlPorts {
		g.ControlPorts[p] = true
	}
	c.guard = g
}

// Periods of the housekeeping.
const (
	keepSessions   = 24 * time.Hour // ended sessions, as history
	housekeepEvery = 5 * time.Second
	trimEvery      = 10 * time.Minute
)

// housekeep writes what may be written late: when rules were used, what names
// containers learned; tries again to attach what could not be; and keeps the audit trail within its bounds.
func (c *Conductor) housekeep(ctx context.Context) {
	tick := time.NewTicker(housekeepEvery)
	defer tick.Stop()
	var trimmed time.Time
	for {
		select {
		case <-ctx.Done():
			c.writeLate(context.WithoutCancel(ctx))
			return
		case <-tick.C:
			c.writeLate(ctx)
			c.retry(ctx)
		}
		if now := c.now(); now.Sub(trimmed) >= trimEvery {
			trimmed = now
			if _, err := c.store.DeleteOldEvents(ctx, c.config.Retention, now); err != nil {
				c.logger.Error("trimming the audit trail", "error", err)
			}
		}
	}
}

func (c *Conductor) writeLate(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, housekeepEvery)
	defer cancel()
	c.usedMu.Lock()
	fresh := c.fresh
	c.fresh = map[string]time.Time{}
	c.usedMu.Unlock()
	c.mu.Lock()
	maps.Copy(c.used, fresh)
	names := map[*attachment][]store.Name{}
	for _, a := range c.attachments {
		if a.live != nil {
			names[a] = storedNames(a.live.names.Entries())
		}
	}
	c.mu.Unlock()
	if len(fresh) > 0 {
		if err := c.store.TouchRules(ctx, fresh); err != nil {
			c.logger.Error("storing when rules were used", "error", err)
		}
	}
	for a, list := range names {
		// An attachment that went away meanwhile has no names to keep.
		if err := c.store.PutNames(ctx, a.ID, list); err != nil && !errors.Is(err, store.ErrNotFound) {
			c.logger.Error("storing names", "container", a.Name, "error", err)
		}
	}
}

// record gives an event to the audit log and notes that its rule was used.
func (c *Conductor) record(e audit.Event) int64 {
	if e.RuleID != "" {
		c.usedMu.Lock()
		c.fresh[e.RuleID] = c.now()
		c.usedMu.Unlock()
	}
	return c.log.Record(e)
}
