package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// serve starts a web server inside that says whose it is.
func (b *Box) serve(port int) {
	b.t.Helper()
	if out, ok := b.sh("mkdir -p /srv && echo hello from " + b.Name + " >/srv/index.html"); !ok {
		b.t.Fatal(out)
	}
	run(b.t, "docker", "exec", "-d", b.Name, "python3", "-m", "http.server", fmt.Sprint(port), "--bind", "::", "--directory", "/srv")
	eventually(b.t, "the server inside listens", func() bool {
		return strings.Contains(b.nsenter("ss", "-ltnH"), fmt.Sprintf(":%d ", port))
	})
}

// address is the box's address on a network.
func (b *Box) address(network string) string {
	b.t.Helper()
	return strings.TrimSpace(run(b.t, "docker", "inspect", "-f",
		fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), b.Name))
}

// reaches says whether a web server answers, and with want in its answer.
func (b *Box) reaches(url, want string) bool {
	out, ok := b.curl(url)
	return ok && strings.Contains(out, want)
}

func TestNetworkNoneWorksThroughItsRules(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10", "2001:db8:77::10")
	for _, address := range []string{"198.51.100.10", "198.51.100.11", "[2001:db8:77::10]", "[2001:db8:77::11]"} {
		o.serveHTTP(address+":80", greet(address))
	}
	w := startWeir(t, "")
	for name, args := range map[string][]string{
		"as Docker makes it": {"--network", "none"},
		"with IPv6":          {"--network", "none", "--sysctl", "net.ipv6.conf.all.disable_ipv6=0"},
	} {
		t.Run(name, func(t *testing.T) {
			box := newBox(t, args...)
			if out, ok := box.curl("http://198.51.100.10/"); ok {
				t.Fatalf("reached without a network: %s", out)
			}
			urls := []string{"http://198.51.100.10/", "http://shop.example/"}
			if len(args) > 2 {
				urls = append(urls, "http://[2001:db8:77::10]/")
			}
			// Its resolv.conf may name a server that is not there: the shim answers.
			w.run("attach", box.Name)
			for _, url := range urls {
				if out, ok := box.curl(url); ok {
					t.Errorf("%s without a rule: %s", url, out)
				}
			}
			w.run("session", "create", box.Name, "--allow", "shop.example:80", "--allow", "198.51.100.10:80", "--allow", "[2001:db8:77::10]:80")
			for _, url := range urls {
				if out, ok := box.curl(url); !ok || !strings.Contains(out, "hello") {
					t.Errorf("%s: %s", url, out)
				}
			}
			if len(args) > 2 && !strings.Contains(first(box.curl("-6", "http://shop.example/")), "at [2001:db8:77::10]") {
				t.Errorf("the name over IPv6 is not reached")
			}
			for _, url := range []string{"http://198.51.100.11/", "http://[2001:db8:77::11]/"} {
				if out, ok := box.curl(url); ok {
					t.Errorf("%s: %s", url, out)
				}
			}
			w.run("detach", box.Name)
			if out, ok := box.curl("http://198.51.100.10/"); ok {
				t.Errorf("after the detach, without a network: %s", out)
			}
		})
	}
}

func first(out string, _ bool) string { return out }

