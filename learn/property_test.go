package learn

import (
	"fmt"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

var (
	genHost    = rapid.SampledFrom([]string{"a.example.com", "b.example.com", "c.example.com", "d.example.com", "x.test", "db.internal"})
	genAddress = rapid.SampledFrom([]string{"198.51.100.1", "198.51.100.2", "10.0.0.9", "2001:db8::1"})
	genPort    = rapid.SampledFrom([]uint16{80, 443, 5432})
	genBinary  = rapid.SampledFrom([]string{"", "/usr/bin/curl", "/usr/bin/curl", "/opt/a [b]/{c}*"})
	genSegment = rapid.SampledFrom([]string{"users", "7", "8", "123456", "6dcb09b", "6dcb09b5b57875f334f61aebed695e2e4193db5e", "a*b", "%5Bx%5D", "%7By%7D", "@s%2Fp", "%25zz", "%E2%82%AC"})
	genField   = rapid.SampledFrom([]string{"viewer", "repository", "__typename"})
)

// genEvent draws something that a container may do. Requests go to hosts of
// their own, as hosts are inspected or not; GraphQL has a path of its own.
func genEvent(t *rapid.T) audit.Event {
	e := audit.Event{
		Time: noon.Add(time.Duration(rapid.IntRange(0, 3600).Draw(t, "s")) * time.Second), Verdict: "allow", Layer: "allow_all",
		Host: genHost.Draw(t, "host"), Address: genAddress.Draw(t, "address"), Port: genPort.Draw(t, "port"), Transport: "tcp",
		Binary: genBinary.Draw(t, "binary"),
	}
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0:
		return audit.Event{Time: e.Time, Type: audit.DNS, Verdict: "allow", Layer: "allow_all", Host: e.Host, Port: 53, Transport: "udp", Method: "A"}
	case 1:
		e.Type, e.Host, e.Address = audit.Connect, "", "198.51.100.77"
	case 2:
		e.Type, e.Transport = audit.Connect, rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "transport")
	case 3:
		e.Type, e.Host = audit.GraphQL, "api."+e.Host
		e.Method, e.Path = "POST", "/api/graphql"
		for range rapid.IntRange(1, 2).Draw(t, "operations") {
			e.Operations = append(e.Operations, graphql.Operation{
				Type: "query", Name: rapid.SampledFrom([]string{"", "Viewer"}).Draw(t, "name"),
				Fields: slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(genField, 1, 2).Draw(t, "fields")))),
			})
		}
	case 4:
		e.Type, e.Host, e.Method = audit.HTTP, "api."+e.Host, "GET"
		e.Path, e.Upgrade = "/socket/"+genSegment.Draw(t, "segment"), "websocket"
	default:
		e.Type, e.Host = audit.HTTP, "api."+e.Host
		e.Method = rapid.SampledFrom([]string{"GET", "HEAD", "POST"}).Draw(t, "method")
		for _, s := range rapid.SliceOfN(genSegment, 0, 3).Draw(t, "path") {
			e.Path += "/" + s
		}
		if e.Path == "" {
			e.Path = "/"
		}
	}
	return e
}

func observe(events []audit.Event) []Observation {
	var l Log
	for i := range events {
		l.Add(&events[i])
	}
	return l.Observations()
}

func compile(t *rapid.T, learned Learned) *rules.Policy {
	doc, _, err := rules.ParseDocument("learned", learned.Text)
	if err != nil {
		t.Fatalf("what was learned does not load: %v\n%s", err, learned.Text)
	}
	layer, err := rules.NewLayer(rules.Session, doc.Rules)
	if err != nil {
		t.Fatal(err)
	}
	return rules.Compile(rules.Stack{Layers: []*rules.Layer{layer, rules.BuiltinLayer()}})
}

func admits(p *rules.Policy, o Observation) bool {
	d, inspect := judge(p, &o, rules.Container{}, noon)
	return d.Verdict == rules.Allow || inspect
}

func TestLearnedPolicyAdmitsWhatWasSeenAndNotItsNeighbours(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.SliceOfN(rapid.Custom(genEvent), 1, 30).Draw(t, "events")
		obs := observe(events)
		options := Options{Suffix: rapid.Bool().Draw(t, "suffix")}
		learned, err := Learn(obs, options)
		if err != nil {
			t.Fatal(err)
		}
		if len(learned.Left) > 0 {
			t.Fatalf("left: %v\n%s", learned.Left, learned.Text)
		}
		p := compile(t, learned)
		for _, o := range obs {
			if !admits(p, o) {
				t.Fatalf("%s is denied by\n%s", o.String(), learned.Text)
			}
			for _, n := range neighbours(o, obs, options.Suffix) {
				if admits(p, n) {
					t.Fatalf("%s was never seen (%s was) and is admitted by\n%s", n.String(), o.String(), learned.Text)
				}
			}
		}
		shuffled := slices.Clone(events)
		rand.New(rand.NewSource(int64(len(events)))).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again, err := Learn(observe(shuffled), options)
		if d := cmp.Diff(string(learned.Text), string(again.Text)); err != nil || d != "" {
			t.Fatalf("another order, another policy: %v\n%s", err, d)
		}
	})
}

