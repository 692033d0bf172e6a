package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func drawRule(t *rapid.T, source Source, i int) Rule {
	pick := func(label string, of ...string) string { return rapid.SampledFrom(of).Draw(t, label) }
	r := Rule{
		ID: fmt.Sprint(source, i), Source: source, Container: "*", Order: int64(rapid.IntRange(0, 3).Draw(t, "order")*100 + i),
		Destination: pick("destination", "*", "a.test", "b.test", "x.a.test", "localhost", "*.a.test", "**.a.test", "*.test", "**.test",
			"203.0.113.7", "203.0.113.0/24", "203.0.0.0/16", "10.0.0.5", "10.0.0.0/8", "0.0.0.0/0", "169.254.169.254", "169.254.0.0/16", "2001:db8::/32"),
		Ports:     pick("ports", "*", "443", "80,443", "1-1000", "444-65535", "80"),
		Transport: rapid.SampledFrom([]Transport{Any, Any, TCP, UDP}).Draw(t, "transport"),
		Action:    rapid.SampledFrom([]Action{ActionAllow, ActionDeny}).Draw(t, "action"),
		Binaries:  rapid.SampledFrom([][]string{nil, nil, nil, {"/bin/a"}, {"/bin/b"}, {"/bin/a", "/bin/b"}}).Draw(t, "binaries"),
		Expires:   rapid.SampledFrom([]time.Time{{}, {}, {}, naiveNow, naiveNow.Add(1), naiveNow.Add(-1)}).Draw(t, "expires"),
	}
	if source == Global {
		r.Container = pick("container", "*", "*", "web", "w*", "?eb", "db", "beef")
	}
	if r.Action == ActionAllow && r.Destination != "*" && r.Destination != "*.test" && r.Destination != "**.test" &&
		r.Transport != UDP && rapid.IntRange(0, 3).Draw(t, "inspected") == 0 {
		r.Endpoint = &Endpoint{Policy: r.ID, Protocol: ProtocolREST, Access: AccessFull}
		r.Transport = TCP
	}
	return r
}

func drawLayers(t *rapid.T) [][]Rule {
	var layers [][]Rule
	for _, s := range []Source{Global, Session, Builtin} {
		var rs []Rule
		for i := range rapid.IntRange(0, 10).Draw(t, "rules") {
			rs = append(rs, drawRule(t, s, i))
		}
		if len(rs) > 0 && rapid.IntRange(0, 9).Draw(t, "large") == 0 {
			for i := range 2 * splitAbove { // so many for one destination that its bucket is split
				r := drawRule(t, s, 10+i)
				r.Destination, r.Container = rs[0].Destination, rs[0].Container
				if r.Destination == "*" || r.Destination == "*.test" || r.Destination == "**.test" {
					r.Endpoint = nil
				}
				rs = append(rs, r)
			}
		}
		layers = append(layers, rs)
	}
	return layers
}

var drawnHosts = []netip.Addr{netip.MustParseAddr("203.0.113.99")}

