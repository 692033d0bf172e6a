package e2e

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

//go:embed testdata/tryout.py
var tryout string

// besieged is a container whose root may do anything to its network, with
// everything around it that it must not reach.
type besieged struct {
	t         testing.TB
	o         *Outside
	w         *Weir
	box       *Box
	neighbour *Box
	network   string
	tryout    []string // the command that tries every way out
	seen      map[string]func() []string
	gateway   string
	onGateway atomic.Int64 // connections that reached the host
}

const (
	canary4 = "198.51.100.66"
	canary6 = "2001:db8:77::66"
)

// newBesieged starts it; args are more options of the container.
func newBesieged(t *testing.T, args ...string) *besieged {
	t.Helper()
	o := newOutside(t)
	b := &besieged{t: t, o: o, w: startWeir(t, ""), seen: map[string]func() []string{}}
	for _, canary := range []string{canary4, canary6} {
		hello(o, net.JoinHostPort(canary, "80"))
		b.seen[canary] = o.watch(canary)
	}
	b.network = newNetwork(t, "--ipv6", "--subnet", "fd00:77:2::/64")
	b.neighbour = newBox(t, "--network", b.network)
	b.box = newBox(t, append(args, "--network", b.network, "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "--dns", DNSAddress,
		"--sysctl", "net.ipv4.ping_group_range=0 2147483647")...)
	own, next := b.settings(b.box), b.settings(b.neighbour)
	b.gateway = own.Gateway
	b.listenOnGateway()
	ns, err := netns.GetFromPath("/proc/" + b.neighbour.pid() + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	b.seen["the neighbour"] = sniff(t, ns, notDiscovery)
	run(t, "docker", "exec", b.box.Name, "ping", "-c1", "-W2", b.gateway)
	mac := strings.Fields(strings.SplitN(b.box.nsenter("ip", "neigh", "show", b.gateway), "lladdr", 2)[1])[0]
	b.tryout = []string{
		"python3", "-c", tryout, canary4, canary6, b.gateway, mac,
		next.IPAddress, next.GlobalIPv6Address, next.MacAddress, "eth0",
	}
	return b
}

type endpoint struct {
	Gateway, IPAddress, GlobalIPv6Address, MacAddress string
}

func (b *besieged) settings(box *Box) endpoint {
	b.t.Helper()
	var networks map[string]endpoint
	out := run(b.t, "docker", "inspect", "-f", "{{json .NetworkSettings.Networks}}", box.Name)
	if err := json.Unmarshal([]byte(out), &networks); err != nil {
		b.t.Fatal(err)
	}
	return networks[b.network]
}

// listenOnGateway opens a server on the host's address in the network.
func (b *besieged) listenOnGateway() {
	b.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(b.gateway, "80"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.onGateway.Add(1)
			fmt.Fprintln(c, "the host")
			c.Close()
		}
	}()
}

// notDiscovery is true for packets other than IPv6 neighbour discovery and
// multicast listener reports, which make no connection.
func notDiscovery(p []byte) bool {
	if len(p) < 41 || p[0]>>4 != 6 {
		return len(p) >= 20 && p[0]>>4 == 4
	}
	discovery := p[6] == 58 && p[40] >= 133 && p[40] <= 137
	return !discovery && p[6] != 0
}

// attack runs a shell line as the container's root, then tries every way out.
func (b *besieged) attack(line string, more ...string) string {
	b.t.Helper()
	out, ok := b.box.exec(slices.Concat([]string{"sh", "-c", "set -e\n" + line + "\nexec \"$@\"", "sh"}, b.tryout, more)...)
	if !ok {
		b.t.Fatalf("%s: %s", line, out)
	}
	return out
}

// silent fails the test when anything got out.
func (b *besieged) silent(during, out string) {
	b.t.Helper()
	if strings.Contains(out, "ANSWER") {
		b.t.Errorf("%s: somebody answered: %s", during, out)
	}
	for who, seen := range b.seen {
		if packets := seen(); len(packets) > 0 {
			b.t.Errorf("%s: %d packets reached %s, the first: %s", during, len(packets), who, packets[0])
		}
	}
	if n := b.onGateway.Swap(0); n > 0 {
		b.t.Errorf("%s: %d connections reached the host", during, n)
	}
	if asked := b.o.asks(); len(asked) > 0 {
		b.t.Errorf("%s: the resolver was asked for %v", during, asked)
	}
}

