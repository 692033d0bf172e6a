package rules

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// manyRules are n canonical rules of all sorts. Whatever n, the same few of
// them concern the request of the benchmarks.
func manyRules(n int) []Rule {
	rs := []Rule{
		{ID: "api", Destination: "api.example.com", Ports: "443", Transport: TCP, Action: ActionAllow},
		{ID: "below", Destination: "*.example.com", Ports: "80,443", Action: ActionAllow},
		{ID: "net", Destination: "203.0.113.0/24", Ports: "*", Action: ActionAllow},
	}
	for i := len(rs); i < n; i++ {
		r := Rule{ID: fmt.Sprint("r", i), Container: "*", Ports: "443", Transport: Any, Action: ActionAllow, Order: int64(i)}
		switch i % 6 {
		case 0:
			r.Destination = fmt.Sprintf("host-%d.example.net", i)
		case 1:
			r.Destination = fmt.Sprintf("*.zone-%d.example.org", i)
		case 2:
			r.Destination = fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		case 3:
			r.Destination = fmt.Sprintf("2001:db8:%x:%x::/64", i>>16, i&0xffff)
			r.Action = ActionDeny
		case 4:
			r.Destination, r.Ports = "api.example.com", fmt.Sprint(1000+i%50000)
		case 5:
			r.Destination, r.Action, r.Container = "*", ActionDeny, fmt.Sprint("other-", i)
		}
		rs = append(rs, r)
	}
	return rs
}

var sizes = []int{10, 1_000, 100_000}

func benchPolicy(tb testing.TB, n int) *Policy {
	l, err := NewLayer(Global, manyRules(n))
	if err != nil {
		tb.Fatal(err)
	}
	if l, err = l.With([]Rule{{ID: "more", Destination: "more.example", Ports: "443", Action: ActionAllow}}); err != nil {
		tb.Fatal(err)
	}
	return Compile(Stack{Layers: []*Layer{l, BuiltinLayer()}, Guard: Guard{Hosts: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true}}})
}

// allowed are requests that end in Allow, one of each kind of flow.
func allowed() map[string]Request {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	base := Request{Time: now, Container: Container{ID: "c0ffee", Name: "web"}, Transport: TCP, Captured: true,
		Addr: netip.MustParseAddr("203.0.113.7"), Port: 443}
	named := base
	named.Stage, named.Names = Hello, []string{"api.example.com"}
	named.Claim = Claim{Kind: ClaimTLS, Name: "api.example.com"}
	suffix := named
	suffix.Names, suffix.Claim.Name = []string{"cdn.img.example.com"}, "cdn.img.example.com"
	address := base
	address.Stage = Connect
	question := Request{Time: now, Container: base.Container, Stage: Resolve, Names: named.Names}
	return map[string]Request{"name": named, "suffix": suffix, "network": address, "question": question}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range sizes {
		p := benchPolicy(b, n)
		for kind, r := range allowed() {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if d := p.Decide(r); d.Verdict != Allow {
						b.Fatal(d.Reason)
					}
				}
			})
		}
	}
}

func BenchmarkNewLayer(b *testing.B) {
	for _, n := range sizes {
		rs := manyRules(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := NewLayer(Global, rs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOneRuleMore(b *testing.B) {
	for _, n := range sizes {
		l, err := NewLayer(Global, manyRules(n))
		if err != nil {
			b.Fatal(err)
		}
		more := []Rule{{ID: "more", Destination: "more.example", Ports: "443", Action: ActionDeny}}
		// Beside as many in the small part as there may be.
		if l, err = l.With(manyRules(n / (smallPart + 1))); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.With(more); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAllowDoesNotAllocate(t *testing.T) {
	for _, n := range sizes[:2] {
		p := benchPolicy(t, n)
		for kind, r := range allowed() {
			if allocs := testing.AllocsPerRun(100, func() {
				if d := p.Decide(r); d.Verdict != Allow {
					t.Fatal(d.Reason)
				}
			}); allocs != 0 {
				t.Errorf("%s with %d rules: %v allocations", kind, n, allocs)
			}
		}
	}
}