// neighbours are attempts that differ from o in one respect, and that were
// not seen. A policy with suffixes may well admit what is below a name.
func neighbours(o Observation, obs []Observation, suffixes bool) []Observation {
	var list []Observation
	with := func(change func(n *Observation)) {
		n := o
		change(&n)
		list = append(list, n)
	}
	elsewhere := netip.MustParseAddr("198.51.100.250")
	with(func(n *Observation) { n.Host, n.Address = "other.example.net", elsewhere })
	if o.Type == audit.DNS {
		return list
	}
	with(func(n *Observation) { n.Host, n.Address = "", elsewhere })
	with(func(n *Observation) { n.Port = 8443 })
	if o.Host != "" && !suffixes {
		with(func(n *Observation) { n.Host, n.Address = "sub."+o.Host, elsewhere })
	}
	if everyProgramKnown(o, obs) {
		with(func(n *Observation) { n.Binary = "/bin/other" })
		with(func(n *Observation) { n.Binary = "" })
	}
	if o.Type == audit.Connect {
		return list
	}
	with(func(n *Observation) { n.Path += "/and/further" })
	with(func(n *Observation) { n.Path = "/other" + n.Path })
	with(func(n *Observation) { n.Method = "DELETE" })
	if len(o.Operations) > 0 {
		with(func(n *Observation) {
			n.Operations = []graphql.Operation{{Type: "mutation", Name: "Viewer", Fields: []string{"viewer"}}}
		})
		with(func(n *Observation) { n.Operations = []graphql.Operation{{Type: "query", Fields: []string{"secrets"}}} })
		with(func(n *Observation) { n.Operations = nil })
		with(func(n *Observation) {
			n.Operations = append(slices.Clone(n.Operations), graphql.Operation{Type: "mutation", Fields: []string{"deleteAll"}})
		})
	}
	return list
}

// everyProgramKnown: the rule that is learned from o lists programs. Folded
// names and ports that share a rule have theirs in common.
func everyProgramKnown(o Observation, obs []Observation) bool {
	for _, other := range obs {
		if other.Type != audit.DNS && (other.place() == o.place() || o.Type == audit.Connect) && other.Binary == "" {
			return false
		}
	}
	return o.Type == audit.HTTP && o.Binary != ""
}

// Whatever a container writes into names, paths and programs, the document
// loads, and what it does not admit it says.
func TestHostileObservations(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z.*:/%\[\]{}"' #\n-]{0,12}`))
	rapid.Check(t, func(t *rapid.T) {
		var events []audit.Event
		for range rapid.IntRange(1, 8).Draw(t, "n") {
			e := genEvent(t)
			for _, field := range []*string{&e.Host, &e.Path, &e.Binary, &e.Method, &e.Upgrade} {
				if rapid.IntRange(0, 3).Draw(t, "hostile") == 0 {
					*field += text.Draw(t, "text")
				}
			}
			if len(e.Operations) > 0 && rapid.Bool().Draw(t, "operation") {
				op := graphql.Operation{Type: rapid.SampledFrom([]string{"", "mutation", "subscription"}).Draw(t, "type"), Persisted: text.Draw(t, "hash")}
				e.Operations = append(e.Operations, op)
			}
			events = append(events, e)
		}
		obs := observe(events)
		learned, err := Learn(obs, Options{Container: text.Draw(t, "container"), Suffix: true})
		if err != nil {
			t.Fatal(err)
		}
		p := compile(t, learned)
		left := map[string]bool{}
		for _, l := range learned.Left {
			left[l.String()] = true
		}
		for _, o := range obs {
			if !left[o.String()] && !admits(p, o) {
				t.Fatalf("%s is denied, and the policy does not say so:\n%s", o.String(), learned.Text)
			}
		}
		for line := range strings.SplitSeq(string(learned.Text), "\n") {
			if strings.ContainsFunc(line, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
				t.Fatalf("control characters in %q", line)
			}
		}
	})
}

func TestLogIsBounded(t *testing.T) {
	var l Log
	for i := range MaxObservations + 5 {
		l.Add(&audit.Event{Type: audit.DNS, Verdict: "allow", Host: fmt.Sprintf("n%d.example", i)})
	}
	l.Add(&audit.Event{Type: audit.DNS, Verdict: "allow", Host: "n0.example"}) // known: no new one
	if n := len(l.Observations()); n != MaxObservations || l.Dropped != 5 {
		t.Errorf("%d observations and %d dropped, want %d and 5", n, l.Dropped, MaxObservations)
	}
}
