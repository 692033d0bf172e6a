package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What counts packets, and what a listing counts or dates by itself.
var volatile = regexp.MustCompile(`counter packets \d+ bytes \d+|\[\d+:\d+\]|^# (Generated|Completed).*`)

// network is everything of a box's network that Weir could change.
func (b *Box) network() []string {
	b.t.Helper()
	var all []string
	for _, command := range []string{
		"nft list ruleset", "iptables-save", "ip6tables-save",
		"ip -o link", "ip -o addr", "ip route show table all", "ip -6 route show table all",
		"ip rule", "ip -6 rule", "ip neigh show nud permanent", "ss -ltnuH", "tc qdisc", "tc filter",
		"sysctl net.ipv4 net.ipv6",
	} {
		all = append(all, "== "+command)
		for _, line := range strings.Split(b.nsenter(strings.Fields(command)...), "\n") {
			all = append(all, volatile.ReplaceAllString(line, ""))
		}
	}
	return all
}

// settled is the box's network once addresses are no longer tentative.
func (b *Box) settled() (state []string) {
	b.t.Helper()
	eventually(b.t, "the box's network is still", func() bool {
		before := state
		state = b.network()
		return cmp.Equal(before, state) && !strings.Contains(strings.Join(state, "\n"), "tentative")
	})
	return state
}

// traces is what Weir has on the host for a box: its own lock, and the tables
// that all locks share when no other lock is left to share them.
func (b *Box) traces() (found []string) {
	b.t.Helper()
	tables := run(b.t, "nft", "list", "tables")
	for _, line := range strings.Split(tables, "\n") {
		if strings.Contains(line, b.ID[:12]) || strings.HasSuffix(line, " weir_lock") && !strings.Contains(tables, " weir-") {
			found = append(found, line)
		}
	}
	return found
}

func TestDetachRestoresExactly(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	o.serveHTTP("198.51.100.10:80", greet("198.51.100.10"))
	host := func() string {
		routes := run(t, "ip", "rule") + run(t, "ip", "-6", "rule") + run(t, "ip", "route")
		// Whether a bridge has somebody on it is not Weir's doing.
		return strings.ReplaceAll(routes, " linkdown", "")
	}
	w := startWeir(t, "")
	for kind, args := range map[string][]string{
		"default bridge":       nil,
		"user-defined":         {"--network", newNetwork(t, "--ipv6", "--subnet", "fd00:77:5::/64")},
		"none":                 {"--network", "none"},
		"none, with IPv6":      {"--network", "none", "--sysctl", "net.ipv6.conf.all.disable_ipv6=0"},
		"with rules of theirs": {"--cap-add", "NET_ADMIN"},
	} {
		for _, end := range []string{"detached", "daemon restarted, then detached", "daemon killed, then detached"} {
			t.Run(kind+", "+end, func(t *testing.T) {
				box := newBox(t, args...)
				box.t = t
				if strings.Contains(kind, "theirs") {
					if out, ok := box.sh("nft 'add table inet theirs; add chain inet theirs out { type filter hook output priority 0; }; add rule inet theirs out tcp dport 25 drop' && ip rule add to 198.51.100.99 lookup 99"); !ok {
						t.Fatal(out)
					}
				}
				before, outside := box.settled(), host()
				w.run("attach", box.Name, "--allow", "shop.example:80", "--allow", "198.51.100.10:80")
				if out, ok := box.curl("http://198.51.100.10/"); !ok {
					t.Errorf("attached: %s", out)
				}
				if out, ok := box.curl("http://198.51.100.11/"); ok {
					t.Errorf("attached: %s", out)
				}
				if cmp.Equal(before, box.network()) {
					t.Fatalf("the attach changed nothing that is looked at")
				}
				if kind != "none" && kind != "none, with IPv6" && len(box.traces()) == 0 {
					t.Fatalf("nothing of Weir is found on the host while it is attached")
				}
				switch end {
				case "daemon restarted, then detached":
					w.stop()
					w.start()
				case "daemon killed, then detached":
					w.kill()
					w.start()
				}
				w.run("detach", box.Name)
				if d := cmp.Diff(before, box.settled()); d != "" {
					t.Errorf("the container's network is another than before (-before +after):\n%s", d)
				}
				eventually(t, fmt.Sprintf("nothing is left on the host: %v", box.traces()), func() bool { return len(box.traces()) == 0 })
				if d := cmp.Diff(outside, host()); d != "" {
					t.Errorf("the host's routing is another than before (-before +after):\n%s", d)
				}
				if a := w.attached(box.Name); a != nil {
					t.Errorf("still listed: %+v", a)
				}
				if out, code := w.try("detach", box.Name); code != 1 || !strings.Contains(out, "not attached") {
					t.Errorf("a second detach: exit %d, %s", code, out)
				}
				if !strings.HasPrefix(kind, "none") && !box.reaches("http://198.51.100.10/", "hello") {
					t.Errorf("its network does not work any more")
				}
			})
		}
	}
}