func compileLayers(t *rapid.T, layers [][]Rule) *Policy {
	s := Stack{Guard: Guard{Hosts: map[netip.Addr]bool{}}}
	for _, h := range drawnHosts {
		s.Guard.Hosts[h] = true
	}
	for i, source := range precedence[:len(layers)] {
		// The last ones are added later, which must make no difference.
		first := max(0, len(layers[i])-rapid.IntRange(0, 3).Draw(t, "added"))
		l, err := NewLayer(source, layers[i][:first])
		for ; err == nil && first < len(layers[i]); first++ {
			l, err = l.With(layers[i][first : first+1])
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Layers = append([]*Layer{l}, s.Layers...)
	}
	return Compile(s)
}

func drawRequest(t *rapid.T) Request {
	names := []string{"a.test", "b.test", "x.a.test", "y.x.a.test", "test", "localhost", "other.example"}
	r := Request{
		Time:      naiveNow,
		Container: rapid.SampledFrom([]Container{{"beef", "web"}, {"cafe", "db"}, {"web", "web"}, {"beef", ""}}).Draw(t, "container"),
		Stage:     rapid.SampledFrom([]Stage{Resolve, Connect, Hello}).Draw(t, "stage"),
		Transport: rapid.SampledFrom([]Transport{TCP, TCP, TCP, UDP}).Draw(t, "transport"),
		Names:     rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 3, rapid.ID[string]).Draw(t, "names"),
		Addr: netip.MustParseAddr(rapid.SampledFrom([]string{"203.0.113.7", "203.0.113.8", "198.51.100.1", "203.0.113.99", "10.0.0.5", "10.0.0.6",
			"169.254.169.254", "169.254.1.1", "127.0.0.1", "224.0.0.1", "0.0.0.0", "2001:db8::1"}).Draw(t, "address")),
		Port:     rapid.SampledFrom([]uint16{80, 443, 444}).Draw(t, "port"),
		Captured: rapid.Bool().Draw(t, "captured"),
		Program: rapid.SampledFrom([]*Program{nil, nil, {Path: "/bin/a"}, {Path: "/bin/b"}, {Path: "/other"},
			{Path: "/other", Ancestors: []string{"/init", "/bin/a"}}}).Draw(t, "program"),
		Claim: Claim{
			Kind:   rapid.SampledFrom([]ClaimKind{ClaimNone, ClaimTLS, ClaimTLS, ClaimTLS, ClaimHTTP, ClaimOther, ClaimBroken}).Draw(t, "kind"),
			Proven: rapid.Bool().Draw(t, "proven"),
		},
	}
	r.ProgramFailed = r.Program == nil && rapid.Bool().Draw(t, "failed")
	if r.Claim.Kind == ClaimTLS || r.Claim.Kind == ClaimHTTP {
		r.Claim.Name = rapid.SampledFrom(append(names, "")).Draw(t, "claim")
		if len(r.Names) > 0 && rapid.Bool().Draw(t, "honest") {
			r.Claim.Name = r.Names[0]
		}
	}
	if r.Stage == Resolve && len(r.Names) == 0 {
		r.Names = []string{"a.test"}
	}
	return r
}

func verdictOf(d Decision) string {
	if d.NeedProgram {
		return "program"
	}
	return d.Verdict.String()
}

// The index and the naive evaluator say the same.
func TestIndexAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layers := drawLayers(t)
		p, n := compileLayers(t, layers), newNaive(layers, drawnHosts)
		for range 20 {
			r := drawRequest(t)
			d := p.Decide(r)
			verdict, rule := n.decide(r)
			if got := verdictOf(d); got != verdict {
				t.Fatalf("%+v\ngot %s by %q, want %s by %v", r, got, d.Reason, verdict, rule)
			}
			if rule != nil && (d.Rule == nil || d.Rule.ID != rule.ID) {
				t.Fatalf("%+v\ngot %q, want rule %s", r, d.Reason, rule.ID)
			}
			if d.Reason == "" {
				t.Fatalf("%+v\nno reason", r)
			}
			x := p.Explain(r)
			if verdictOf(x) != verdict || x.Rule != d.Rule || x.Reason != d.Reason {
				t.Fatalf("%+v\ndecided %+v\nexplained %+v", r, d, x)
			}
			won := slices.IndexFunc(x.Trace, func(s Step) bool { return s.Won })
			if won < 0 || d.Rule != nil && x.Trace[won].Rule != d.Rule.ID {
				t.Fatalf("%+v\n%s\nthe trace does not show what won: %+v", r, d.Reason, x.Trace)
			}
		}
	})
}

// Allow and Deny are final: no claim and no program that comes to light later
// changes them.
func TestVerdictsAreFinal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := compileLayers(t, drawLayers(t))
		p.allowAll = rapid.IntRange(0, 4).Draw(t, "learning") == 0
		p.asks = !p.allowAll && rapid.Bool().Draw(t, "asks")
		for range 20 {
			r := drawRequest(t)
			r.Stage, r.Program, r.ProgramFailed = Connect, nil, false
			before := p.Decide(r)
			later := r
			later.Program = rapid.SampledFrom([]*Program{nil, {Path: "/bin/a"}, {Path: "/other"}}).Draw(t, "found")
			later.ProgramFailed = later.Program == nil
			for _, stage := range []Stage{Connect, Hello, HTTP} {
				later.Stage = stage
				later.HTTP = &HTTPRequest{Method: "GET", Target: "/"}
				after := p.Decide(later)
				if before.Verdict != Inspect && after.Verdict != before.Verdict {
					t.Fatalf("%+v\n%s by %q at Connect\n%s by %q later", later, before.Verdict, before.Reason, after.Verdict, after.Reason)
				}
				if after.NeedProgram {
					t.Fatalf("%+v\nasks for a program that is known", later)
				}
				if before.Verdict == Inspect || stage == Hello {
					before = after
				}
			}
			if before.Verdict == Inspect && !before.NeedBody && before.Endpoint == nil {
				t.Fatalf("%+v\nnever settled: %q", later, before.Reason)
			}
		}
	})
}

