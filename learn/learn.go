package learn

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"weir/audit"
	"weir/rules"
)

const (
	// siblings is how many names below one domain are many, for Options.Suffix.
	siblings = 3
	// maxLookups is how many names a policy opens that were looked up and not
	// connected to; more of them look like data that leaves in names.
	maxLookups = 500
	// maxLeftShown is how many observations a document's comments list that it
	// does not admit.
	maxLeftShown = 20
)

// Options say how to learn. The zero value is the narrowest way.
type Options struct {
	Container string // for the document's first comment
	// Suffix folds three or more names below one domain, on the same ports,
	// into "*.DOMAIN".
	Suffix bool
	// PublicSuffix returns the public suffix of a name, as
	// golang.org/x/net/publicsuffix does: domains at or above one are not
	// folded into. nil: those of one label.
	PublicSuffix func(name string) (suffix string, icann bool)
}

// Left is an observation that a learned policy does not admit.
type Left struct {
	Observation
	Why string
}

// Learned is a policy document with what is to be known about it.
type Learned struct {
	Text     []byte
	Document *rules.Document // Text, parsed
	Admitted int             // observations
	Left     []Left          // allowed observations that it does not admit
}

// Learn writes the policy that admits the allowed ones of some observations.
// An error means that they cannot be put into one document.
func Learn(obs []Observation, o Options) (Learned, error) {
	l := &learner{options: o, byAddress: map[netip.Addr]bool{}, unfolded: map[string]bool{}, guarded: map[netip.Addr]bool{}}
	var err error
	if l.probe, err = newProbe(); err != nil {
		return Learned{}, err
	}
	for i := range obs {
		if obs[i].Guarded && !obs[i].Allowed {
			l.guarded[obs[i].Address] = true
		}
	}
	for i := range obs {
		if !obs[i].Allowed {
			continue
		}
		if why := l.unfit(&obs[i]); why != "" {
			l.left = append(l.left, Left{obs[i], why})
			continue
		}
		l.obs = append(l.obs, obs[i])
	}
	always := l.left
	// What the narrow form does not admit is tried in wider ones: a name that
	// goes to an address which only a rule for the address opens, a private
	// address below a folded domain. Each try settles at least one more.
	for {
		l.left = slices.Clone(always)
		l.draft()
		learned, err := l.write()
		if err != nil {
			return Learned{}, err
		}
		if !l.widen(learned.Left) {
			return learned, nil
		}
	}
}

// unfit says why no rule can be written for an observation, or "".
func (l *learner) unfit(o *Observation) string {
	switch {
	case o.Host == "" && l.guarded[o.Address]:
		return "only a rule for its address would admit it, and the address guard has refused that address"
	case o.Host != "":
		if name, err := rules.CanonicalName(o.Host); err != nil || name != o.Host {
			return "its name is none that a rule can hold"
		}
	case o.Type == audit.DNS:
		return "no name"
	}
	if o.Type != audit.DNS && (!o.Address.IsValid() || o.Port == 0) {
		return "its destination was not recorded"
	}
	if o.Type == audit.HTTP {
		return l.unfitRequest(o)
	}
	return ""
}

var (
	methodName  = regexp.MustCompile(`^[A-Z][A-Z0-9_-]{0,31}$`)
	graphQLName = regexp.MustCompile(`^[_A-Za-z][_0-9A-Za-z]{0,255}$`)
)

// unfitRequest says why no rule can be written for a request, or "".
func (l *learner) unfitRequest(o *Observation) string {
	if !methodName.MatchString(o.Method) {
		return "its method is none that a rule can hold"
	}
	if o.Upgrade != "" && (o.Upgrade != "websocket" || o.Method != "GET") {
		return "enforcement lets no such upgrade through"
	}
	d, _ := judge(l.probe, &Observation{
		Type: audit.HTTP, Host: probeHost, Address: netip.AddrFrom4([4]byte{198, 51, 100, 1}), Port: 1, Transport: rules.TCP, Method: "GET", Path: o.Path,
	}, rules.Container{}, time.Time{})
	if d.Malformed || d.Path != o.Path || strings.Contains(o.Path, "?") {
		return "its path is not one that enforcement would let through as it is"
	}
	for _, op := range o.Operations {
		ok := op.Name == "" || graphQLName.MatchString(op.Name)
		for _, f := range op.Fields {
			ok = ok && graphQLName.MatchString(f)
		}
		if !ok || !slices.Contains([]string{"", "query", "mutation", "subscription"}, op.Type) {
			return "its operations are none that a rule can hold"
		}
	}
	return ""
}

