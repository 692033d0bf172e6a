package dnsmap

import (
	"testing"

	"github.com/miekg/dns"

	"weir/audit"
	"weir/rules"
)

// TestCompiledPolicy puts the real decision behind the server.
func TestCompiledPolicy(t *testing.T) {
	a := newAuthority(t, records(t, "x.example.test. 60 IN A 203.0.113.1"))
	layer, err := rules.NewLayer(rules.Session, []rules.Rule{
		{ID: "wild", Source: rules.Session, Destination: "*.example.test", Ports: "443", Action: rules.ActionAllow, Order: 1},
		{ID: "hole", Source: rules.Session, Destination: "secret.example.test", Action: rules.ActionDeny, Order: 2},
		{ID: "cidr", Source: rules.Session, Destination: "0.0.0.0/0", Action: rules.ActionAllow, Order: 3},
	})
	if err != nil {
		t.Fatal(err)
	}
	serve := func(allowAll bool) *shim {
		return newShim(t, a.addr, func(s *Server) {
			p := rules.Compile(rules.Stack{Layers: []*rules.Layer{layer, rules.BuiltinLayer()}, AllowAll: allowAll})
			s.Policy = func(name string, _ uint16) rules.Decision {
				return p.Decide(rules.Request{Time: s.Now(), Container: s.Container, Stage: rules.Resolve, Names: []string{name}})
			}
		})
	}
	enforce, learn := serve(false), serve(true)
	for _, c := range []struct {
		name    string
		verdict string
		rule    string
	}{
		{"x.example.test", "allow", "wild"},
		{"X.Example.TEST", "allow", "wild"},
		{"a.b.example.test", "allow", "wild"},
		{"example.test", "deny", ""},
		{"evilexample.test", "deny", ""},
		{"secret.example.test", "deny", "hole"},
		{"other.test", "deny", ""},
		{"localhost", "allow", ""},
	} {
		enforce.lookup(t, c.name, dns.TypeA)
		events := enforce.recorded(audit.DNS)
		if e := events[len(events)-1]; e.Verdict != c.verdict || e.RuleID != c.rule || e.Reason == "" {
			t.Errorf("%s: %+v", c.name, e)
		}
		learn.lookup(t, c.name, dns.TypeA)
		events = learn.recorded(audit.DNS)
		e := events[len(events)-1]
		if e.Verdict != "allow" || e.Reason == "" {
			t.Errorf("learning, %s: %+v", c.name, e)
		}
		if c.name != "localhost" && (e.Would == nil || e.Would.Verdict != c.verdict || e.Would.RuleID != c.rule) {
			t.Errorf("learning, %s: would %+v", c.name, e.Would)
		}
	}
}
