package rules

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// naive judges the way the package comment reads: it sorts the rules of a
// layer by the table of precedence and walks them all. It shares the types
// with the package and nothing of patterns, ports, index, guard or stages.
type naive struct {
	layers [][]Rule
	hosts  []netip.Addr
}

// naiveAnswer is what a walk found: "deny", "guard", "unconfirmed" (needs
// inspection by a name that is only claimed), "inspect", "name" or "any".
type naiveAnswer struct {
	what  string
	rule  *Rule
	layer int
	need  bool // of the program
}

func (a naiveAnswer) denies() bool {
	return a.what == "deny" || a.what == "guard" || a.what == "unconfirmed"
}

func naiveIsName(dest string) bool {
	_, err := netip.ParseAddr(dest)
	return err != nil && dest != "*" && !strings.Contains(dest, "/")
}

// naiveMatches is a destination against one name or address.
func naiveMatches(r *Rule, host string, addr netip.Addr) bool {
	d := r.Destination
	if d == "*" {
		return true
	}
	if a, err := netip.ParseAddr(d); err == nil {
		return a == addr
	}
	if p, err := netip.ParsePrefix(d); err == nil {
		return p.Contains(addr)
	}
	if host == "" {
		return false
	}
	labels := strings.Split(host, ".")
	suffix, deep := strings.CutPrefix(d, "**.")
	if !deep {
		var wild bool
		if suffix, wild = strings.CutPrefix(d, "*."); !wild {
			return d == host
		}
	}
	n := len(labels) - len(strings.Split(suffix, "."))
	if n < 0 || strings.Join(labels[n:], ".") != suffix {
		return false
	}
	switch {
	case r.Endpoint != nil && !deep:
		return n == 1
	case r.Endpoint == nil && deep:
		return true
	default:
		return n >= 1
	}
}

func naivePorts(s string) (set [65536]bool) {
	if s == "*" {
		s = "1-65535"
	}
	for _, item := range strings.Split(s, ",") {
		from, to, ok := strings.Cut(item, "-")
		if !ok {
			to = from
		}
		first, _ := strconv.Atoi(from)
		last, _ := strconv.Atoi(to)
		for p := first; p <= last; p++ {
			set[p] = true
		}
	}
	return set
}

func naiveHasPort(s string, port uint16) bool { set := naivePorts(s); return set[port] }

func naiveCount(s string) (n int) {
	for _, in := range naivePorts(s) {
		if in {
			n++
		}
	}
	return n
}

// naiveOrder says which of two rules of a layer comes first.
func naiveOrder(a, b Rule) int {
	container := func(r Rule) int {
		switch {
		case r.Container == "*":
			return 2
		case strings.ContainsAny(r.Container, "*?["):
			return 1
		}
		return 0
	}
	class := func(r Rule) int {
		switch d := r.Destination; {
		case d == "*":
			return 3
		case strings.HasPrefix(d, "*"):
			return 2
		case strings.Contains(d, "/"):
			return 1
		}
		return 0
	}
	narrow := func(r Rule) int { // among equals of a class, higher is narrower
		switch class(r) {
		case 1:
			p := netip.MustParsePrefix(r.Destination)
			return p.Bits() + 128 - p.Addr().BitLen()
		case 2:
			return len(strings.TrimLeft(r.Destination, "*."))
		}
		return 0
	}
	reach := func(r Rule) int { // of suffixes
		switch deep := strings.HasPrefix(r.Destination, "**"); {
		case class(r) != 2 || r.Endpoint != nil && !deep:
			return 0
		case r.Endpoint != nil || !deep:
			return 1
		}
		return 2
	}
	anyTransport := func(r Rule) int {
		if r.Transport == Any {
			return 1
		}
		return 0
	}
	anyProgram := func(r Rule) int {
		if len(r.Binaries) == 0 {
			return 1
		}
		return 0
	}
	effect := func(r Rule) int {
		switch {
		case r.Action == ActionDeny:
			return 0
		case r.Endpoint != nil:
			return 1
		}
		return 2
	}
	return cmp.Or(
		cmp.Compare(container(a), container(b)),
		cmp.Compare(class(a), class(b)),
		-cmp.Compare(narrow(a), narrow(b)),
		cmp.Compare(reach(a), reach(b)),
		cmp.Compare(naiveCount(a.Ports), naiveCount(b.Ports)),
		cmp.Compare(anyTransport(a), anyTransport(b)),
		cmp.Compare(anyProgram(a), anyProgram(b)),
		cmp.Compare(effect(a), effect(b)),
		cmp.Compare(a.Order, b.Order),
	)
}

