package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// echoUDP sends back every datagram that comes to address.
func (o *Outside) echoUDP(address string) {
	o.t.Helper()
	var c net.PacketConn
	if err := o.in(func() (err error) { c, err = net.ListenPacket("udp", address); return }); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
}

// udp asks for an echo of a datagram and says "echo", "timeout" or what the
// socket says. A refusal must not take long.
const udpClient = `
import socket, sys, time
def ask(host, port, size=1, wait=4):
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(family, kind); s.settimeout(wait)
    data = bytes(i % 251 for i in range(size)); start = time.monotonic()
    try:
        s.connect(address); s.send(data); answer = s.recv(70000)
        said = "echo" if answer == data else "another answer"
    except socket.timeout: return "timeout"
    except OSError as e: said = e.strerror
    took = time.monotonic() - start
    return said if took < 2 else "%s after %.1f s" % (said, took)
`

func (b *Box) python(program string) string {
	b.t.Helper()
	out, ok := b.exec("python3", "-c", udpClient+program)
	if !ok {
		b.t.Fatalf("python: %s", out)
	}
	return strings.TrimSpace(out)
}

func (b *Box) askUDP(host string, port, size int) string {
	b.t.Helper()
	return b.python(fmt.Sprintf("print(ask(%q, %d, %d))", host, port, size))
}

func (b *Box) expectUDP(when, host string, port, size int, want string) {
	b.t.Helper()
	if got := b.askUDP(host, port, size); got != want {
		b.t.Errorf("%s: %d bytes by UDP to %s port %d: %q, want %q", when, size, host, port, got, want)
	}
}

const refusedUDP = "Connection refused"

func TestUDPPassesByRulesThatNameIt(t *testing.T) {
	o := newOutside(t)
	for _, a := range []string{"198.51.100.5:5000", "[2001:db8:77::5]:5000", "198.51.100.6:5000", "198.51.100.7:443", "198.51.100.66:5000"} {
		o.echoUDP(a)
	}
	o.addName("game.example", "198.51.100.6")
	o.addName("quic.example", "198.51.100.7")
	hello(o, "198.51.100.7:443")
	seen := o.watch("198.51.100.66")
	w := startWeir(t, "")
	box := newBox(t, "--network", newNetwork(t, "--ipv6", "--subnet", "fd00:77:2::/64"))
	box.expectUDP("before the attach", "198.51.100.5", 5000, 1, "echo")

	w.run("attach", box.Name)
	for _, host := range []string{"198.51.100.5", "2001:db8:77::5", "198.51.100.66"} {
		box.expectUDP("with no rule", host, 5000, 1, refusedUDP)
	}
	e := w.waitEvent(box.Name, "a denied association", func(e Event) bool { return e.Type == "connect" && e.Address == "198.51.100.5" })
	if e.Verdict != "deny" || e.Layer != "default" || e.Port != 5000 || e.Container != box.Name {
		t.Errorf("event %+v", e)
	}

	session := unique(t, "udp")
	w.run("session", "create", box.Name, "--id", session, "--allow", "198.51.100.5:5000/udp", "--allow", "[2001:db8:77::5]:5000/udp",
		"--allow", "game.example:5000/udp", "--allow", "quic.example:443", "--allow", "198.51.100.66:5000/tcp")
	for _, host := range []string{"198.51.100.5", "2001:db8:77::5", "game.example"} {
		for _, size := range []int{1, 1400, 8192, 0} {
			box.expectUDP("allowed", host, 5000, size, "echo")
		}
	}
	box.expectUDP("allowed, to another port", "198.51.100.5", 5001, 1, refusedUDP)
	box.expectUDP("allowed over tcp only", "198.51.100.66", 5000, 1, refusedUDP)
	// QUIC is refused at once, so that its client takes TCP.
	box.expectUDP("a rule that does not name udp", "quic.example", 443, 1200, refusedUDP)
	if out, ok := box.curl("http://quic.example:443/"); !ok {
		t.Errorf("over TCP: %s", out)
	}
	// Many clients at once, all from one program.
	if got := box.python(`
socks=[socket.socket(socket.AF_INET,socket.SOCK_DGRAM) for _ in range(300)]
for i,s in enumerate(socks): s.settimeout(1); s.connect(("198.51.100.5",5000)); s.send(b"%d"%i)
def answered(i,s): # a datagram may be lost on a busy machine: asked again, as every client does
  for _ in range(5):
    try: return s.recv(99)==b"%d"%i
    except TimeoutError: s.send(b"%d"%i)
print(sum(answered(i,s) is True for i,s in enumerate(socks)))`); got != "300" {
		t.Errorf("of 300 clients %s were answered", got)
	}
	// One unconnected socket speaks to several.
	if got := box.python(`
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5); s.bind(("",5000))
for a in ("198.51.100.5","198.51.100.6"): s.sendto(a.encode(),(a,5000))
print(sorted((d.decode(),a[0],a[1]) for d,a in (s.recvfrom(99) for _ in range(2))))`); got != "[('198.51.100.5', '198.51.100.5', 5000), ('198.51.100.6', '198.51.100.6', 5000)]" {
		t.Errorf("unconnected: %s", got)
	}

	// explain says what the data path does.
	for dest, want := range map[string]string{"198.51.100.5:5000/udp": "ALLOWED", "game.example:5000/udp": "ALLOWED", "quic.example:443/udp": "DENIED", "198.51.100.66:5000/udp": "DENIED"} {
		if out := w.run("explain", box.Name, dest); !strings.HasPrefix(out, want) {
			t.Errorf("explain %s: want %s\n%s", dest, want, out)
		}
	}

	// The end of the session cuts what is live, and says so.
	cut := make(chan string, 1)
	go func() {
		cut <- box.python(`
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5); s.connect(("198.51.100.5",5000))
said=0
for _ in range(200):
    try:
        s.send(b"x"); s.recv(9); said+=1
    except OSError as e:
        print("cut" if said else "never", e.strerror); break
    time.sleep(0.05)
else: print("never cut")`)
	}()
	eventually(t, "an association", func() bool { return w.attached(box.Name).Flows > 0 })
	w.run("session", "end", session)
	if got := <-cut; got != "cut Connection refused" && got != "never Connection refused" {
		t.Errorf("at the end of the session: %s", got)
	}
	w.waitEvent(box.Name, "what was cut", func(e Event) bool {
		return e.Type == "connect" && e.Address == "198.51.100.5" && e.Verdict == "deny" && e.BytesIn > 0
	})
	box.expectUDP("after the session", "198.51.100.5", 5000, 1, refusedUDP)
	if got := seen(); len(got) > 0 {
		t.Errorf("%d packets reached the canary", len(got))
	}
}