func (b *besieged) ruleset() string {
	out, err := try("nsenter", "-t", b.box.pid(), "-n", "nft", "-s", "list", "table", "inet", "weir")
	if err != nil {
		return ""
	}
	return out
}

// What holds against root in the container is the lock on the host's side, and
// a ruleset that comes back.
func TestRootWithNetAdminStaysIn(t *testing.T) {
	b := newBesieged(t)

	// Without Weir every way out works, or the silence below means nothing.
	out := b.attack("true", "marks")
	for _, want := range []string{"tcp " + canary4, "tcp " + canary6, "tcp " + b.gateway} {
		if !strings.Contains(out, "ANSWER "+want) {
			t.Errorf("before the attach there is no answer by %s: %s", want, out)
		}
	}
	for who, seen := range b.seen {
		eventually(t, "packets before the attach to "+who, func() bool { return len(seen()) > 0 })
	}

	out = b.w.run("attach", b.box.Name)
	for _, want := range []string{"NET_ADMIN: its root can remove", "embedded DNS"} {
		if !strings.Contains(out, want) {
			t.Errorf("attach does not warn of %q: %s", want, out)
		}
	}
	b.w.run("session", "create", b.box.Name, "--id", "s", "--allow", "198.51.100.10:80")
	hello(b.o, "198.51.100.10:80")
	// Packets of the connections before may still be on their way.
	b.attack("true")
	whole := b.ruleset()
	for _, seen := range b.seen {
		seen()
	}
	b.o.asks()
	b.onGateway.Store(0)

	for _, attack := range []struct{ name, line, more string }{
		{name: "doing nothing", line: "true"},
		{name: "every mark", line: "true", more: "marks"},
		{name: "notrack", line: `nft 'add table inet t; add chain inet t c { type filter hook output priority -300; }; add rule inet t c notrack'`},
		{name: "an earlier translation", line: `nft 'add table inet n; add chain inet n c { type nat hook output priority -199; }
			add rule inet n c ip daddr 198.51.100.10 dnat ip to ` + canary4 + `; add rule inet n c accept'
			curl -s -m 2 http://198.51.100.10/ | sed s/^/ANSWER/`},
		{name: "rules in Weir's own chains", line: `nft 'insert rule inet weir capture_output accept; insert rule inet weir judge_output accept'`},
		{name: "Weir's table deleted", line: `nft delete table inet weir`},
		{name: "flush", line: `nft flush ruleset`},
		{name: "a flush without end", line: `(end=$(($(date +%s) + 4)); while [ $(date +%s) -lt $end ]; do nft flush ruleset; done) & sleep 0.1`},
	} {
		start := time.Now()
		out := b.attack(attack.line, strings.Fields(attack.more)...)
		t.Logf("%s: %v", attack.name, time.Since(start))
		b.silent(attack.name, out)
	}
	b.w.waitEvent(b.box.Name, "the ruleset was deleted and is back", func(e Event) bool {
		return e.Type == "tamper" && strings.Contains(e.Reason, "table inet weir was deleted") && strings.Contains(e.Reason, "restored")
	})
	b.w.waitEvent(b.box.Name, "a chain before Weir's", func(e Event) bool {
		return e.Type == "tamper" && strings.Contains(e.Reason, "inet n c") && strings.Contains(e.Reason, "before the capture")
	})

	// The flushes took the attacker's tables along; Weir's is back and works.
	b.box.exec("sh", "-c", "while pidof nft >/dev/null; do :; done; nft flush ruleset")
	eventually(t, "what is allowed works again", func() bool {
		out, _ := b.box.curl("http://198.51.100.10/")
		return strings.Contains(out, "hello")
	})
	if got := b.ruleset(); got != whole {
		t.Errorf("the ruleset is back, but not the same:\n%s\nwas:\n%s", got, whole)
	}

	// What changes the interface itself comes last: afterwards nothing works.
	for _, attack := range []struct{ name, line string }{
		{"another address", `ip addr add 198.51.100.200/32 dev eth0; ip -6 addr add 2001:db8:77::200/128 dev eth0 nodad; nft flush ruleset
			ip route replace default via ` + b.gateway + ` src 198.51.100.200`},
		{"a tun with a route", `mkdir -p /dev/net; mknod /dev/net/tun c 10 200; ip tuntap add tun0 mode tun && ip addr add 10.9.9.1/24 dev tun0 && ip link set tun0 up; nft flush ruleset`},
		{"another route table", `ip route add default via ` + b.gateway + ` dev eth0 table 77; ip rule add pref 1 lookup 77; nft flush ruleset`},
		{"a macvlan", `ip link add mv0 link eth0 type macvlan mode bridge; ip link set mv0 up; ip addr add ` + nextAddress(b.gateway) + `/16 dev mv0
			ip route replace default via ` + b.gateway + ` dev mv0; nft flush ruleset`},
		{"another hardware address", `ip link del mv0; ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:66; ip link set eth0 up
			ip route replace default via ` + b.gateway + `; nft flush ruleset`},
		{"packets of lo sent by eth0", `tc qdisc add dev lo clsact; tc filter add dev lo egress protocol all u32 match u32 0 0 action mirred egress redirect dev eth0; nft flush ruleset`},
	} {
		out := b.attack("{ " + attack.line + "; } >/dev/null 2>&1 || true")
		b.silent(attack.name, out)
	}
	b.w.waitEvent(b.box.Name, "other addresses", func(e Event) bool {
		return e.Type == "tamper" && strings.Contains(e.Reason, "other addresses")
	})
}