func newNaive(layers [][]Rule, hosts []netip.Addr) *naive {
	n := &naive{hosts: hosts}
	for _, l := range layers {
		l = slices.Clone(l)
		slices.SortFunc(l, naiveOrder)
		n.layers = append(n.layers, l)
	}
	return n
}

func naiveContainer(r *Rule, c Container) bool {
	for _, who := range []string{c.Name, c.ID} {
		switch r.Container { // the patterns that the test draws
		case "*", who:
			return true
		case "w*":
			if strings.HasPrefix(who, "w") {
				return true
			}
		case "?eb":
			if len(who) == 3 && who[1:] == "eb" {
				return true
			}
		}
	}
	return false
}

// applies is everything but the destination: "no", "maybe" or "yes".
func (n *naive) applies(r *Rule, q *Request) string {
	if !r.Expires.IsZero() && !q.Time.Before(r.Expires) || !naiveContainer(r, q.Container) {
		return "no"
	}
	if r.Transport != Any && r.Transport != q.Transport || !naiveHasPort(r.Ports, q.Port) {
		return "no"
	}
	if q.Captured && q.Transport == UDP && r.Transport == Any && r.Action == ActionAllow {
		return "no"
	}
	if r.Destination == "localhost" && r.Action == ActionAllow && !q.Addr.IsLoopback() {
		return "no"
	}
	if len(r.Binaries) == 0 {
		return "yes"
	}
	if q.Program == nil {
		if q.ProgramFailed {
			return "no"
		}
		return "maybe"
	}
	for _, path := range append([]string{q.Program.Path}, q.Program.Ancestors...) {
		if slices.Contains(r.Binaries, path) {
			return "yes"
		}
	}
	return "no"
}

func (n *naive) walk(q *Request, host string, unproven bool) naiveAnswer {
	result := naiveAnswer{what: "deny", layer: len(n.layers)}
	seen := map[string]bool{}
	found := false
	for i, l := range n.layers {
		for j := range l {
			r := &l[j]
			if found || !naiveMatches(r, host, q.Addr) {
				continue
			}
			if unproven && naiveIsName(r.Destination) && r.Action == ActionAllow && r.Endpoint == nil {
				continue
			}
			a := n.answer(q, r, i, unproven)
			switch n.applies(r, q) {
			case "maybe":
				kind := a.what
				if a.denies() {
					kind = "deny"
				}
				seen[kind] = true
			case "yes":
				result, found = a, true
			}
		}
	}
	kind := result.what
	if result.denies() {
		kind = "deny"
	}
	if len(seen) > 0 {
		seen[kind] = true
		result.need = len(seen) > 1 || seen["inspect"]
	}
	return result
}

func (n *naive) answer(q *Request, r *Rule, layer int, unproven bool) naiveAnswer {
	a := naiveAnswer{rule: r, layer: layer}
	switch {
	case r.Action == ActionDeny:
		a.what = "deny"
	case unproven && naiveIsName(r.Destination):
		a.what = "unconfirmed"
	case !n.guard(q, r):
		a.what = "guard"
	case r.Endpoint != nil:
		a.what = "inspect"
	case naiveIsName(r.Destination):
		a.what = "name"
	default:
		a.what = "any"
	}
	return a
}

// guard knows the addresses that the test draws.
func (n *naive) guard(q *Request, r *Rule) bool {
	at, d := q.Addr.String(), r.Destination
	switch {
	case slices.Contains(n.hosts, q.Addr), at == "224.0.0.1", at == "0.0.0.0", at == "127.0.0.1" && q.Captured:
		return false
	case strings.HasPrefix(at, "169.254."):
		return d == at || d == "169.254.0.0/16"
	case strings.HasPrefix(at, "10."):
		return d == at || strings.Contains(d, "/") || naiveIsName(d) && !strings.HasPrefix(d, "*")
	}
	return true
}

// lurks is whether a rule for some other name could come before a.
func (n *naive) lurks(q *Request, a naiveAnswer, wanted ...string) bool {
	for i, l := range n.layers {
		for j := range l {
			r := &l[j]
			if i > a.layer || r == a.rule {
				return false
			}
			if naiveIsName(r.Destination) && n.applies(r, q) != "no" && slices.Contains(wanted, n.answer(q, r, i, false).what) {
				return true
			}
		}
	}
	return false
}

