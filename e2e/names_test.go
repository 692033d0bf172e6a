package e2e

import (
	"slices"
	"strings"
	"testing"
)

func TestDNSIsAnsweredByWeirWhateverServerIsAsked(t *testing.T) {
	o := newOutside(t)
	o.addName("good.example", "198.51.100.10", "2001:db8:77::10")
	o.addName("secret.good.example", "198.51.100.11")
	o.addName("denied.example", "198.51.100.12")
	seen := map[string]func() []string{}
	for _, server := range []string{"8.8.8.8", "1.1.1.1", "198.51.100.1", "2001:db8:77::53"} {
		seen[server] = o.watch(server)
	}
	w := startWeir(t, "")
	for network, box := range map[string]*Box{
		"default bridge": newBox(t),
		"user-defined":   newBox(t, "--network", newNetwork(t, "--ipv6", "--subnet", "fd00:77:3::/64")),
		"none":           newBox(t, "--network", "none"),
	} {
		t.Run(network, func(t *testing.T) {
			w.run("attach", box.Name, "--allow", "good.example:443", "--allow", "198.51.100.12")
			dig := func(args ...string) string {
				out, _ := box.exec(append([]string{"dig", "+tries=1", "+timeout=5"}, args...)...)
				return out
			}
			o.asks()
			ways := [][]string{
				{"@8.8.8.8"}, {"@8.8.8.8", "+tcp"}, {"@1.1.1.1"}, {"@198.51.100.1"},
				{"@127.0.0.11"}, {"@127.0.0.11", "+tcp"}, nil, {"+tcp"},
			}
			if network == "user-defined" { // elsewhere Docker has IPv6 switched off
				ways = append(ways, []string{"@2001:db8:77::53"}, []string{"@2001:db8:77::53", "+tcp"})
			}
			for _, way := range ways {
				out := dig(append(way, "good.example")...)
				if !strings.Contains(out, "status: NOERROR") || !strings.Contains(out, "198.51.100.10") {
					t.Errorf("%v: an allowed name: %s", way, out)
				}
				if out := dig(append(way, "+short", "AAAA", "good.example")...); !strings.Contains(out, "2001:db8:77::10") {
					t.Errorf("%v: the IPv6 address of an allowed name: %s", way, out)
				}
				for _, args := range [][]string{
					{"denied.example"}, {"secret.good.example"}, {"TXT", "denied.example"}, {"HTTPS", "denied.example"},
					{"ANY", "denied.example"}, {"aGVsbG8gd29ybGQ.evil.test"}, {"NULL", "x.evil.test"},
				} {
					out := dig(append(slices.Clone(way), args...)...)
					for _, want := range []string{"status: NXDOMAIN", "EDE: 15 (Blocked)", "ANSWER: 0, AUTHORITY: 0"} {
						if !strings.Contains(out, want) {
							t.Errorf("%v %v: no %q in %s", way, args, want, out)
						}
					}
				}
			}
			if asked := o.asks(); slices.ContainsFunc(asked, func(n string) bool { return n != "good.example." }) {
				t.Errorf("asked upstream: %v", asked)
			}
			w.waitEvent(box.Name, "the refused name", func(e Event) bool {
				return e.Type == "dns" && e.Verdict == "deny" && e.Host == "denied.example" && e.Layer == "default" && e.Reason != ""
			})
			// Nothing is remembered of a refusal: the rule counts at once.
			w.run("session", "create", box.Name, "--allow", "denied.example")
			if out := dig("@8.8.8.8", "denied.example"); !strings.Contains(out, "198.51.100.12") {
				t.Errorf("after its rule: %s", out)
			}
			if out, ok := box.exec("getent", "hosts", "localhost"); !ok {
				t.Errorf("localhost: %s", out)
			}
			w.run("detach", box.Name)
		})
	}
	for server, packets := range seen {
		if list := packets(); len(list) > 0 {
			t.Errorf("packets reached %s: %v", server, list)
		}
	}
}