// Learning mode lets UDP pass and records it; the guard holds.
func TestUDPInLearningMode(t *testing.T) {
	o := newOutside(t)
	o.echoUDP("198.51.100.5:5000")
	o.echoUDP("169.254.169.254:5000")
	o.addName("game.example", "198.51.100.5")
	metadata := o.watch("169.254.169.254")
	w := startWeir(t, "limits:\n  udp_idle: 1s\n")
	box := newBox(t)
	w.run("attach", box.Name, "--allow-all")
	box.expectUDP("learning", "game.example", 5000, 1, "echo")
	box.expectUDP("learning", "169.254.169.254", 5000, 1, refusedUDP)
	e := w.waitEvent(box.Name, "an association", func(e Event) bool { return e.Type == "connect" && e.Address == "198.51.100.5" })
	if e.Verdict != "allow" || e.Layer != "allow_all" || e.Host != "game.example" || e.BytesIn != 1 || e.Would == nil ||
		!strings.Contains(e.Binary, "python") || !strings.Contains(e.Reason, "1 datagrams out, 1 in") {
		t.Errorf("event %+v", e)
	}
	if got := metadata(); len(got) > 0 {
		t.Errorf("%d packets reached the metadata service", len(got))
	}
}

// The ways past the capture lead nowhere, whatever capabilities there are.
func TestUDPAttacks(t *testing.T) {
	o := newOutside(t)
	seen := o.watch("198.51.100.66")
	w := startWeir(t, "")
	box := newBox(t, "--cap-add", "NET_ADMIN")
	w.run("attach", box.Name, "--allow", "198.51.100.5:5000/udp")
	attack := `
for mark in (0, 0x08000087, 0x08000088, 0x04000000, 0xffffffff):
    for device in (None, b"eth0"):
        try:
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            s.setsockopt(socket.SOL_SOCKET, 36, mark - (1 << 32) if mark >> 31 else mark)
            if device: s.setsockopt(socket.SOL_SOCKET, 25, device)
            for port in (53, 443, 5000): s.sendto(b"CANARY", ("198.51.100.66", port))
        except OSError: pass
print("done")`
	for _, change := range []string{
		"true",
		"ip rule del pref 87",
		"ip rule add pref 1 lookup main",
		"ip route flush table 8787",
		"ip route replace default via $(ip route show default | cut -d' ' -f3) dev eth0 table 8787",
		"nft 'table inet x { chain c { type route hook output priority 2147483647; meta mark set 77; }; }'",
		"nft flush ruleset",
	} {
		if out, ok := box.sh(change); !ok {
			t.Fatalf("%s: %s", change, out)
		}
		box.python(attack)
		if got := seen(); len(got) > 0 {
			t.Errorf("after %s: %d packets reached the canary", change, len(got))
		}
	}
	w.waitEvent(box.Name, "the routing was put back", func(e Event) bool {
		return e.Type == "tamper" && strings.Contains(e.Reason, "routing of captured datagrams") && strings.Contains(e.Reason, "restored")
	})
	o.echoUDP("198.51.100.5:5000")
	box.sh("ip rule del pref 1; nft delete table inet x")
	eventually(t, "UDP works again", func() bool { return box.askUDP("198.51.100.5", 5000, 1) == "echo" })
}

