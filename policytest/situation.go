package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"

	"weir/dnsmap"
	"weir/rules"
)

// situation is what a file's cases share.
type situation struct {
	file     *file
	dir      string // of the file
	answers  []answer
	global   *rules.Layer
	builtin  *rules.Layer // nil: switched off
	sessions []rules.SessionState
	layers   map[int64]*rules.Layer // by Seq
}

// answer is a lookup, read.
type answer struct {
	container, name string
	addr            netip.Addr
	ttl             time.Duration
	at              time.Time
}

func newSituation(f *file, dir string) (*situation, error) {
	s := &situation{file: f, dir: dir, layers: map[int64]*rules.Layer{}}
	var errs []error
	note := func(path string, err error) {
		if err != nil {
			errs = append(errs, s.file.source.at(path, err))
		}
	}
	for i, l := range f.DNS {
		a, err := l.read(f.Now.Time)
		note(fmt.Sprintf("$.dns[%d]", i), err)
		s.answers = append(s.answers, a)
	}
	slices.SortStableFunc(s.answers, func(a, b answer) int { return a.at.Compare(b.at) })
	var global []rules.Rule
	for i, r := range f.GlobalRules {
		made, err := r.rule(rules.Global, i, f.Now.Time)
		note(fmt.Sprintf("$.global_rules[%d]", i), err)
		global = append(global, made)
	}
	doc, err := s.document("$.global_policy", f.GlobalPolicy)
	errs = append(errs, err)
	for i, one := range f.Sessions {
		if err := s.open(i, one); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if s.global, err = rules.NewLayer(rules.Global, withDocument(global, doc, rules.Global)); err != nil {
		return nil, fmt.Errorf("%s: %w", f.source.path, err)
	}
	if f.Builtin == nil || *f.Builtin {
		s.builtin = rules.BuiltinLayer()
	}
	return s, nil
}

func (l lookup) read(now time.Time) (a answer, err error) {
	if l.Container == "" {
		return a, errors.New("no container")
	}
	a = answer{container: l.Container, ttl: time.Duration(l.TTL) * time.Second, at: l.At.Time}
	if a.at.IsZero() {
		a.at = now
	}
	if l.TTL < 0 {
		return a, fmt.Errorf("ttl: %d: want seconds, not below 0", l.TTL)
	}
	if a.name, err = rules.CanonicalName(l.Name); err != nil {
		return a, fmt.Errorf("name %q: %w", l.Name, err)
	}
	if a.addr, err = netip.ParseAddr(l.Address); err != nil {
		return a, fmt.Errorf("address %q: want an IPv4 or IPv6 address", l.Address)
	}
	a.addr = a.addr.Unmap()
	return a, nil
}

// rule turns a written rule into one of the policy.
func (r rule) rule(source rules.Source, i int, now time.Time) (rules.Rule, error) {
	made := rules.Rule{
		ID: fmt.Sprintf("%s/%d", source, i), Source: source, Order: int64(i),
		Container: r.Container, Destination: r.Destination, Transport: rules.Transport(r.Transport),
		Binaries: r.Binaries, Action: rules.Action(r.Action), Expires: r.ExpiresAt.Time, Notes: r.Notes,
	}
	switch p := r.Ports.(type) {
	case nil:
	case string:
		made.Ports = p
	case uint64:
		made.Ports = strconv.FormatUint(p, 10)
	default:
		return made, fmt.Errorf("ports: %v: want text such as \"80,443,8000-9000\"", p)
	}
	switch {
	case r.ExpiresInSeconds < 0:
		return made, fmt.Errorf("expires_in_seconds: %d: want at least 1", r.ExpiresInSeconds)
	case r.ExpiresInSeconds > 0 && !r.ExpiresAt.IsZero():
		return made, errors.New("expires_at and expires_in_seconds: give one of them")
	case r.ExpiresInSeconds > 0:
		made.Expires = now.Add(time.Duration(r.ExpiresInSeconds) * time.Second)
	}
	switch {
	case source == rules.Session && r.Container != "":
		return made, fmt.Errorf("container: %q: only global rules choose containers; the session names this one's", r.Container)
	case source == rules.Session && !made.Expires.IsZero():
		return made, errors.New("a session's rules expire with the session; give expires_at there")
	case source == rules.Session && made.Action == "":
		made.Action = rules.ActionAllow
	}
	canonical, _, err := rules.Canonical(made)
	return canonical, err
}

// document parses a policy that is written in place; nil is none.
func (s *situation) document(path string, value any) (*rules.Document, error) {
	src := s.file.source
	if value == nil {
		return nil, nil
	}
	if text, ok := src.cutOut(path); ok {
		doc, _, err := rules.ParseDocument(src.path, []byte(text))
		return doc, err
	}
	text, ok := value.(string)
	if !ok {
		b, err := yaml.Marshal(value)
		if err != nil {
			return nil, src.at(path, err)
		}
		text = string(b)
	}
	// Lines and columns are the document's own then.
	doc, _, err := rules.ParseDocument(path[len("$."):], []byte(text))
	if err != nil {
		err = src.at(path, err)
	}
	return doc, err
}

// withDocument appends a document's rules, counted on from the others.
func withDocument(rs []rules.Rule, doc *rules.Document, source rules.Source) []rules.Rule {
	if doc == nil {
		return rs
	}
	for _, r := range doc.Rules {
		r.ID, r.Source, r.Order = fmt.Sprintf("%s/%d", source, len(rs)), source, int64(len(rs))
		rs = append(rs, r)
	}
	return rs
}

// always is later than every case.
var always = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// open adds a session. One whose id is that of a live one replaces it and
// keeps its place, as in the daemon.
func (s *situation) open(i int, one session) error {
	path := fmt.Sprintf("$.sessions[%d]", i)
	src := s.file.source
	state := rules.SessionState{
		ID: cmp.Or(one.ID, fmt.Sprintf("session-%d", i)), Container: one.Container, Seq: int64(i),
		Created: one.CreatedAt.Time, Expires: one.ExpiresAt.Time, Ended: one.Ended, AllowAll: one.AllowAll, Labels: one.Labels,
	}
	if one.Container == "" {
		return src.at(path, errors.New("no container"))
	}
	if state.Expires.IsZero() {
		state.Expires = always
	}
	for n, r := range one.NetworkRules {
		made, err := r.rule(rules.Session, n, s.file.Now.Time)
		if err != nil {
			return src.at(fmt.Sprintf("%s.network_rules[%d]", path, n), err)
		}
		state.Rules = append(state.Rules, made)
	}
	var err error
	if state.Document, err = s.sessionDocument(path, one); err != nil {
		return err
	}
	if n := slices.IndexFunc(s.sessions, func(old rules.SessionState) bool {
		return old.ID == state.ID && old.Live(state.Created)
	}); n >= 0 {
		if s.sessions[n].Container != state.Container {
			return src.at(path, fmt.Errorf("session %s is container %s's; end that one first", state.ID, s.sessions[n].Container))
		}
		state.Seq, state.Created = s.sessions[n].Seq, s.sessions[n].Created
		s.sessions = slices.Delete(s.sessions, n, n+1)
	}
	all := withDocument(state.Rules, state.Document, rules.Session)
	for n := range all {
		all[n].Expires = state.Expires
	}
	if s.layers[state.Seq], err = rules.NewLayer(rules.Session, all); err != nil {
		return src.at(path, err)
	}
	s.sessions = append(s.sessions, state)
	return nil
}

// sessionDocument is a session's policy, in place or from a file beside the
// test.
func (s *situation) sessionDocument(path string, one session) (*rules.Document, error) {
	src := s.file.source
	if one.PolicyFile == "" {
		return s.document(path+".policy", one.Policy)
	}
	if one.Policy != nil {
		return nil, src.at(path, errors.New("policy and policy_file: give one of them"))
	}
	name := one.PolicyFile
	if !filepath.IsAbs(name) {
		name = filepath.Join(s.dir, name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, src.at(path+".policy_file", err)
	}
	doc, _, err := rules.ParseDocument(name, text)
	return doc, err
}

// policy is what holds for a container at a moment.
func (s *situation) policy(c rules.Container, now time.Time) *rules.Policy {
	stack := rules.Stack{Layers: []*rules.Layer{s.global, s.builtin}}
	// A session that is created later is not there yet.
	there := slices.DeleteFunc(slices.Clone(s.sessions), func(one rules.SessionState) bool { return one.Created.After(now) })
	if current := rules.Current(there, c, now); current != nil {
		stack.Layers = append(stack.Layers, s.layers[current.Seq])
		stack.AllowAll, stack.Session = current.AllowAll, current.ID
	}
	return rules.Compile(stack)
}

// names are what a container had resolved addr to, as far as it still counts.
func (s *situation) names(container string, addr netip.Addr, now time.Time) []string {
	at := now
	table := dnsmap.Table{Now: func() time.Time { return at }}
	for _, a := range s.answers {
		if a.container == container && !a.at.After(now) {
			at = a.at
			table.Learn(a.name, a.addr, a.ttl)
		}
	}
	at = now
	return slices.Clone(table.Names(addr.Unmap(), now))
}
