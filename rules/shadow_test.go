package rules

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// parseShort reads "global web* deny *.a.example 80,443 tcp"; a session is
// written session:ID.
func parseShort(text string) Rule {
	f := strings.Fields(text)
	source, id, _ := strings.Cut(f[0], ":")
	return Rule{Source: Source(source), SessionID: id, Container: f[1], Action: Action(f[2]), Destination: f[3], Ports: f[4], Transport: Transport(f[5])}
}

func TestShadowed(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []string
		want  []int
	}{
		{"another layer first", []string{"global * deny **.a.example * any", "session:s web allow api.a.example 443 tcp", "session:s web allow a.example 443 tcp", "session:s web allow b.example 443 tcp"}, []int{-1, 0, 0, -1}},
		{"star is not the apex", []string{"global * deny *.a.example * any", "session:s web allow a.example 443 tcp", "session:s web allow **.a.example 443 tcp", "session:s web allow *.x.a.example 443 tcp"}, []int{-1, -1, -1, 0}},
		{"everything", []string{"global * allow * * any", "session:s web deny 10.0.0.0/8 * any", "builtin * allow localhost * any"}, []int{-1, 0, 0}},
		{"networks", []string{"global * allow 10.0.0.0/8 * any", "session:s web deny 10.1.0.0/16 * any", "session:s web deny 10.0.0.1 * any", "session:s web deny 11.0.0.1 * any", "session:s web deny 0.0.0.0/0 * any"}, []int{-1, 0, 0, -1, -1}},
		{"an address is no name", []string{"global * allow 0.0.0.0/0 * any", "session:s web deny a.example * any"}, []int{-1, -1}},
		{"some of the ports", []string{"global * allow a.example 80,443 any", "session:s web deny a.example 443 any", "session:s web deny a.example 80-81 any", "session:s web deny a.example * any"}, []int{-1, 0, -1, -1}},
		{"another transport", []string{"global * allow a.example * tcp", "session:s web deny a.example * tcp", "session:s web deny a.example * udp", "session:s web deny a.example * any"}, []int{-1, 0, -1, -1}},
		{"another container", []string{"global db allow a.example * any", "session:s web deny a.example * any", "global we* allow b.example * any", "session:s web deny b.example * any"}, []int{-1, -1, -1, 2}},
		{"a later layer", []string{"session:s web allow * * any", "global * deny a.example * any"}, []int{-1, -1}},
		{"another session", []string{"session:s web allow * * any", "session:t web deny a.example * any"}, []int{-1, -1}},
		{"same layer, more specific first", []string{"global * allow * * any", "global * deny a.example * any"}, []int{-1, -1}},
		{"deny beats allow", []string{"global * allow a.example 443 any", "global * deny a.example 443 any"}, []int{1, -1}},
		{"the older of two", []string{"global * deny a.example 443 any", "global * deny a.example 443 any"}, []int{-1, 0}},
	} {
		var rs []Rule
		for i, text := range c.rules {
			r := parseShort(text)
			r.ID, r.Order = strconv.Itoa(i), int64(i)
			rs = append(rs, r)
		}
		if diff := cmp.Diff(c.want, Shadowed(rs)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestShadowedLeavesInspectionAndProgramsAlone(t *testing.T) {
	endpoint := Rule{ID: "e", Source: Global, Destination: "a.example", Ports: "443", Action: ActionAllow, Endpoint: &Endpoint{Protocol: ProtocolREST}}
	listed := Rule{ID: "l", Source: Global, Destination: "b.example", Ports: "*", Action: ActionAllow, Binaries: []string{"/usr/bin/curl"}}
	later := func(destination string) Rule {
		return Rule{ID: "s" + destination, Source: Session, SessionID: "s", Container: "web", Destination: destination, Ports: "443", Action: ActionAllow}
	}
	if diff := cmp.Diff([]int{-1, -1, -1, -1}, Shadowed([]Rule{endpoint, listed, later("a.example"), later("b.example")})); diff != "" {
		t.Error(diff)
	}
}

// A rule that is said to be shadowed makes no difference to any decision.
func TestShadowedRulesDecideNothing(t *testing.T) {
	names := []string{"a.example", "x.a.example", "y.x.a.example", "b.example"}
	rapid.Check(t, func(t *rapid.T) {
		var rs []Rule
		for i := range rapid.IntRange(2, 8).Draw(t, "rules") {
			source := rapid.SampledFrom([]Source{Global, Session}).Draw(t, "source")
			rs = append(rs, Rule{
				ID: strconv.Itoa(i), Source: source, Order: int64(i),
				Destination: rapid.SampledFrom([]string{"*", "a.example", "*.a.example", "**.a.example", "x.a.example", "*.x.a.example", "**.example"}).Draw(t, "destination"),
				Ports:       rapid.SampledFrom([]string{"*", "80", "443", "80,443", "400-500"}).Draw(t, "ports"),
				Transport:   rapid.SampledFrom([]Transport{TCP, UDP, Any}).Draw(t, "transport"),
				Action:      rapid.SampledFrom([]Action{ActionAllow, ActionDeny}).Draw(t, "action"),
			})
		}
		policy := func(rs []Rule) *Policy {
			var layers []*Layer
			for _, source := range []Source{Global, Session} {
				var own []Rule
				for _, r := range rs {
					if r.Source == source {
						own = append(own, r)
					}
				}
				l, err := NewLayer(source, own)
				if err != nil {
					t.Fatal(err)
				}
				layers = append(layers, l)
			}
			return Compile(Stack{Layers: layers})
		}
		shadows := Shadowed(rs)
		var without []Rule
		for i, r := range rs {
			if shadows[i] < 0 {
				without = append(without, r)
			}
		}
		all, fewer := policy(rs), policy(without)
		for _, name := range names {
			for _, port := range []uint16{80, 443, 450} {
				for _, transport := range []Transport{TCP, UDP} {
					r := Request{Container: Container{ID: "c", Name: "c"}, Stage: Hello, Transport: transport, Names: []string{name}, Addr: netip.MustParseAddr("198.51.100.7"), Port: port, Claim: Claim{Kind: ClaimTLS, Name: name}}
					a, b := all.Decide(r), fewer.Decide(r)
					if a.Verdict != b.Verdict || (a.Rule == nil) != (b.Rule == nil) || a.Rule != nil && a.Rule.ID != b.Rule.ID {
						t.Fatalf("%s %s %d: %v, without the shadowed rules %v (shadows %v)", transport, name, port, a, b, shadows)
					}
				}
			}
		}
	})
}
