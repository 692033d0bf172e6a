package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// simple is a rule of a kind that can be judged naively: one after the other.
type simple struct{ action, destination, ports string }

// nthRule is one of any number of rules that overlap each other.
func nthRule(i int) simple {
	n := i / 5
	switch i % 5 {
	case 0:
		return simple{"allow", fmt.Sprintf("host%d.zone%d.example", n, n/7), "443"}
	case 1:
		return simple{"deny", fmt.Sprintf("*.zone%d.example", n), "*"}
	case 2:
		return simple{"allow", fmt.Sprintf("**.area%d.example", n), "80,8000-8100"}
	case 3:
		return simple{"allow", fmt.Sprintf("20.%d.%d.0/24", n>>8&255, n&255), "*"}
	}
	return simple{"deny", fmt.Sprintf("20.%d.%d.%d", n>>8&255, n&255, n%200), "22,443"}
}

// matches says whether the rule matches, and how specific its destination is.
func (r simple) matches(destination string, port int) (rank int, ok bool) {
	if !portIn(r.ports, port) {
		return 0, false
	}
	addr, err := netip.ParseAddr(destination)
	if err == nil {
		if prefix, err := netip.ParsePrefix(r.destination); err == nil {
			return 1000 + prefix.Bits(), prefix.Contains(addr)
		}
		return 2000, r.destination == destination
	}
	if suffix, ok := strings.CutPrefix(r.destination, "**."); ok {
		return len(suffix) * 2, destination == suffix || strings.HasSuffix(destination, "."+suffix)
	}
	if suffix, ok := strings.CutPrefix(r.destination, "*."); ok {
		return len(suffix)*2 + 1, strings.HasSuffix(destination, "."+suffix)
	}
	return 2000, r.destination == destination
}

func portIn(ports string, port int) bool {
	if ports == "*" {
		return true
	}
	for part := range strings.SplitSeq(ports, ",") {
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			to = from
		}
		low, _ := strconv.Atoi(from)
		high, _ := strconv.Atoi(to)
		if low <= port && port <= high {
			return true
		}
	}
	return false
}

// naive decides by looking at every rule.
func naive(rules []simple, destination string, port int) (verdict, rule string) {
	verdict, best := "deny", -1
	for _, r := range rules {
		if rank, ok := r.matches(destination, port); ok && rank > best {
			verdict, rule, best = r.action, r.destination, rank
		}
	}
	return verdict, rule
}

// compare asks the daemon about connections that the first n of the rules are
// about, or nearly.
func (w *Weir) compare(box *Box, rules []simple, questions int, r *rand.Rand) (allowed int) {
	w.t.Helper()
	client := w.client()
	defer client.CloseIdleConnections()
	for range questions {
		n := r.IntN(len(rules)/5 + 2)
		destination := []string{
			fmt.Sprintf("host%d.zone%d.example", n, n/7), fmt.Sprintf("other.zone%d.example", n),
			fmt.Sprintf("area%d.example", n), fmt.Sprintf("a.b.area%d.example", n), fmt.Sprintf("xarea%d.example", n),
			fmt.Sprintf("20.%d.%d.%d", n>>8&255, n&255, n%200), fmt.Sprintf("20.%d.%d.201", n>>8&255, n&255),
		}[r.IntN(7)]
		port := []int{22, 80, 443, 8050}[r.IntN(4)]
		status, answer, err := call(client, "POST", "/v1/explain",
			fmt.Sprintf(`{"container":%q,"destination":%q,"port":%d}`, box.Name, destination, port))
		if err != nil || status != 200 {
			w.t.Fatalf("explain %s:%d: %v %d %s", destination, port, err, status, answer)
		}
		var d struct {
			Verdict, Reason string
			Rule            *Rule
		}
		if err := json.Unmarshal([]byte(answer), &d); err != nil {
			w.t.Fatal(err)
		}
		verdict, rule := naive(rules, destination, port)
		got := ""
		if d.Rule != nil {
			got = d.Rule.Destination
		}
		if d.Verdict != verdict || got != rule {
			w.t.Errorf("with %d rules, %s:%d: %s by %q (%s), want %s by %q", len(rules), destination, port, d.Verdict, got, d.Reason, verdict, rule)
		}
		if d.Verdict == "allow" {
			allowed++
		}
	}
	return allowed
}