func TestPublishedPortsKeepWorkingInbound(t *testing.T) {
	o := newOutside(t)
	echo(o, "198.51.100.30:7000")
	w := startWeir(t, "")
	box := newBox(t, "-p", "8000")
	box.serve(8000)
	port := strings.TrimSpace(run(t, "docker", "inspect", "-f", `{{(index (index .NetworkSettings.Ports "8000/tcp") 0).HostPort}}`, box.Name))
	check := func(when string) {
		t.Helper()
		for from, args := range map[string][]string{
			"the host":    {"curl", "-sS", "--max-time", "5", "http://127.0.0.1:" + port},
			"the outside": {"ip", "netns", "exec", o.name, "curl", "-sS", "--max-time", "5", "http://198.18.0.1:" + port},
			"the bridge":  {"curl", "-sS", "--max-time", "5", "http://" + box.address("bridge") + ":8000"},
		} {
			if out, err := try(args[0], args[1:]...); err != nil || !strings.Contains(out, "hello from "+box.Name) {
				t.Errorf("%s: the published port from %s: %v %s", when, from, err, out)
			}
		}
	}
	check("before the attach")
	w.run("attach", box.Name)
	check("attached")
	if box.echoes("198.51.100.30", 7000) {
		t.Errorf("outbound without a rule")
	}
	w.run("session", "create", box.Name, "--allow", "198.51.100.30:7000")
	live := box.connect("198.51.100.30", 7000, "busy")
	check("with a session")
	live.alive()
	w.kill()
	check("without the daemon")
	w.start()
	check("with the daemon back")
	w.run("detach", box.Name)
	check("detached")
}

func TestNeighboursAreReachedOnlyAsTheRulesSay(t *testing.T) {
	newOutside(t) // the resolver
	w := startWeir(t, "")
	network := newNetwork(t)
	a, b := newBox(t, "--network", network), newBox(t, "--network", network, "--network-alias", "service")
	b.serve(8000)
	address := b.address(network)
	byName, byAlias, byAddress := "http://"+b.Name+":8000/", "http://service:8000/", "http://"+address+":8000/"
	if !a.reaches(byName, "hello from "+b.Name) {
		t.Fatalf("neighbours do not reach each other without Weir")
	}
	w.run("attach", a.Name)
	for _, both := range []bool{false, true} {
		if both {
			w.run("attach", b.Name)
		}
		for _, c := range []struct {
			rules                []string
			name, alias, address bool
		}{
			{nil, false, false, false},
			{[]string{b.Name + ":8000"}, true, false, false},
			{[]string{b.Name + ":8001"}, false, false, false},
			{[]string{"service:8000"}, false, true, false},
			{[]string{address + ":8000"}, true, true, true},
			{[]string{address + "/28:8000"}, true, true, true},
			{[]string{"*"}, false, false, false}, // a wildcard opens no private address
		} {
			args := []string{"session", "create", a.Name, "--id", fmt.Sprintf("rules-%v", both)}
			for _, r := range c.rules {
				args = append(args, "--allow", r)
			}
			w.run(args...)
			for url, want := range map[string]bool{byName: c.name, byAlias: c.alias, byAddress: c.address} {
				if got := a.reaches(url, "hello from "+b.Name); got != want {
					t.Errorf("rules %v, both attached %v: %s reached: %v, want %v", c.rules, both, url, got, want)
				}
			}
		}
	}
	// The other way there is no rule at all.
	a.serve(8000)
	if out, ok := b.curl("http://" + a.Name + ":8000/"); ok {
		t.Errorf("a neighbour without rules reached %s", out)
	}
}

