package rules

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func asking(t *testing.T, rs ...Rule) *Policy {
	t.Helper()
	l, err := NewLayer(Session, rs)
	if err != nil {
		t.Fatal(err)
	}
	return Compile(Stack{Layers: []*Layer{l, BuiltinLayer()}, Ask: true, Guard: Guard{Hosts: map[netip.Addr]bool{netip.MustParseAddr("198.51.100.9"): true}}})
}

func TestWhatCanBeAskedAbout(t *testing.T) {
	denies := Rule{ID: "d", Destination: "no.test", Action: ActionDeny}
	half := Rule{ID: "h", Destination: "half.test", Ports: "25", Action: ActionDeny}
	endpoint := Rule{ID: "e", Destination: "api.test", Ports: "80", Action: ActionAllow, Endpoint: &Endpoint{Policy: "api", Protocol: ProtocolREST}}
	p := asking(t, denies, half, endpoint)
	public := netip.MustParseAddr("203.0.113.7")
	tls := func(name string) Claim { return Claim{Kind: ClaimTLS, Name: name} }
	for _, c := range []struct {
		what  string
		r     Request
		ask   bool
		about string // host
	}{
		{"a name that is looked up", Request{Stage: Resolve, Names: []string{"new.test"}}, true, "new.test"},
		{"a name that is denied on one port", Request{Stage: Resolve, Names: []string{"half.test"}}, true, "half.test"},
		{"a name that is denied", Request{Stage: Resolve, Names: []string{"no.test"}}, false, ""},
		{"a connection to a name", Request{Stage: Hello, Names: []string{"new.test"}, Addr: public, Claim: tls("new.test")}, true, "new.test"},
		{"a silent one", Request{Stage: Hello, Names: []string{"new.test"}, Addr: public}, true, "new.test"},
		{"a name without an address yet", Request{Stage: Hello, Names: []string{"new.test"}, Claim: tls("new.test")}, true, "new.test"},
		{"the other name of two", Request{Stage: Hello, Names: []string{"new.test", "no.test"}, Addr: public, Claim: tls("new.test")}, true, "new.test"},
		{"the denied name of two", Request{Stage: Hello, Names: []string{"new.test", "no.test"}, Addr: public, Claim: tls("no.test")}, false, ""},
		{"one of two, unsaid", Request{Stage: Hello, Names: []string{"new.test", "other.test"}, Addr: public}, false, ""},
		{"a claim that contradicts", Request{Stage: Hello, Names: []string{"new.test"}, Addr: public, Claim: tls("other.test")}, false, ""},
		{"a broken claim", Request{Stage: Hello, Names: []string{"new.test"}, Addr: public, Claim: Claim{Kind: ClaimBroken, Problem: "x"}}, false, ""},
		{"a broken claim to an address", Request{Stage: Hello, Addr: public, Claim: Claim{Kind: ClaimBroken, Problem: "x"}}, false, ""},
		{"TLS without a name", Request{Stage: Hello, Names: []string{"new.test"}, Addr: public, Claim: tls("")}, false, ""},
		{"an address", Request{Stage: Hello, Addr: public}, true, ""},
		{"an address under a name that is denied", Request{Stage: Hello, Addr: public, Claim: tls("no.test")}, false, ""},
		{"a private address", Request{Stage: Hello, Addr: netip.MustParseAddr("10.0.0.5")}, true, ""},
		{"a private address inside another", Request{Stage: Hello, Addr: netip.MustParseAddr("64:ff9b::a00:5")}, false, ""},
		{"metadata", Request{Stage: Hello, Addr: netip.MustParseAddr("169.254.169.254")}, false, ""},
		{"another cloud's", Request{Stage: Hello, Addr: netip.MustParseAddr("100.100.100.200")}, false, ""},
		{"an address of the host", Request{Stage: Hello, Addr: netip.MustParseAddr("198.51.100.9")}, false, ""},
		{"a name of the host's", Request{Stage: Hello, Names: []string{"new.test"}, Addr: netip.MustParseAddr("198.51.100.9"), Claim: tls("new.test")}, false, ""},
		{"UDP", Request{Stage: Hello, Names: []string{"new.test"}, Addr: public, Transport: UDP}, false, ""},
		{"an inspected request", Request{Stage: HTTP, Names: []string{"api.test"}, Addr: public, Port: 80, Claim: Claim{Kind: ClaimHTTP, Name: "api.test"},
			HTTP: &HTTPRequest{Method: "GET", Target: "/"}}, false, ""},
	} {
		r := c.r
		r.Time, r.Captured = naiveNow, r.Addr.IsValid()
		if r.Transport == "" {
			r.Transport = TCP
		}
		if r.Port == 0 && r.Stage != Resolve {
			r.Port = 443
		}
		d := p.Decide(r)
		if d.Verdict != Deny || d.Askable != c.ask || c.ask && d.Host != c.about {
			t.Errorf("%s: %v, askable %v about %q, want %v about %q: %s", c.what, d.Verdict, d.Askable, d.Host, c.ask, c.about, d.Reason)
		}
		if r.Stage == Hello && r.Claim.Kind != ClaimBroken && r.Transport == TCP {
			r.Stage = Connect
			if at := p.Decide(r); c.ask && at.Verdict != Inspect {
				t.Errorf("%s: %v at Connect, where the client has not been heard: %s", c.what, at.Verdict, at.Reason)
			}
		}
		if plain := Compile(Stack{Layers: p.Layers(), Guard: p.guard}); plain.Decide(r).Askable {
			t.Errorf("%s: a policy that does not ask says askable", c.what)
		}
	}
}

// What is askable, the rule that the answer amounts to would let pass, as a
// rule of the session or of this flow alone; and no rule denies it.
func TestAskable(t *testing.T) {
	asked := 0
	rapid.Check(t, func(t *rapid.T) {
		layers := drawLayers(t)
		p, n := compileLayers(t, layers), newNaive(layers, drawnHosts)
		p.asks = true
		silent := compileLayers(t, layers)
		for range 30 {
			r := drawRequest(t)
			d := p.Decide(r)
			if was := silent.Decide(r); d.Verdict != was.Verdict && (was.Verdict != Deny || d.Verdict != Inspect || r.Stage != Connect && !d.NeedProgram) || d.Rule != was.Rule {
				t.Fatalf("%+v\n%v by %q, and without asking %v by %q", r, d.Verdict, d.Reason, was.Verdict, was.Reason)
			}
			if !d.Askable {
				continue
			}
			asked++
			once, err := OnceLayer(d.Host, r.Addr, r.Port, "allowed once")
			if err != nil {
				t.Fatal(err)
			}
			if with := p.With(once).Decide(r); with.Verdict == Deny || with.Askable {
				t.Fatalf("%+v\nasked about %q, and once allowed it is %v by %q", r, d.Host, with.Verdict, with.Reason)
			}
			rule := once.InOrder()[0]
			rule.Source, rule.ID = Session, "answer"
			more := [][]Rule{layers[0], append(slices.Clip(layers[1]), rule), layers[2]}
			if with := compileLayers(t, more).Decide(r); with.Verdict == Deny {
				t.Fatalf("%+v\nasked about %q, and with a rule of the session it is denied: %q", r, d.Host, with.Reason)
			}
			if r.Stage != Resolve {
				if a := n.walk(&r, d.Host, false); a.rule != nil {
					t.Fatalf("%+v\nasked about %q, for which there is a rule: %+v", r, d.Host, a.rule)
				}
			}
		}
	})
	if asked == 0 {
		t.Error("nothing that was drawn could be asked about")
	}
}