// add adds rules by the API, many at once.
func (w *Weir) add(rules []simple) {
	w.t.Helper()
	next := make(chan simple)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			client := w.client()
			defer client.CloseIdleConnections()
			for r := range next {
				status, answer, err := call(client, "POST", "/v1/rules",
					fmt.Sprintf(`{"action":%q,"destination":%q,"ports":%q}`, r.action, r.destination, r.ports))
				if err != nil || status != 201 {
					w.t.Errorf("add %v: %v %d %s", r, err, status, answer)
				}
			}
		})
	}
	for _, r := range rules {
		next <- r
	}
	close(next)
	wg.Wait()
}

// document states rules as a policy document.
func document(rules []simple) string {
	var b strings.Builder
	b.WriteString("version: 1\nrules:\n")
	for _, r := range rules {
		fmt.Fprintf(&b, "- {%s: %q, ports: %q}\n", r.action, r.destination, r.ports)
	}
	return b.String()
}

func TestDecisionsAreTheSameWithTenRulesAndWithAHundredThousand(t *testing.T) {
	const few, many = 10, 100_000
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	o.addName("shop.example", "198.51.100.10")
	w := startPlainWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "shop.example:80")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var rules []simple
	for i := range many {
		rules = append(rules, nthRule(i))
	}

	w.add(rules[:few])
	if n := w.compare(box, rules[:few], 200, r); n == 0 || n == 200 {
		t.Errorf("%d of 200 allowed: proves nothing", n)
	}
	if out, ok := box.curl("http://shop.example/"); !ok {
		t.Errorf("with %d rules: %s", few, out)
	}

	start := time.Now()
	const byRequest = 3000
	w.add(rules[few : few+byRequest])
	t.Logf("%d rules by one request each, 64 at once: %.0f a second", byRequest, byRequest/time.Since(start).Seconds())
	start = time.Now()
	const perDocument = 18_000
	for i := few + byRequest; i < many; i += perDocument {
		text, err := json.Marshal(map[string]string{"policy": document(rules[i:min(many, i+perDocument)])})
		if err != nil {
			t.Fatal(err)
		}
		if status, answer := w.api("PUT", fmt.Sprintf("/v1/policies/part-%d", i), string(text)); status/100 != 2 {
			t.Fatalf("set a policy document of %d bytes: %d %s", len(text), status, answer)
		}
	}
	t.Logf("%d rules as documents: %v", many-few-byRequest, time.Since(start))
	var list struct{ Total int }
	status, answer := w.api("GET", "/v1/rules?source=global", "")
	if err := json.Unmarshal([]byte(answer), &list); err != nil || list.Total != many {
		t.Fatalf("%d: %v; %d rules, want %d", status, err, list.Total, many)
	}

	if n := w.compare(box, rules, 400, r); n == 0 || n == 400 {
		t.Errorf("%d of 400 allowed: proves nothing", n)
	}
	if out, ok := box.curl("http://shop.example/"); !ok {
		t.Errorf("with %d rules: %s", many, out)
	}
	if out, ok := box.curl("http://198.51.100.10/"); ok {
		t.Errorf("with %d rules what no rule allows was reached: %s", many, out)
	}

	// A change counts when the call returns, whatever else there is.
	for i := range 5 {
		start := time.Now()
		status, answer := w.api("POST", "/v1/rules", `{"action":"deny","destination":"shop.example"}`)
		took := time.Since(start)
		var rule Rule
		if err := json.Unmarshal([]byte(answer), &rule); err != nil || status != 201 {
			t.Fatalf("%d %s", status, answer)
		}
		if out, ok := box.curl("http://shop.example/"); ok {
			t.Errorf("change %d: reached after the rule that denies it was added: %s", i, out)
		}
		start = time.Now()
		w.api("DELETE", "/v1/rules/"+rule.ID, "")
		t.Logf("one rule more counts after %v, one less after %v", took, time.Since(start))
		if out, ok := box.curl("http://shop.example/"); !ok {
			t.Errorf("change %d: not reached after the rule that denied it was removed: %s", i, out)
		}
	}

	// All of it comes back.
	start = time.Now()
	w.kill()
	w.start()
	t.Logf("started again with %d rules in %v", many, time.Since(start))
	w.compare(box, rules, 100, r)
}
