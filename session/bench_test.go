package session

import (
	"fmt"
	"sync/atomic"
	"testing"
	"weir/e2e/netlab"

	"weir/audit"
	"weir/rules"
)

func auditUse(rule string) audit.Event {
	return audit.Event{Type: audit.DNS, RuleID: rule, Verdict: "deny", Reason: "a test"}
}

// fill puts n rules into the global layer as if they had been loaded.
func (d *daemon) fill(b *testing.B, n int) {
	b.Helper()
	d.mu.Lock()
	for i := range n {
		r, _, err := rules.Canonical(rules.Rule{
			ID: fmt.Sprint("f", i), Source: rules.Global, Order: int64(i), Destination: fmt.Sprintf("host%d.example", i), Ports: "443", Action: rules.ActionDeny,
		})
		if err != nil {
			b.Fatal(err)
		}
		d.global = append(d.global, r)
	}
	d.changes++
	change := d.changes
	d.mu.Unlock()
	if err := d.publish(change); err != nil {
		b.Fatal(err)
	}
}

// One rule more, until it counts.
func BenchmarkAddRule(b *testing.B) {
	for _, n := range []int{0, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := start(b, b.TempDir(), &netlab.Clock{})
			d.fill(b, n)
			for i := 0; b.Loop(); i++ {
				if _, _, err := d.AddRule(b.Context(), rules.Rule{Destination: fmt.Sprintf("new%d.example", i), Action: rules.ActionDeny}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Many callers add rules to a large layer at once.
func BenchmarkAddRuleManyCallers(b *testing.B) {
	d := start(b, b.TempDir(), &netlab.Clock{})
	d.fill(b, 100_000)
	var n atomic.Int64
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := d.AddRule(b.Context(), rules.Rule{Destination: fmt.Sprintf("new%d.example", n.Add(1)), Action: rules.ActionDeny}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