const probeHost = "probe.invalid"

// newProbe returns a policy that lets every request pass that can be read.
func newProbe() (*rules.Policy, error) {
	layer, err := rules.NewLayer(rules.Session, []rules.Rule{{
		Destination: probeHost, Ports: "1", Transport: rules.TCP, Action: rules.ActionAllow,
		Endpoint: &rules.Endpoint{Policy: "probe", Protocol: rules.ProtocolREST, Access: rules.AccessFull, AllowEncodedSlash: true},
	}})
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	return rules.Compile(rules.Stack{Layers: []*rules.Layer{layer}}), nil
}

// learner is one policy on its way from observations to text.
type learner struct {
	options   Options
	obs       []Observation
	byAddress map[netip.Addr]bool // to be opened by address, whatever the name
	guarded   map[netip.Addr]bool // refused by the address guard: never to be opened
	unfolded  map[string]bool     // names that stay out of suffixes
	probe     *rules.Policy
	exactWays bool // paths of WebSockets are not folded

	plain []*plainRule
	sites []*site
	left  []Left
}

// plainRule is an entry of rules.
type plainRule struct {
	seen
	destination string
	ports       []uint16
	transport   rules.Transport
	programs    *programs
	what        string // that its comment counts
	folded      []string
	lookup      bool
}

// programs are those that were seen; unknown says that one was not.
type programs struct {
	paths   map[string]bool
	unknown bool
}

func (p *programs) add(o *Observation) {
	if !strings.HasPrefix(o.Binary, "/") || !utf8.ValidString(o.Binary) || len(o.Binary) > maxGlob/3 {
		p.unknown = true
		return
	}
	if p.paths == nil {
		p.paths = map[string]bool{}
	}
	p.paths[literal(o.Binary)] = true
}

// list are the programs to name, nil for any.
func (p *programs) list() []string {
	if p == nil || p.unknown {
		return nil
	}
	return slices.Sorted(maps.Keys(p.paths))
}

// site is a host and port whose requests were seen.
type site struct {
	seen
	host      string
	port      uint16
	programs  programs
	requests  []Observation
	endpoints []endpoint
}

func siteName(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// draft sorts the observations into rules and sites.
func (l *learner) draft() {
	l.plain, l.sites = nil, nil
	inspected := map[string]*site{}
	inspectedAddresses := map[netip.AddrPort]bool{}
	for i := range l.obs {
		o := &l.obs[i]
		if o.Type != audit.HTTP {
			continue
		}
		name := siteName(o.place(), o.Port)
		s := inspected[name]
		if s == nil {
			s = &site{host: o.place(), port: o.Port}
			inspected[name] = s
			l.sites = append(l.sites, s)
		}
		s.requests = append(s.requests, *o)
		s.add(o)
		s.programs.add(o)
		inspectedAddresses[netip.AddrPortFrom(o.Address, o.Port)] = true
	}
	type target struct {
		destination string
		transport   rules.Transport
		port        uint16
	}
	targets := map[target]*plainRule{}
	named := map[string]bool{}
	for i := range l.obs {
		o := &l.obs[i]
		named[o.Host] = named[o.Host] || o.Type != audit.DNS && !l.byAddress[o.Address]
		if o.Type != audit.Connect {
			continue
		}
		if s := inspected[siteName(o.place(), o.Port)]; s != nil && o.Transport == rules.TCP {
			s.programs.add(o)
			continue
		}
		t := target{o.place(), o.Transport, o.Port}
		if l.byAddress[o.Address] {
			t.destination = o.Address.String()
		}
		r := targets[t]
		if r == nil {
			r = &plainRule{destination: t.destination, transport: t.transport, ports: []uint16{t.port}, programs: &programs{}, what: "connection"}
			targets[t] = r
		}
		r.add(o)
		r.programs.add(o)
		if t.destination == o.Address.String() && inspectedAddresses[netip.AddrPortFrom(o.Address, o.Port)] {
			// A rule that lists programs would come before the endpoint that
			// looks at the requests to the same address.
			r.programs.unknown = true
		}
	}
	l.plain = merge(slices.Collect(maps.Values(targets)))
	if l.options.Suffix {
		l.plain = l.fold(l.plain)
	}
	l.lookups(named)
	for _, s := range l.sites {
		l.endpoints(s)
	}
	slices.SortFunc(l.sites, func(a, b *site) int { return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port)) })
}