// A container without a network gets what its rules say, too.
func TestUDPWithoutANetwork(t *testing.T) {
	o := newOutside(t)
	o.echoUDP("198.51.100.5:5000")
	o.addName("game.example", "198.51.100.5")
	w := startWeir(t, "")
	box := newBox(t, "--network", "none") // Docker gives it no IPv6
	before := box.netState()
	w.run("attach", box.Name, "--allow", "game.example:5000/udp")
	box.expectUDP("none", "game.example", 5000, 8192, "echo")
	box.expectUDP("none", "198.51.100.66", 5000, 1, refusedUDP)
	w.run("detach", box.Name)
	if after := box.netState(); after != before {
		t.Errorf("the network is another than before:\n%s\nwas:\n%s", after, before)
	}
}

// netState is what attaching changes in a container.
func (b *Box) netState() string {
	return run(b.t, "nsenter", "-t", b.pid(), "-n", "sh", "-c",
		"nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip addr")
}

// A client outlives the daemon: its datagrams are lost meanwhile, and pass again.
func TestUDPOverADaemonsRestart(t *testing.T) {
	o := newOutside(t)
	o.echoUDP("198.51.100.5:5000")
	seen := o.watch("198.51.100.66")
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "198.51.100.5:5000/udp")
	for _, how := range []string{"stop", "kill", "upgrade"} {
		started := time.Now()
		box.sh("rm -f /tmp/stage")
		result := make(chan string, 1)
		go func() {
			result <- box.python(`
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(0.3); s.connect(("198.51.100.5",5000))
before=after=0; errors=set(); back=False
end=time.monotonic()+40
while time.monotonic()<end and after<5:
    if before: back=open("/tmp/stage").read()=="back"
    try:
        s.send(b"x"); s.recv(9)
        if back: after+=1
        elif not before: open("/tmp/stage","w").write("running"); before=1
    except OSError as e: errors.add(type(e).__name__)
print(before, after, sorted(errors-{"timeout","TimeoutError"}))`)
		}()
		eventually(t, "an answer", func() bool { out, _ := box.sh("cat /tmp/stage"); return out == "running" })
		switch how {
		case "stop":
			w.stop()
			box.expectUDP("without a daemon", "198.51.100.66", 5000, 1, "timeout")
			w.start()
		case "kill":
			w.kill()
			box.expectUDP("without a daemon", "198.51.100.66", 5000, 1, "timeout")
			w.start()
		case "upgrade":
			w.run("upgrade")
		}
		eventually(t, "attached again", func() bool { a := w.attached(box.Name); return a != nil && a.State == "attached" })
		if out, ok := box.sh("printf back > /tmp/stage"); !ok {
			t.Fatal(out)
		}
		if got := <-result; got != "1 5 []" {
			t.Errorf("%s: the client says %q", how, got)
		}
		t.Logf("%s: %v", how, time.Since(started))
	}
	if got := seen(); len(got) > 0 {
		t.Errorf("%d packets reached the canary", len(got))
	}
}