// decide returns the verdict, "program" when that has to be found first, and
// the rule that made it.
func (n *naive) decide(q Request) (string, *Rule) {
	if q.Stage == Resolve {
		return n.resolve(&q), nil
	}
	verdict, rule := n.connect(&q)
	if verdict != "inspect" || q.Stage == Connect {
		return verdict, rule
	}
	c := q.Claim
	switch {
	case c.Kind == ClaimBroken:
		return "deny", nil
	case c.Kind == ClaimNone || c.Kind == ClaimOther:
		return n.each(&q, false, false)
	case c.Name == "":
		return n.each(&q, true, true)
	case slices.Contains(q.Names, c.Name) || len(q.Names) == 0 && c.Proven:
		return n.settle(n.walk(&q, c.Name, false), true)
	case len(q.Names) > 0:
		return "deny", nil
	}
	return n.settle(n.walk(&q, c.Name, true), true)
}

func (n *naive) settle(a naiveAnswer, relay bool) (string, *Rule) {
	switch {
	case a.need:
		return "program", nil
	case a.what == "guard":
		return "deny", nil
	case a.denies() || a.what == "inspect" && !relay:
		return "deny", a.rule
	case a.what == "inspect":
		return "inspect", a.rule
	}
	return "allow", a.rule
}

// each is a flow that says nothing of its name: all candidates must agree.
func (n *naive) each(q *Request, relay, nameNeeded bool) (string, *Rule) {
	names := q.Names
	if len(names) == 0 {
		names = []string{""}
	}
	verdict, rule := "", (*Rule)(nil)
	for _, host := range names {
		a := n.walk(q, host, false)
		if nameNeeded && !a.need && a.what == "name" {
			if other := n.walk(q, host, true); other.need || !other.denies() {
				a = other
			}
		}
		if nameNeeded && !a.need && (a.what == "name" || a.what == "inspect" && naiveIsName(a.rule.Destination)) {
			return "deny", nil
		}
		v, r := n.settle(a, relay)
		if v == "deny" || v == "program" {
			return v, r
		}
		if verdict != "inspect" {
			verdict, rule = v, r
		}
	}
	return verdict, rule
}

func (n *naive) connect(q *Request) (string, *Rule) {
	if q.Transport == UDP || q.Addr.IsLoopback() && !q.Captured {
		return n.each(q, false, false)
	}
	if len(q.Names) == 0 {
		a := n.walk(q, "", false)
		switch {
		case a.need:
			return "program", nil
		case a.denies() && n.lurks(q, a, "name", "inspect"):
			return "inspect", nil
		case a.what == "inspect", !a.denies() && n.lurksStrict(q, a):
			return "inspect", nil
		}
		return n.settle(a, true)
	}
	var answers []naiveAnswer
	deny, settled := 0, true
	for _, name := range q.Names {
		a := n.walk(q, name, false)
		if a.need {
			return "program", nil
		}
		if a.denies() {
			deny++
		}
		settled = settled && a.what == "any" && !n.lurksStrict(q, a)
		answers = append(answers, a)
	}
	if settled || deny == len(answers) {
		return n.settle(answers[0], true)
	}
	return "inspect", nil
}

// lurksStrict is whether a deny rule for a name, or one that wants requests
// inspected, could come first.
func (n *naive) lurksStrict(q *Request, a naiveAnswer) bool {
	for i, l := range n.layers {
		for j := range l {
			r := &l[j]
			if i > a.layer || r == a.rule {
				return false
			}
			if naiveIsName(r.Destination) && n.applies(r, q) != "no" && (r.Action == ActionDeny || r.Endpoint != nil) {
				return true
			}
		}
	}
	return false
}

// resolve tries everything that a flow to the name could be.
func (n *naive) resolve(q *Request) string {
	programs := []*Program{{Path: "/other"}, {Path: "/bin/a"}, {Path: "/bin/b"}}
	for _, program := range programs {
		for _, transport := range []Transport{TCP, UDP} {
			for _, port := range []uint16{1, 79, 80, 443, 444, 1000, 1001, 65535} {
				try := *q
				try.Program, try.Transport, try.Port = program, transport, port
				try.Addr, try.Stage, try.Captured = netip.Addr{}, Connect, false
				if q.Names[0] == "localhost" {
					try.Addr = netip.MustParseAddr("127.0.0.1")
				}
				for i := range n.layers {
					for j := range n.layers[i] {
						r := &n.layers[i][j]
						byName := r.Destination == "*" || naiveIsName(r.Destination)
						if !byName || !naiveMatches(r, q.Names[0], netip.Addr{}) || n.applies(r, &try) != "yes" {
							continue
						}
						if r.Action == ActionAllow {
							return "allow"
						}
						goto denied
					}
				}
			denied:
			}
		}
	}
	return "deny"
}

var naiveNow = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