// nextAddress is an address in the network of gateway that nobody has.
func nextAddress(gateway string) string {
	ip := net.ParseIP(gateway).To4()
	return fmt.Sprintf("%d.%d.%d.%d", ip[0], ip[1], ip[2], 99)
}

// Rows 77 and 78 of docs/security.md: Docker's own resolver.
func TestDockersResolverIsClosedByItsRealPortAndAfterAFlush(t *testing.T) {
	o := newOutside(t)
	o.addName("leak.example", canary4)
	w := startWeir(t, "")
	box := newBox(t, "--network", newNetwork(t), "--cap-add", "NET_ADMIN", "--dns", DNSAddress)
	query := []string{"python3", "-c", `
import socket, sys
name = sys.argv[1]
q = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0\0\1\0\1"
def port(file, state):
    for line in open(file).read().splitlines()[1:]:
        f = line.split()
        if f[1].startswith("0B00007F:") and (state is None or f[3] == state):
            return int(f[1][9:], 16)
    sys.exit("docker's resolver is not in " + file)
try:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
    s.sendto(q, ("127.0.0.11", port("/proc/net/udp", None)))
    print("ANSWER udp", s.recv(512))
except OSError as e: print("udp", e)
try:
    s = socket.create_connection(("127.0.0.11", port("/proc/net/tcp", "0A")), 1)
    s.sendall(len(q).to_bytes(2, "big") + q); print("ANSWER tcp", s.recv(512))
except OSError as e: print("tcp", e)
`}
	ask := func(name string) string {
		out, ok := box.exec(append(query, name)...)
		if !ok {
			t.Fatalf("ask: %s", out)
		}
		return out
	}
	if out := ask("leak.example"); strings.Count(out, "ANSWER") != 2 || len(o.asks()) == 0 {
		t.Fatalf("before the attach Docker's resolver does not answer: %s", out)
	}
	out := w.run("attach", box.Name)
	if !strings.Contains(out, "embedded DNS") {
		t.Errorf("attach does not warn of NET_ADMIN with embedded DNS: %s", out)
	}
	out = ask("real-port.leak.example")
	if strings.Contains(out, "ANSWER") || strings.Contains(out, "timed out") {
		t.Errorf("by its real port: %s", out)
	}
	if asked := o.asks(); len(asked) > 0 {
		t.Errorf("asked upstream by the real port: %v", asked)
	}
	for i := range 10 {
		box.exec("nft", "flush", "ruleset")
		eventually(t, "the shim answers at 127.0.0.11", func() bool {
			out, _ := box.exec("dig", "+time=1", "+tries=1", "@127.0.0.11", fmt.Sprintf("flushed%d.leak.example", i))
			return strings.Contains(out, "NXDOMAIN")
		})
		if out := ask(fmt.Sprintf("real%d.leak.example", i)); strings.Contains(out, "ANSWER") {
			t.Errorf("by its real port after the flush: %s", out)
		}
	}
	if asked := o.asks(); len(asked) > 0 {
		t.Errorf("asked upstream after a flush: %v", asked)
	}
	w.waitEvent(box.Name, "tamper", func(e Event) bool { return e.Type == "tamper" && strings.Contains(e.Reason, "restored") })
	w.waitEvent(box.Name, "a denied name", func(e Event) bool {
		return e.Type == "dns" && e.Verdict == "deny" && e.Host == "flushed9.leak.example"
	})
}

