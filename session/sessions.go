package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"time"

	"weir/audit"
	"weir/rules"
	"weir/store"
)

// Bounds of a session's life.
const (
	DefaultTTL = 15 * time.Minute
	MaxTTL     = 24 * time.Hour
)

// Spec asks for a session.
type Spec struct {
	ID        string        // "": one is made up
	Container string        // id, unique id prefix or name; need not be attached yet
	TTL       time.Duration // 0 is DefaultTTL; at most MaxTTL
	AllowAll  bool
	Ask       bool         // hold what only the default deny refuses, and ask a person; not with AllowAll
	Inspect   []string     // HOST or HOST:PORT: whose requests learning mode looks at; only with AllowAll
	Rules     []rules.Rule // action "" is allow
	Policy    []byte       // policy document, YAML or JSON; nil: none
	Labels    map[string]string
}

// Session is a live session as it is shown.
type Session struct {
	rules.SessionState
	Current  bool
	Warnings []string
}

// RuleCount is how many rules the session brought, its document's included.
func (s Session) RuleCount() int { return len(s.allRules()) }

func (s Session) allRules() []rules.Rule { return sessionRules(&s.SessionState) }

var sessionID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)

// CreateSession creates a session, or replaces the rules and flags of the one
// with the same id, which keeps its place in the order of creation.
func (c *Conductor) CreateSession(ctx context.Context, spec Spec) (Session, error) {
	now := c.now()
	if spec.ID == "" {
		spec.ID = "s-" + rand.Text()[:10]
	}
	if !sessionID.MatchString(spec.ID) {
		return Session{}, invalid("session id %q: want letters, digits and . _ : -, at most 128, beginning with a letter or digit", spec.ID)
	}
	if spec.TTL == 0 {
		spec.TTL = DefaultTTL
	}
	if spec.TTL < time.Second || spec.TTL > MaxTTL {
		return Session{}, invalid("ttl of %s: want from 1 second to %d seconds (24 hours)", spec.TTL, int(MaxTTL/time.Second))
	}
	s := rules.SessionState{
		ID: spec.ID, Created: now, Expires: now.Add(spec.TTL), TTL: spec.TTL,
		AllowAll: spec.AllowAll, Ask: spec.Ask, Labels: spec.Labels,
	}
	if s.Ask && s.AllowAll {
		return Session{}, invalid("ask and allow_all: learning mode refuses nothing that could be asked about; give one of them")
	}
	var err error
	if s.Inspect, err = inspectHosts(spec.Inspect); err != nil {
		return Session{}, err
	}
	if len(s.Inspect) > 0 && !s.AllowAll {
		return Session{}, invalid("inspect_hosts go with allow_all: in enforcement the policy's endpoints say what is inspected")
	}
	var warnings []string
	for i, r := range spec.Rules {
		if r.Action == "" {
			r.Action = rules.ActionAllow
		}
		r.Source, r.SessionID, r.Container = rules.Session, spec.ID, ""
		canonical, w, err := c.canonical(r)
		if err != nil {
			return Session{}, invalid("network_rules[%d]: %w", i, err)
		}
		s.Rules = append(s.Rules, canonical)
		warnings = append(warnings, w...)
	}
	if spec.Policy != nil {
		doc, w, err := rules.ParseDocument("policy", spec.Policy)
		if err != nil {
			return Session{}, invalid("%w", err)
		}
		s.Document = doc
		for _, one := range w {
			warnings = append(warnings, one.String())
		}
	}
	if s.Container, err = c.literal(ctx, spec.Container); err != nil {
		return Session{}, err
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.find(s.ID); i >= 0 && !c.sessions[i].Live(now) {
		c.forget(i, now, "expired")
	}
	// Compiled once before it is stored, so that nothing is stored that does not compile.
	if _, err := newSessionLayer(&s); err != nil {
		return Session{}, invalid("%w", err)
	}
	verb := "created"
	if i := c.find(s.ID); i >= 0 {
		if c.sessions[i].Container != s.Container {
			return Session{}, &Error{Conflict, fmt.Errorf("session %s belongs to container %s; end it first: weir session end %s", s.ID, c.sessions[i].Container, s.ID)}
		}
		verb = "replaced"
	}
	stored, err := c.store.PutSession(ctx, store.Session{SessionState: s, PolicyName: "policy", PolicyText: string(spec.Policy)}, now)
	if err != nil {
		return Session{}, fmt.Errorf("session %s was not stored and does not count: %w", s.ID, err)
	}
	document := s.Document
	s = stored.SessionState
	s.Document = document
	layer, err := newSessionLayer(&s)
	if err != nil {
		return Session{}, fmt.Errorf("session %s was stored but does not count: %w", s.ID, err)
	}
	if i := c.find(s.ID); i >= 0 {
		c.sessions[i] = s
	} else {
		c.sessions = append(c.sessions, s)
	}
	slices.SortFunc(c.sessions, func(a, b rules.SessionState) int { return int(a.Seq - b.Seq) })
	c.forgetUse(c.layers[s.ID])
	c.layers[s.ID] = layer
	c.changed(now, s.Container)
	if c.attachedAs(s.Container) == nil {
		// It may come; it may also be misspelt.
		warnings = append(warnings, fmt.Sprintf("container %s is not attached: the session counts once it is, see 'weir attach %[1]s'", spec.Container))
	}
	c.lifecycle(s.Container, s.ID, "session %s: %s", verb, describe(&s))
	return Session{SessionState: s, Current: c.isCurrent(&s, now), Warnings: warnings}, nil
}

func describe(s *rules.SessionState) string {
	return fmt.Sprintf("%s, %d rules, until %s", rules.Mode(s.AllowAll, s.Ask), len(sessionRules(s)), s.Expires.UTC().Format(time.RFC3339))
}

// Sessions lists the live sessions in the order of creation.
func (c *Conductor) Sessions() []Session {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []Session
	for i := range c.sessions {
		if s := &c.sessions[i]; s.Live(now) {
			list = append(list, Session{SessionState: *s, Current: c.isCurrent(s, now)})
		}
	}
	return list
}

// Session returns one live session.
func (c *Conductor) Session(id string) (Session, error) {
	for _, s := range c.Sessions() {
		if s.ID == id {
			return s, nil
		}
	}
	return Session{}, unknownSession(id)
}

func unknownSession(id string) error {
	return &Error{NotFound, fmt.Errorf("no live session %q: it never was, or has ended or expired; see 'weir session list', or create it again", id)}
}

// Heartbeat extends a live session and its rules to ttl from now; 0 is the
// time to live that the session was created with.
func (c *Conductor) Heartbeat(ctx context.Context, id string, ttl time.Duration) (time.Time, error) {
	now := c.now()
	if ttl < 0 || ttl > MaxTTL || ttl > 0 && ttl < time.Second {
		return time.Time{}, invalid("ttl of %s: want from 1 second to %d seconds (24 hours)", ttl, int(MaxTTL/time.Second))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.find(id)
	if i < 0 || !c.sessions[i].Live(now) {
		return time.Time{}, unknownSession(id)
	}
	s := &c.sessions[i]
	if ttl == 0 {
		ttl = s.TTL
	}
	stored, err := c.store.ExtendSession(ctx, id, now.Add(ttl), now)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, unknownSession(id)
	}
	if err != nil {
		return time.Time{}, err
	}
	s.Expires = stored.Expires
	layer, err := newSessionLayer(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("session %s: %w", id, err)
	}
	c.layers[id] = layer
	c.changed(now, s.Container)
	return s.Expires, nil
}

// EndSession ends a live session; its rules end with it, and the flows that
// lived by them are cut.
func (c *Conductor) EndSession(ctx context.Context, id string) error {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.find(id)
	if i < 0 || !c.sessions[i].Live(now) {
		return unknownSession(id)
	}
	if err := c.store.EndSession(ctx, id, now); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	c.forget(i, now, "ended")
	return nil
}

// forget takes session i out of memory and makes what it changes count.
func (c *Conductor) forget(i int, now time.Time, how string) {
	s := c.sessions[i]
	c.sessions = slices.Delete(c.sessions, i, i+1)
	c.forgetUse(c.layers[s.ID])
	delete(c.layers, s.ID)
	c.changed(now, s.Container)
	c.lifecycle(s.Container, s.ID, "session %s", how)
}

// find returns the index of the session with that id, or -1.
func (c *Conductor) find(id string) int {
	return slices.IndexFunc(c.sessions, func(s rules.SessionState) bool { return s.ID == id })
}

func (c *Conductor) isCurrent(s *rules.SessionState, now time.Time) bool {
	who := rules.Container{ID: s.Container, Name: s.Container}
	if a := c.attachedAs(s.Container); a != nil {
		who = a.who()
	}
	current := rules.Current(c.sessions, who, now)
	return current != nil && current.ID == s.ID
}

// sessionRules are a session's own rules and those of its document. They
// expire with the session.
func sessionRules(s *rules.SessionState) []rules.Rule {
	all := slices.Clone(s.Rules)
	if s.Document != nil {
		all = append(all, documentRules(s.Document, s.ID+"/p", s.Created)...)
	}
	for i := range all {
		all[i].Source, all[i].SessionID, all[i].Expires = rules.Session, s.ID, s.Expires
	}
	return all
}

// documentRules are a document's rules with ids of their own. They count as
// younger than every rule that was added by itself.
func documentRules(doc *rules.Document, prefix string, created time.Time) []rules.Rule {
	all := slices.Clone(doc.Rules)
	for i := range all {
		all[i].ID, all[i].Created, all[i].Order = fmt.Sprintf("%s%d", prefix, i), created, math.MaxInt32+int64(i)
	}
	return all
}

func newSessionLayer(s *rules.SessionState) (*rules.Layer, error) {
	return rules.NewLayer(rules.Session, sessionRules(s))
}

// forgetUse drops what is known of the use of rules that are gone. mu is held.
func (c *Conductor) forgetUse(l *rules.Layer) {
	if l != nil {
		for r := range l.Rules() {
			delete(c.used, r.ID)
		}
	}
}

// lifecycle records that something about a container or session changed, or,
// with neither, about the global layer.
func (c *Conductor) lifecycle(containerRef, sessionID, format string, args ...any) {
	e := audit.Event{Type: audit.Lifecycle, ContainerID: containerRef, ContainerName: containerRef, SessionID: sessionID, Reason: fmt.Sprintf(format, args...)}
	if a := c.attachedAs(containerRef); a != nil {
		e.ContainerID, e.ContainerName = a.ID, a.Name
	}
	c.log.Record(e)
}