func TestANetworkThatIsConnectedLaterIsLockedAndCaptured(t *testing.T) {
	o := newOutside(t)
	o.serveHTTP("198.51.100.10:80", greet("198.51.100.10"))
	o.serveHTTP("198.51.100.11:80", greet("198.51.100.11"))
	w := startWeir(t, "")
	network := newNetwork(t)
	peer := newBox(t, "--network", network)
	peer.serve(8000)
	byName, byAddress := "http://"+peer.Name+":8000/", "http://"+peer.address(network)+":8000/"
	for name, args := range map[string][]string{"from a bridge": nil, "from none": {"--network", "none"}} {
		t.Run(name, func(t *testing.T) {
			box := newBox(t, args...)
			w.run("attach", box.Name, "--allow", "198.51.100.10:80")
			if !box.reaches("http://198.51.100.10/", "hello") {
				t.Errorf("not reached before")
			}
			if args != nil { // what Docker asks for before it connects a container of "none"
				run(t, "docker", "network", "disconnect", "none", box.Name)
			}
			run(t, "docker", "network", "connect", network, box.Name)
			interfaces := func() []string {
				var a struct{ Interfaces []string }
				w.json(&a, "attach", box.Name)
				return a.Interfaces
			}
			want := 2
			if args != nil {
				want = 1
			}
			eventually(t, "the new interface is known", func() bool { return len(interfaces()) == want })
			for _, url := range []string{byName, byAddress, "http://198.51.100.11/"} {
				if out, ok := box.curl(url); ok {
					t.Errorf("%s without a rule: %s", url, out)
				}
			}
			if !box.reaches("http://198.51.100.10/", "hello") {
				t.Errorf("its rule does not count any more")
			}
			w.run("session", "create", box.Name, "--allow", peer.Name+":8000")
			if !box.reaches(byName, "hello from "+peer.Name) || box.reaches(byAddress, "hello") {
				t.Errorf("a rule for the neighbour's name: %v by name, %v by address",
					box.reaches(byName, "hello"), box.reaches(byAddress, "hello"))
			}
			lock := run(t, "nft", "list", "table", "netdev", "weir-"+box.ID)
			if n := strings.Count(lock, "hook ingress"); n != want {
				t.Errorf("the host locks %d interfaces of %d: %s", n, want, lock)
			}
			run(t, "docker", "network", "disconnect", network, box.Name)
			eventually(t, "the interface is gone", func() bool { return len(interfaces()) == want-1 })
			if out, ok := box.curl("http://198.51.100.11/"); ok {
				t.Errorf("after the disconnect: %s", out)
			}
			w.run("detach", box.Name)
		})
	}
}

func TestContainersOfOneNamespaceAreOneAttachment(t *testing.T) {
	o := newOutside(t)
	o.serveHTTP("198.51.100.10:80", greet("198.51.100.10"))
	w := startWeir(t, "")
	owner := newBox(t)
	guest := newBox(t, "--network", "container:"+owner.Name)
	url := "http://198.51.100.10/"
	for _, b := range []*Box{owner, guest} {
		if !b.reaches(url, "hello") {
			t.Fatalf("not reached before the attach")
		}
	}
	w.run("attach", owner.Name)
	w.run("attach", guest.Name)
	var list []Attached
	if w.json(&list, "ps"); len(list) != 1 {
		t.Errorf("want one attachment, got %+v", list)
	}
	for _, b := range []*Box{owner, guest} {
		if b.reaches(url, "hello") {
			t.Errorf("%s reached %s without a rule", b.Name, url)
		}
	}
	// Whichever of them a session is for, it is the same one.
	for _, b := range []*Box{owner, guest} {
		s := w.session("create", b.Name, "--allow", "198.51.100.10:80")
		if !owner.reaches(url, "hello") || !guest.reaches(url, "hello") {
			t.Errorf("a session for %s: owner %v, guest %v", b.Name, owner.reaches(url, "hello"), guest.reaches(url, "hello"))
		}
		w.run("session", "end", s.ID)
	}
	w.run("detach", guest.Name)
	for _, b := range []*Box{owner, guest} {
		if !b.reaches(url, "hello") {
			t.Errorf("%s is not free after the detach", b.Name)
		}
	}

	// Attached by the guest's name: when the guest goes, the owner does not
	// come free. The session was the guest's.
	w.run("attach", guest.Name, "--allow", "198.51.100.10:80")
	for _, end := range []string{"removed", "removed while the daemon is down"} {
		if !owner.reaches(url, "hello") {
			t.Errorf("not reached by the session")
		}
		if end != "removed" {
			w.stop()
		}
		run(t, "docker", "rm", "-f", guest.Name)
		if end != "removed" {
			w.start()
		}
		eventually(t, "the owner takes the place of a guest that was "+end, func() bool {
			a := w.attached(owner.Name)
			return a != nil && a.State == "attached" && w.attached(guest.Name) == nil
		})
		if owner.reaches(url, "hello") {
			t.Errorf("reached by the session of a guest that was %s", end)
		}
		w.run("detach", owner.Name)
		if !owner.reaches(url, "hello") {
			t.Errorf("not free after the detach")
		}
		if tables := run(t, "nft", "list", "tables"); strings.Contains(tables, guest.ID[:12]) || strings.Contains(tables, owner.ID[:12]) {
			t.Errorf("tables are left: %s", tables)
		}
		if end == "removed" {
			guest = newBox(t, "--network", "container:"+owner.Name)
			w.run("attach", guest.Name, "--allow", "198.51.100.10:80")
		}
	}
}