// What a name could be allowed for is resolved: no flow to a name is allowed
// by that name when its question was refused.
func TestRefusedQuestionsAllowNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := compileLayers(t, drawLayers(t))
		for range 20 {
			r := drawRequest(t)
			r.Stage, r.Names = Hello, []string{"x.a.test"}
			r.Claim = Claim{Kind: ClaimTLS, Name: "x.a.test"}
			d := p.Decide(r)
			question := Request{Time: r.Time, Container: r.Container, Stage: Resolve, Names: r.Names}
			if d.Verdict == Allow && d.Rule != nil {
				e := entry{rule: d.Rule}
				if err := newReader().read(d.Rule, &e); err != nil {
					t.Fatal(err)
				}
				if q := p.Decide(question); (e.dest.named() || e.dest.kind == anywhere) && q.Verdict != Allow {
					t.Fatalf("%+v\nallowed by %q, but the question was refused: %q", r, d.Reason, q.Reason)
				}
			}
		}
	})
}

// A rule that cannot match changes nothing.
func TestRulesThatCannotMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layers := drawLayers(t)
		r := drawRequest(t)
		before := compileLayers(t, layers).Decide(r)
		i := rapid.IntRange(0, 2).Draw(t, "layer")
		extra := drawRule(t, precedence[i], 1000)
		switch rapid.SampledFrom([]string{"expired", "port", "container", "address", "program"}).Draw(t, "why") {
		case "expired":
			extra.Expires = naiveNow.Add(-time.Hour)
		case "port":
			if extra.Ports = "9999"; r.Stage == Resolve {
				t.Skip("a question is about all ports")
			}
		case "container":
			i = 0
			extra.Source, extra.Container = Global, rapid.SampledFrom([]string{"nobody", "nobody-*", "[0-9]*"}).Draw(t, "nobody")
		case "address":
			extra.Endpoint = nil
			extra.Destination = rapid.SampledFrom([]string{"192.0.2.77", "192.0.2.0/24", "2001:db8:ffff::/48"}).Draw(t, "elsewhere")
		case "program":
			if extra.Binaries = []string{"/bin/absent"}; r.Stage == Resolve || r.Program == nil && !r.ProgramFailed {
				t.Skip("the program may be any")
			}
		}
		layers[i] = slices.Insert(slices.Clone(layers[i]), rapid.IntRange(0, len(layers[i])).Draw(t, "at"), extra)
		after := compileLayers(t, layers).Decide(r)
		if verdictOf(before) != verdictOf(after) || before.Layer != after.Layer || before.Reason != after.Reason || before.Host != after.Host {
			t.Fatalf("%+v\nwith %+v\nbefore: %+v\nafter:  %+v", r, extra, before, after)
		}
	})
}

// The order in which rules are given decides nothing; only Order does.
func TestOrderOfGiving(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		layers := drawLayers(t)
		r := drawRequest(t)
		before := compileLayers(t, layers).Decide(r)
		for i := range layers {
			for j := range layers[i] {
				layers[i][j].Order = layers[i][j].Order*1000 + int64(j)
			}
			layers[i] = rapid.Permutation(layers[i]).Draw(t, "order")
		}
		after := compileLayers(t, layers).Decide(r)
		if verdictOf(before) != verdictOf(after) || before.Reason != after.Reason {
			t.Fatalf("%+v\nbefore: %+v\nafter:  %+v", r, before, after)
		}
	})
}