// merge makes one rule of those that differ by port only.
func merge(rs []*plainRule) []*plainRule {
	slices.SortFunc(rs, func(a, b *plainRule) int {
		return cmp.Or(cmp.Compare(a.destination, b.destination), cmp.Compare(a.transport, b.transport),
			slices.Compare(a.programs.list(), b.programs.list()), slices.Compare(a.ports, b.ports))
	})
	var out []*plainRule
	for _, r := range rs {
		if n := len(out); n > 0 {
			p := out[n-1]
			if p.destination == r.destination && p.transport == r.transport && slices.Equal(p.programs.list(), r.programs.list()) {
				p.ports = append(p.ports, r.ports...)
				p.join(r)
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

func (s *seen) join(r *plainRule) {
	s.count += r.count
	if r.last.After(s.last) {
		s.last = r.last
	}
}

// fold makes one rule of names that have their domain, ports and transport in
// common, if they are many.
func (l *learner) fold(rs []*plainRule) []*plainRule {
	group := func(r *plainRule) string {
		_, domain, _ := strings.Cut(r.destination, ".")
		if _, err := netip.ParseAddr(r.destination); err == nil || l.unfolded[r.destination] || !strings.Contains(domain, ".") {
			return ""
		}
		if l.options.PublicSuffix != nil {
			if suffix, _ := l.options.PublicSuffix(domain); suffix == domain {
				return ""
			}
		}
		return fmt.Sprint(domain, " ", r.transport, " ", r.ports)
	}
	names := map[string]map[string]bool{}
	for _, r := range rs {
		if g := group(r); g != "" {
			if names[g] == nil {
				names[g] = map[string]bool{}
			}
			names[g][r.destination] = true
		}
	}
	folded := map[string]*plainRule{}
	var out []*plainRule
	for _, r := range rs {
		g := group(r)
		if len(names[g]) < siblings {
			out = append(out, r)
			continue
		}
		f := folded[g]
		if f == nil {
			_, domain, _ := strings.Cut(r.destination, ".")
			f = &plainRule{destination: "*." + domain, ports: r.ports, transport: r.transport, programs: &programs{}, what: r.what,
				folded: slices.Sorted(maps.Keys(names[g]))}
			folded[g] = f
			out = append(out, f)
		}
		f.join(r)
		f.programs.unknown = f.programs.unknown || r.programs.unknown
		for path := range r.programs.paths {
			if f.programs.paths == nil {
				f.programs.paths = map[string]bool{}
			}
			f.programs.paths[path] = true
		}
	}
	return out
}

// lookups opens the names that were looked up and that no other rule opens.
func (l *learner) lookups(named map[string]bool) {
	count := 0
	for i := range l.obs {
		o := &l.obs[i]
		if o.Type != audit.DNS || named[o.Host] {
			continue
		}
		if count++; count > maxLookups {
			l.left = append(l.left, Left{*o, fmt.Sprintf("more than %d names were looked up and not connected to", maxLookups)})
			continue
		}
		r := &plainRule{destination: o.Host, ports: []uint16{53}, transport: rules.UDP, what: "lookup", lookup: true}
		r.add(o)
		l.plain = append(l.plain, r)
	}
}

// widen prepares another try for what was not admitted; false when there is
// nothing more to try.
func (l *learner) widen(left []Left) (again bool) {
	for _, one := range left {
		o := &one.Observation
		if o.Type != audit.Connect || o.Host == "" {
			continue
		}
		switch {
		case l.options.Suffix && !l.unfolded[o.Host]:
			l.unfolded[o.Host] = true
			again = true
		case !l.byAddress[o.Address] && !l.guarded[o.Address]:
			l.byAddress[o.Address] = true
			again = true
		}
	}
	return again
}

// check fills in what the document does not admit.
func (l *learner) check(learned *Learned) error {
	layer, err := rules.NewLayer(rules.Session, learned.Document.Rules)
	if err != nil {
		return fmt.Errorf("the learned policy: %w", err)
	}
	p := rules.Compile(rules.Stack{Layers: []*rules.Layer{layer, rules.BuiltinLayer()}})
	listed := map[string]bool{}
	for _, one := range l.left {
		listed[one.String()] = true
	}
	for i := range l.obs {
		o := &l.obs[i]
		switch d, inspect := judge(p, o, rules.Container{}, time.Time{}); {
		case d.Verdict == rules.Allow || inspect:
			learned.Admitted++
		case !listed[o.String()]:
			l.left = append(l.left, Left{*o, d.Reason})
		}
	}
	learned.Left = l.left
	return nil
}