func TestTheHostsOwnNetworkIsRefused(t *testing.T) {
	w := startWeir(t, "")
	box := newBox(t, "--network", "host")
	before := run(t, "nft", "list", "tables")
	for _, ref := range []string{box.Name, box.ID[:12], "pid:" + box.pid(), "netns:/proc/" + box.pid() + "/ns/net"} {
		out, code := w.try("attach", ref)
		if code != 1 || !strings.Contains(out, "host") || !strings.Contains(out, "network") {
			t.Errorf("attach %s: exit %d: %s", ref, code, out)
		}
	}
	var list []Attached
	if w.json(&list, "ps"); len(list) > 0 {
		t.Errorf("attached: %+v", list)
	}
	if after := run(t, "nft", "list", "tables"); strings.Contains(after, box.ID[:12]) && !strings.Contains(before, box.ID[:12]) {
		t.Errorf("tables are left: %s", after)
	}
}

func TestBareNamespacesAndProcesses(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	o.serveHTTP("198.51.100.10:80", greet("198.51.100.10"))
	o.serveHTTP("198.51.100.11:80", greet("198.51.100.11"))
	w := startWeir(t, "")
	name := unique(t, "bare")
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { try("ip", "netns", "del", name) })
	process := exec.Command("unshare", "-n", "sleep", "600")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Process.Signal(syscall.SIGKILL); process.Wait() })
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a process in a namespace of its own", func() bool {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", process.Process.Pid))
		return err == nil && ns != own
	})
	for ref, enter := range map[string][]string{
		"netns:/run/netns/" + name:                 {"ip", "netns", "exec", name},
		fmt.Sprintf("pid:%d", process.Process.Pid): {"nsenter", "-t", fmt.Sprint(process.Process.Pid), "-n"},
	} {
		t.Run(ref, func(t *testing.T) {
			in := func(args ...string) (string, bool) {
				args = append(slices.Clone(enter), args...)
				out, err := try(args[0], args[1:]...)
				return out, err == nil
			}
			before, _ := in("ip", "-o", "addr")
			w.run("attach", ref, "--allow", "shop.example:80", "--allow", "198.51.100.11:80")
			get := func(args ...string) (string, bool) {
				return in(append([]string{"curl", "-sS", "--max-time", "5"}, args...)...)
			}
			if out, ok := get("http://198.51.100.11/"); !ok || !strings.Contains(out, "hello") {
				t.Errorf("a rule for an address: %s", out)
			}
			if out, ok := get("http://198.51.100.10/"); ok {
				t.Errorf("an address without a rule: %s", out)
			}
			// The host's resolv.conf counts for these programs.
			if out, ok := get("http://shop.example/"); !ok || !strings.Contains(out, "hello shop.example") {
				t.Errorf("a rule for a name: %s", out)
			}
			w.waitEvent(ref, "what was refused", func(e Event) bool { return e.Verdict == "deny" && e.Address == "198.51.100.10" })
			w.run("detach", ref)
			if after, _ := in("ip", "-o", "addr"); after != before {
				t.Errorf("the interfaces are not as they were:\n%s\n%s", before, after)
			}
			if tables, _ := in("nft", "list", "ruleset"); tables != "" {
				t.Errorf("a ruleset is left: %s", tables)
			}
		})
	}
}
