package rules

import (
	"net/netip"
	"slices"
	"time"
)

// Guard is what the address guard knows about the machine that dials. Its
// zero value knows nothing about the machine; the address classes that are
// refused everywhere are refused all the same.
type Guard struct {
	// Hosts are the host's own addresses, unmapped and without zone. They are
	// never dialled. Shared between policies, never changed afterwards.
	Hosts map[netip.Addr]bool
	// ControlPorts are the TCP ports that Weir's own API and dashboard listen
	// on; the refusal of a host address says so when one of them was asked for.
	ControlPorts map[uint16]bool
}

// Stack is everything that decides for one container.
type Stack struct {
	// Layers in any order: Compile puts them into the order of precedence.
	// At most one of each source; nil entries are skipped.
	Layers []*Layer
	// AllowAll is the current session's learning mode.
	AllowAll bool
	// Ask: decisions say what a person could allow; see Decision.Askable.
	// AllowAll comes before it.
	Ask bool
	// Inspect are the hosts whose requests learning mode looks at, from
	// InspectLayer. nil: none. Without AllowAll it says nothing.
	Inspect *Layer
	// Session is the id of the current session, for reasons; "" is none.
	Session string
	Guard   Guard
}

// Policy is a compiled, immutable stack of layers, safe for concurrent use.
// A nil or zero Policy denies everything.
type Policy struct {
	layers   []*Layer
	allowAll bool
	asks     bool
	session  string
	guard    Guard
	learning string  // the reason of what learning mode allows
	inspect  *Policy // what learning mode looks into; nil: nothing
}

// precedence is the order in which layers are asked.
var precedence = [...]Source{Global, Session, Builtin, Asked}

// Compile makes a Policy. It is cheap: layers are indexed already and are
// shared by all the policies that they are in.
func Compile(s Stack) *Policy {
	p := &Policy{allowAll: s.AllowAll, asks: s.Ask && !s.AllowAll, session: s.Session, guard: s.Guard}
	for _, l := range s.Layers {
		if l != nil {
			p.layers = append(p.layers, l)
		}
	}
	if s.AllowAll && s.Inspect != nil {
		p.inspect = Compile(Stack{Layers: []*Layer{s.Inspect}})
	}
	p.learning = "learning mode allows everything and records it"
	if p.session != "" {
		p.learning = "session " + p.session + " is in learning mode, which allows everything and records it"
	}
	slices.SortStableFunc(p.layers, func(a, b *Layer) int {
		return slices.Index(precedence[:], a.source) - slices.Index(precedence[:], b.source)
	})
	return p
}

// Session returns the id of the session that the policy was compiled for, or "".
func (p *Policy) Session() string { return p.session }

// AllowAll reports whether the policy is in learning mode.
func (p *Policy) AllowAll() bool { return p.allowAll }

// Asks reports whether decisions of the policy say what a person could allow.
func (p *Policy) Asks() bool { return p != nil && p.asks }

// Layers returns the layers in order of precedence. They must not be changed.
func (p *Policy) Layers() []*Layer { return p.layers }

// NextExpiry returns the earliest moment after now at which a rule of the
// policy expires, and false when none will. From that moment on the flows
// that live by the rule have to be judged again.
func (p *Policy) NextExpiry(now time.Time) (time.Time, bool) {
	var next time.Time
	for _, l := range p.layers {
		if t, ok := l.nextExpiry(now); ok && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next, !next.IsZero()
}