// A flushed ruleset is back before a person could type the next command.
func TestFlushedRulesetComesBack(t *testing.T) {
	newOutside(t)
	w := startWeir(t, "")
	box := newBox(t, "--cap-add", "NET_ADMIN")
	w.run("attach", box.Name)
	pid := box.pid()
	var took []time.Duration
	for range 15 {
		run(t, "nsenter", "-t", pid, "-n", "nft", "flush", "ruleset")
		start := time.Now()
		eventually(t, "the ruleset is back", func() bool {
			_, err := try("nsenter", "-t", pid, "-n", "nft", "list", "chain", "inet", "weir", "judge_input")
			return err == nil
		})
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("back after, as seen by polling every 20 ms: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > time.Second {
		t.Errorf("half of the times the ruleset came back later than %v", took[len(took)/2])
	}
}

// What weakens Weir, in docs/security.md: by the number that its namespace has
// for the host's, root in the container makes interfaces there. They go again,
// each with an event, however often it tries; its own stay.
func TestInterfacesOnTheHostsAreRemoved(t *testing.T) {
	w := startWeir(t, "")
	box := newBox(t, "--network", newNetwork(t), "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW")
	if out := w.run("attach", box.Name); !strings.Contains(out, "until each is seen and removed") {
		t.Errorf("attach does not warn of it: %s", out)
	}
	host, err := net.InterfaceByName("docker0")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		name := fmt.Sprintf("on-host%d", i)
		add := fmt.Sprintf("ip link add link if%d name %s link-netnsid 0 type macvlan mode bridge && ip link set %s up", host.Index, name, name)
		// It may be gone before it is up.
		if out, ok := box.exec("sh", "-c", add); !ok && !strings.Contains(out, "Cannot find device") {
			t.Fatalf("the container cannot make one: %s", out)
		}
		w.waitEvent(box.Name, name+" was removed", func(e Event) bool {
			return e.Type == "tamper" && strings.Contains(e.Reason, "interface "+name+" has come and was removed")
		})
		if out, ok := box.exec("ip", "link", "show", name); ok {
			t.Errorf("%s is still there: %s", name, out)
		}
	}
	if out, ok := box.exec("sh", "-c", "ip link add own0 link eth0 type macvlan mode bridge && ip link set own0 up"); !ok {
		t.Fatalf("its own: %s", out)
	}
	w.waitEvent(box.Name, "its own is there", func(e Event) bool {
		return e.Type == "tamper" && strings.Contains(e.Reason, "interface own0 has come, it needs no lock")
	})
	if out, ok := box.exec("ip", "link", "show", "own0"); !ok {
		t.Errorf("its own is gone: %s", out)
	}
}

// What root in the container does to the listeners themselves takes its own
// egress, is on record, and does not last.
func TestListenersThatAreDestroyedAreOpenedAgain(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	o.echoUDP("198.51.100.10:7")
	o.addName("shop.example", "198.51.100.10")
	seen := o.watch(canary4)
	w := startWeir(t, "")
	box := newBox(t, "--cap-add", "NET_ADMIN")
	w.run("attach", box.Name, "--allow", "shop.example:80", "--allow", "198.51.100.10:7/udp")
	for _, destroy := range []string{"ss -K -l -t", "ss -K -u -a"} {
		if out, ok := box.curl("http://shop.example/"); !ok {
			t.Fatalf("before %s: %s", destroy, out)
		}
		before := len(w.events(box.Name, "--type", "tamper"))
		box.sh(destroy)
		box.curl("-m", "1", "http://"+canary4+"/")
		eventually(t, destroy+" is on record", func() bool {
			list := w.events(box.Name, "--type", "tamper")
			return len(list) > before && strings.Contains(list[len(list)-1].Reason, "was destroyed")
		})
		eventually(t, "what is allowed is reached after "+destroy, func() bool {
			_, ok := box.curl("-m", "2", "http://shop.example/")
			return ok && box.askUDP("198.51.100.10", 7, 1) == "echo"
		})
	}
	if packets := seen(); len(packets) > 0 {
		t.Errorf("%d packets reached the canary", len(packets))
	}
}
