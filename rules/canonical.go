package rules

import (
	"errors"
	"fmt"
	"strings"
)

// effect is what a matching rule does, in the order in which it wins over
// others of equal specificity.
type effect uint8

const (
	refuses  effect = iota // deny
	inspects               // allow, but look at each request
	passes                 // allow
)

// transports is a set of layer-4 protocols.
type transports uint8

const (
	overTCP transports = 1 << iota
	overUDP
	overBoth = overTCP | overUDP
)

func (t Transport) set() transports {
	switch t {
	case TCP, "":
		return overTCP
	case UDP:
		return overUDP
	default: // a protocol that no rule can name
		return 0
	}
}

// Inspected reports whether the requests of flows to the endpoint are looked
// at; an endpoint of plain tcp is not.
func (e *Endpoint) Inspected() bool {
	return e.Protocol != ProtocolTCP && e.Protocol != ""
}

// reader reads rules. It remembers ports and containers by their text,
// because thousands of rules share few of them.
type reader struct {
	ports      map[string]*portSet
	containers map[string]*containerPattern
}

func newReader() *reader {
	return &reader{ports: map[string]*portSet{}, containers: map[string]*containerPattern{}}
}

// read reads and checks everything in r that decides.
func (d *reader) read(r *Rule, e *entry) error {
	e.rule = r
	var err error
	if e.container = d.containers[r.Container]; e.container == nil {
		if e.container, err = parseContainer(r.Container); err != nil {
			return err
		}
		d.containers[r.Container] = e.container
	}
	if r.Endpoint == nil {
		e.dest, err = parseDestination(r.Destination)
	} else {
		e.dest, err = parseEndpointHost(r.Destination, r.Endpoint.AllowedIPs)
	}
	if err != nil {
		return err
	}
	if e.ports = d.ports[r.Ports]; e.ports == nil {
		if e.ports, err = parsePorts(r.Ports); err != nil {
			return err
		}
		d.ports[r.Ports] = e.ports
	}
	switch r.Transport {
	case Any, "":
		e.transports = overBoth
	case TCP, UDP:
		e.transports = r.Transport.set()
	default:
		return fmt.Errorf("transport %q: use tcp, udp or any", r.Transport)
	}
	for _, b := range r.Binaries {
		pattern, err := parseBinary(b)
		if err != nil {
			return fmt.Errorf("binary %q: %w", b, err)
		}
		e.binaries = append(e.binaries, pattern)
	}
	switch {
	case r.Action == ActionDeny && r.Endpoint != nil:
		return errors.New("an endpoint needs action allow; what it refuses stands in its deny rules")
	case r.Action == ActionDeny:
		e.effect = refuses
	case r.Action != ActionAllow:
		return fmt.Errorf("action %q: use allow or deny", r.Action)
	case r.Endpoint != nil && r.Endpoint.Inspected():
		e.effect = inspects
		if e.transports &= overTCP; e.transports == 0 {
			return fmt.Errorf("transport %q: protocol %s is inspected over tcp only", r.Transport, r.Endpoint.Protocol)
		}
	default:
		e.effect = passes
	}
	if r.Source != "" && r.Source != Global && !e.container.every() {
		return fmt.Errorf("container %q: only global rules choose containers", r.Container)
	}
	return nil
}

func parseBinary(s string) (string, error) {
	if s != "" && !strings.ContainsAny(s[:1], "/*?[{") || s == "*" {
		return "", errors.New("matches no program, because their paths start with a slash; write /usr/bin/NAME, or **/NAME for any folder")
	}
	return normalPathGlob(s)
}

// containerPattern is a parsed container pattern.
type containerPattern struct {
	text   string // exact name or id, or the glob
	glob   string // in the form that matchFlat takes; "" when exact
	prefix string // the literal text in front of the glob's first meta character
}

func (c *containerPattern) every() bool { return c.text == "*" }

func parseContainer(s string) (*containerPattern, error) {
	if s == "" || s == "*" {
		return &containerPattern{text: "*", glob: "*"}, nil
	}
	i := strings.IndexAny(s, "*?[{")
	if i < 0 {
		return &containerPattern{text: s}, nil
	}
	g, err := normalFlatGlob(s)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", s, err)
	}
	return &containerPattern{text: s, glob: g, prefix: s[:i]}, nil
}

// Canonical checks a rule and returns it in the form in which it is stored
// and compared: names lower-case, without trailing dot and as A-labels,
// addresses by value, networks masked, ports sorted and joined, times in UTC,
// defaults spelled out. Warnings name what is allowed but rarely meant; see
// also SuffixWarning. Errors quote what they are about.
//
// Fields that decide nothing (ID, Order, Notes and the like) pass unchanged,
// as do the insides of Endpoint, which ParseDocument has checked.
func Canonical(r Rule) (Rule, []string, error) {
	var p entry
	if err := newReader().read(&r, &p); err != nil {
		return Rule{}, nil, err
	}
	r.Container = p.container.text
	r.Destination = p.dest.String()
	r.Ports = p.ports.String()
	switch p.transports {
	case overTCP:
		r.Transport = TCP
	case overUDP:
		r.Transport = UDP
	default:
		r.Transport = Any
	}
	r.Binaries = p.binaries
	if !r.Expires.IsZero() {
		r.Expires = r.Expires.UTC()
	}
	if !r.Created.IsZero() {
		r.Created = r.Created.UTC()
	}
	return r, warnings(&p), nil
}

func warnings(p *entry) []string {
	var w []string
	if (p.dest.kind == below || p.dest.kind == within) && !strings.Contains(p.dest.name, ".") {
		w = append(w, fmt.Sprintf("%q covers every name under a whole top-level domain", p.dest.String()))
	}
	if a := p.dest.prefix.Addr(); p.effect != refuses && a.IsValid() && classify(a).never() {
		w = append(w, fmt.Sprintf("%s is never dialled, so this rule allows nothing", p.dest.String()))
	}
	return w
}
