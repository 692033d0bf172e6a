package rules

import (
	"net/netip"
	"slices"
	"time"
)

// query is a request with its facts in canonical form, and one hypothesis
// about the flow's name. It lives on the stack of one decision.
type query struct {
	time      time.Time
	container Container
	transport transports
	port      uint16
	captured  bool
	relayed   bool     // captured, now or once the address is known
	names     []string // candidates

	// addrs are the address that will be dialled and those it stands for.
	addrs     [1 + maxEmbedded]netip.Addr
	classes   [1 + maxEmbedded]class
	addrCount int
	worst     class

	program       *Program
	programFailed bool

	host     string // the hypothesis; "" is a flow without name
	unproven bool   // the client claims host, and nothing confirms it
	won      outcome
}

// read fills q from r and returns what is wrong with the facts, or "".
func (q *query) read(r *Request, g *Guard) (problem string) {
	q.time, q.container = r.Time, r.Container
	q.transport, q.port, q.captured = r.Transport.set(), r.Port, r.Captured
	q.relayed = r.Captured || r.Relayed
	q.program, q.programFailed = r.Program, r.ProgramFailed

	if r.Stage == Resolve {
		// Any port, any transport; who will connect, and where, is not known.
		q.transport, q.port, q.program, q.programFailed = overBoth, 0, nil, false
		if len(r.Names) == 0 {
			return "a question without a name"
		}
	} else if r.Addr.IsValid() {
		q.addrs[0] = plain(r.Addr)
		means, n := embedded(q.addrs[0])
		copy(q.addrs[1:], means[:n])
		q.addrCount = 1 + n
		g.look(q)
	} else if r.Captured {
		q.worst = unspecified
		return noAddress
	}

	q.names = r.Names
	for i, n := range r.Names {
		name, err := lookupName(n)
		if err != nil {
			return err.Error()
		}
		if name != n {
			if &q.names[0] == &r.Names[0] {
				q.names = slices.Clone(r.Names)
			}
			q.names[i] = name
		}
	}
	return ""
}

const noAddress = "the destination address of the connection is not known"

// match is whether an entry matches a query.
type match uint8

const (
	no    match = iota
	maybe       // depends on the program, which is not known yet
	yes
)

// match compares everything that the index has not: the index has found e by
// its container and destination.
func (q *query) match(e *entry) match {
	switch e.dest.kind {
	case below:
		if len(q.host) == len(e.dest.name) {
			return no // the apex
		}
	case globbed:
		if !e.dest.glob.match(q.host) {
			return no
		}
	}
	if q.unproven && e.effect == passes && e.dest.named() {
		return no
	}
	return q.matchBesidesName(e)
}

func (q *query) matchBesidesName(e *entry) match {
	if !live(e.rule, q.time) || e.transports&q.transport == 0 || q.unprovable(e) {
		return no
	}
	if q.transport != overBoth && !e.ports.contains(q.port) {
		return no
	}
	if q.addrCount > 0 {
		if e.effect != refuses && e.dest.named() && isLocalhost(e.dest.name) && !q.addrs[0].IsLoopback() {
			return no // somebody's DNS says that localhost is elsewhere
		}
		if ips := e.allowedIPs(); len(ips) > 0 && !inAny(ips, q.addrs[0]) {
			return no
		}
	}
	return q.matchProgram(e.binaries)
}

// unprovable says that an entry would let relayed UDP out without naming udp.
// The first bytes of a datagram prove no name, and QUIC is TLS that nobody can
// look at; a program that is refused it falls back to TCP, where the name is
// checked.
func (q *query) unprovable(e *entry) bool {
	return q.relayed && q.transport == overUDP && e.effect != refuses && e.transports == overBoth
}

func (q *query) matchProgram(patterns []string) match {
	switch {
	case len(patterns) == 0:
		return yes
	case q.program == nil && q.programFailed:
		return no
	case q.program == nil:
		return maybe
	}
	for _, p := range patterns {
		if matchPath(p, q.program.Path) {
			return yes
		}
		for _, a := range q.program.Ancestors {
			if matchPath(p, a) {
				return yes
			}
		}
	}
	return no
}

func live(r *Rule, now time.Time) bool { return r.Expires.IsZero() || r.Expires.After(now) }

// isLocalhost reports whether a name means the loopback, RFC 6761 6.3.
func isLocalhost(name string) bool {
	const local = "localhost"
	n := len(name) - len(local)
	return n == 0 && name == local || n > 0 && name[n:] == local && name[n-1] == '.'
}

// finding is what one rule, or none, does to a query.
type finding uint8

const (
	denied      finding = iota // by a rule, or by none
	refused                    // allowed by a rule, and refused by the guard
	unconfirmed                // to be inspected by a name that is only claimed
	inspected
	allowedByName
	allowedAnyhow // by a rule that asks for no name
)

func (f finding) denies() bool { return f <= unconfirmed }

// outcome is what the layers say to one hypothesis.
type outcome struct {
	finding finding
	entry   *entry // nil: no rule matched
	layer   int    // index of the entry's layer; their number when no rule matched
	// needProgram: another program could lead to another finding.
	needProgram bool
}

func (q *query) find(e *entry) finding {
	switch {
	case e.effect == refuses:
		return denied
	case q.unproven && e.dest.named():
		return unconfirmed
	case !q.admits(e):
		return refused
	case e.effect == inspects:
		return inspected
	case e.dest.named():
		return allowedByName
	default:
		return allowedAnyhow
	}
}

// judge asks the layers about one hypothesis. The first entry of a layer that
// matches has won.
func (p *Policy) judge(q *query) outcome {
	var buf [24]list
	var open finding // of the entries that match some programs
	some, mixed := false, false
	result := outcome{layer: len(p.layers)}
layers:
	for i, l := range p.layers {
		ls := l.lists(buf[:0], q, whole)
		for e := next(ls); e != nil; e = next(ls) {
			switch q.match(e) {
			case maybe:
				f := q.find(e)
				if f.denies() {
					f = denied
				}
				mixed = mixed || some && f != open || f == inspected
				open, some = f, true
			case yes:
				result = outcome{finding: q.find(e), entry: e, layer: i}
				break layers
			}
		}
	}
	same := open == result.finding || open.denies() && result.finding.denies()
	result.needProgram = some && (mixed || !same)
	return result
}

// lurks reports whether, if the flow had another name than the one judged, an
// entry of that effect could come before o. Programs that are not known yet
// count as matching.
func (p *Policy) lurks(q *query, o outcome, want effect) bool {
	var buf [24]list
	for i, l := range p.layers[:min(o.layer+1, len(p.layers))] {
		for _, entries := range l.lists(buf[:0], q, want) {
			for _, e := range entries {
				if i == o.layer && !e.before(o.entry) {
					break
				}
				if q.matchBesidesName(e) != no && (want == refuses || !o.finding.denies() || q.admits(e)) {
					return true
				}
			}
		}
	}
	return false
}
