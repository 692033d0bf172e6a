package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// times is how often a soak repeats: a number that fits into every run of the
// tests, or $WEIR_SOAK times as many (make soak).
func times(t *testing.T, n int) int {
	text := os.Getenv("WEIR_SOAK")
	if text == "" {
		return n
	}
	factor, err := strconv.Atoi(text)
	if err != nil || factor < 1 {
		t.Fatalf("WEIR_SOAK=%q: want a number from 1", text)
	}
	return n * factor
}

// newNamespace makes a network namespace that stands for a container, with a
// veth to the host.
func newNamespace(t *testing.T) string {
	t.Helper()
	name := unique(t, "ns")
	n := strings.Split(name, "-")
	link := fmt.Sprintf("wes%s%s", n[2][max(0, len(n[2])-4):], n[3])
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { try("ip", "netns", "del", name) })
	run(t, "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
	// No addresses that the kernel would still be making up while it is looked at.
	run(t, "ip", "-n", name, "link", "set", "eth0", "addrgenmode", "none")
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	run(t, "ip", "-n", name, "addr", "add", "198.19.7.2/24", "dev", "eth0")
	run(t, "ip", "-n", name, "link", "set", "eth0", "up")
	run(t, "ip", "link", "set", link, "up")
	run(t, "ip", "-n", name, "route", "add", "default", "via", "198.19.7.1", "dev", "eth0")
	return name
}

// footprint is everything that an attachment touches, in a namespace and outside.
func footprint(t *testing.T, namespace string) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{
		"nft list ruleset", "ip addr", "ip route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule",
	} {
		b.WriteString(run(t, "ip", append([]string{"netns", "exec", namespace}, strings.Fields(line)...)...))
	}
	for _, table := range strings.Split(run(t, "nft", "list", "tables"), "\n") {
		if strings.Contains(table, "weir") {
			b.WriteString(table + "\n")
		}
	}
	return b.String()
}

// resources counts what a daemon may leak.
func (w *Weir) resources() (files, threads, kilobytes int) {
	w.t.Helper()
	pid := w.pid()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		w.t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		fmt.Sscanf(line, "Threads: %d", &threads)
		fmt.Sscanf(line, "VmRSS: %d", &kilobytes)
	}
	return len(fds), threads, kilobytes
}

func (w *Weir) pid() int { return w.cmd.Process.Pid }

func TestManyAttachmentsLeaveNothingBehind(t *testing.T) {
	w := startWeir(t, "")
	ns := newNamespace(t)
	before := footprint(t, ns)
	cycle := func() {
		w.run("attach", "netns:"+ns, "--allow", "198.51.100.1:80")
		w.run("detach", "netns:"+ns)
	}
	for range 10 { // what is made once and kept
		cycle()
	}
	files, threads, memory := w.resources()
	n := times(t, 50)
	began := time.Now()
	for range n {
		cycle()
	}
	t.Logf("%d cycles, %s each", n, time.Since(began)/time.Duration(n))
	filesAfter, threadsAfter, memoryAfter := w.resources()
	t.Logf("files %d -> %d, threads %d -> %d, memory %d -> %d KB", files, filesAfter, threads, threadsAfter, memory, memoryAfter)
	// A leak of one in a cycle would show; what a pool keeps does not grow with n.
	if filesAfter > files+10 || threadsAfter > threads+10 {
		t.Errorf("files %d -> %d, threads %d -> %d after %d cycles", files, filesAfter, threads, threadsAfter, n)
	}
	if after := footprint(t, ns); after != before {
		t.Errorf("not as it was:\n%s\n--- before:\n%s", after, before)
	}
}

func TestKilledAtRandomMomentsItLosesNothingAndLeavesNothing(t *testing.T) {
	w := startWeir(t, "")
	ns := newNamespace(t)
	before := footprint(t, ns)
	ref := "netns:" + ns
	rules := 0
	for range times(t, 10) {
		done := make(chan int)
		go func() {
			// Whatever was answered with success must be there afterwards.
			added := 0
			for i := range 1000 {
				if _, code := w.try("rule", "add", "allow", fmt.Sprintf("r%d.example", i)); code != 0 {
					break
				}
				added++
				if _, code := w.try("attach", ref); code != 0 {
					break
				}
			}
			done <- added
		}()
		<-time.After(rand.N(300 * time.Millisecond))
		w.kill()
		rules += <-done
		w.start()
		var list struct{ Total int }
		w.json(&list, "rule", "list", "--source", "global")
		// One more may have been stored and not yet acknowledged.
		if list.Total < rules {
			t.Fatalf("%d rules were acknowledged, %d are there", rules, list.Total)
		}
		rules = list.Total
	}
	w.run("attach", ref)
	var attached []json.RawMessage
	if w.json(&attached, "ps"); len(attached) != 1 {
		t.Errorf("%d attached", len(attached))
	}
	w.run("detach", ref)
	if after := footprint(t, ns); after != before {
		t.Errorf("not as it was:\n%s\n--- before:\n%s", after, before)
	}
}
