package learn

import (
	"cmp"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

// MaxObservations bounds how many different things a Log tells apart.
const MaxObservations = 100_000

// An Observation is one thing that a container did, however often it did it.
type Observation struct {
	Type       audit.Type // DNS, Connect, HTTP or GraphQL
	Allowed    bool
	Guarded    bool       // refused by the address guard
	Host       string     // "": the flow had no name
	Address    netip.Addr // not valid for DNS
	Port       uint16
	Transport  rules.Transport
	Binary     string // "": not known
	Method     string
	Path       string // canonical, without query
	Upgrade    string
	Operations []graphql.Operation

	Count       int
	First, Last time.Time
	MostOut     int64 // bytes sent, by the one that sent most
}

// place is the name, or the address where there is none.
func (o *Observation) place() string {
	if o.Host != "" {
		return o.Host
	}
	return o.Address.String()
}

// String names the observation, for a person. It holds no control characters.
func (o *Observation) String() string {
	if o.Type == audit.DNS {
		return audit.Printable("lookup of " + o.Host)
	}
	site := net.JoinHostPort(o.place(), strconv.Itoa(int(o.Port)))
	if o.Type == audit.Connect {
		return audit.Printable(string(o.Transport) + " connection to " + site)
	}
	text := o.Method + " " + site + o.Path
	if o.Upgrade != "" {
		text += " (" + o.Upgrade + ")"
	}
	for _, op := range o.Operations {
		text += " " + strings.TrimSpace(op.Type+" "+op.Name)
		if len(op.Fields) > 0 {
			text += "{" + strings.Join(op.Fields, " ") + "}"
		}
		if op.Persisted != "" {
			text += "persisted " + op.Persisted
		}
	}
	return audit.Printable(text)
}

// A Log gathers observations out of events. Its zero value is empty.
type Log struct {
	seen map[key]*Observation
	// Dropped counts the events that came when MaxObservations different
	// things had been seen already, and were none of these.
	Dropped int
}

// key is what tells observations apart.
type key struct {
	kind                 audit.Type
	allowed, guarded     bool
	host                 string
	address              netip.Addr
	port                 uint16
	transport            rules.Transport
	binary, method, path string
	upgrade, operations  string
}

// Add takes one event in. Events that are about no attempt of the container
// to reach something say nothing here, and neither do lookups that Weir
// answers whatever the policy says.
func (l *Log) Add(e *audit.Event) {
	o := Observation{
		Type: e.Type, Allowed: e.Verdict == "allow", Guarded: e.Layer == string(rules.AddressGuard), Host: strings.ToLower(e.Host), Port: e.Port,
		Transport: rules.Transport(e.Transport), Binary: e.Binary, Method: e.Method, Path: e.Path, Upgrade: e.Upgrade,
		Operations: e.Operations, Count: 1, First: e.Time, Last: e.Time, MostOut: e.BytesOut,
	}
	if a, err := netip.ParseAddr(e.Address); err == nil {
		o.Address = a.Unmap().WithZone("")
	}
	switch e.Type {
	case audit.DNS:
		if e.Layer == string(rules.Builtin) || o.Host == "" {
			return
		}
		o.Address, o.Port, o.Transport, o.Method = netip.Addr{}, 0, "", ""
	case audit.Connect:
		o.Method, o.Path, o.Upgrade, o.Operations = "", "", "", nil
		if !o.Address.IsValid() {
			return // refused before its destination was known
		}
	case audit.HTTP, audit.GraphQL:
		if !o.Address.IsValid() || o.Method == "" {
			return // refused before it could be read
		}
		o.Type = audit.HTTP // which of the two it is, its operations say
	default:
		return
	}
	if e.Verdict != "allow" && e.Verdict != "deny" {
		return
	}
	k := key{
		kind: o.Type, allowed: o.Allowed, guarded: o.Guarded, host: o.Host, address: o.Address, port: o.Port, transport: o.Transport,
		binary: o.Binary, method: o.Method, path: o.Path, upgrade: o.Upgrade,
	}
	if len(o.Operations) > 0 {
		text, err := json.Marshal(o.Operations)
		if err != nil {
			return // strings only: it cannot
		}
		k.operations = string(text)
	}
	if old := l.seen[k]; old != nil {
		old.Count++
		old.MostOut = max(old.MostOut, o.MostOut)
		if o.First.Before(old.First) {
			old.First = o.First
		}
		if o.Last.After(old.Last) {
			old.Last = o.Last
		}
		return
	}
	if len(l.seen) >= MaxObservations {
		l.Dropped++
		return
	}
	if l.seen == nil {
		l.seen = map[key]*Observation{}
	}
	l.seen[k] = &o
}

// Observations returns what was seen, in an order that depends on nothing else.
func (l *Log) Observations() []Observation {
	list := make([]Observation, 0, len(l.seen))
	keys := make([]key, 0, len(l.seen))
	for k := range l.seen {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(
			cmp.Compare(a.host, b.host), a.address.Compare(b.address), cmp.Compare(a.port, b.port), cmp.Compare(a.kind, b.kind),
			cmp.Compare(a.transport, b.transport), cmp.Compare(a.path, b.path), cmp.Compare(a.method, b.method),
			cmp.Compare(a.upgrade, b.upgrade), cmp.Compare(a.operations, b.operations), cmp.Compare(a.binary, b.binary),
			compareBool(a.allowed, b.allowed), compareBool(a.guarded, b.guarded),
		)
	})
	for _, k := range keys {
		list = append(list, *l.seen[k])
	}
	return list
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
