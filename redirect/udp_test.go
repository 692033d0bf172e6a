package redirect

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// marked is a socket that has set the mark of captured datagrams itself.
const marked = talk + `
import struct
def marked(host, port, data=b"x", mark=0x08000087):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, UDP); s.settimeout(3)
    s.setsockopt(socket.SOL_SOCKET, 36, mark); s.connect((host, port))
    try: s.send(data); return s.recv(99999).decode()
    except socket.timeout: return "timeout"
    except OSError as e: return e.strerror
`

// The mark, the length, the route and the port of a datagram change nothing.
func TestCaptureUDP(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	a := l.install(ns)
	echoDNS(a)
	echoUDP(a)
	for _, c := range []struct{ program, want string }{
		{`marked("198.51.100.1", 443)`, "198.51.100.1:443 1"},
		{`marked("2001:db8:8::8", 443)`, "[2001:db8:8::8]:443 1"},
		{`marked("198.51.100.1", 443, mark=1)`, "198.51.100.1:443 1"},
		{`marked("198.51.100.1", 9)`, "Connection refused"},
		{`marked("8.8.8.8", 53)`, "udp shim x"},
		{`marked("2001:db8:8::8", 53)`, "udp shim x"},
		{`marked("127.0.0.11", 40000)`, "Operation not permitted"},
		{`marked("224.0.0.251", 5353)`, "timeout"}, // it gets no further than lo
		{`marked("198.51.100.1", 443, b"x" * 8192)`, "198.51.100.1:443 8192"},
		{`marked("2001:db8:8::8", 443, b"x" * 8192, 0)`, "[2001:db8:8::8]:443 8192"},
		{`marked("198.51.100.1", 443, b"x" * 65507, 0)`, "198.51.100.1:443 65507"},
		{`marked("198.51.100.1", 443, b"", 0)`, "198.51.100.1:443 0"},
	} {
		if got := l.python("ct", marked+"print("+c.program+")"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.program, got, c.want)
		}
	}
	// A program that is bound to the port of the other side, as NTP is.
	got := l.python("ct", `
import socket
s=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); s.settimeout(3); s.bind(("::",123)); s.sendto(b"x",("::ffff:198.51.100.1",123))
d,a=s.recvfrom(99); print(d.decode(), a[0], a[1])`)
	if want := "198.51.100.1:123 1 ::ffff:198.51.100.1 123"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// An interface by name is a way around the route, and closed.
	for _, host := range []string{"198.51.100.1", "2001:db8:8::8"} {
		got := l.python("ct", fmt.Sprintf(`
import socket
s=socket.socket(socket.AF_INET6 if ":" in %[1]q else socket.AF_INET,socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET,25,b"eth0")
try: s.sendto(b"x",(%[1]q,443)); print("sent")
except OSError as e: print(e.strerror)`, host))
		if got != "Operation not permitted" {
			t.Errorf("bound to eth0, to %s: %s", host, got)
		}
	}
	// An answer that connection tracking knows no question of does not turn the
	// next question into an answer.
	late := l.program("ct", `
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5); s.bind(("",7000)); s.connect(("198.51.100.1",443))
print("ready",flush=True); print(s.recv(99).decode(),flush=True); s.send(b"xx"); print(s.recv(99).decode(),flush=True)`)
	late()
	if err := a.UDP().Reply([]byte("push"), netip.MustParseAddrPort("172.30.0.2:7000"), netip.MustParseAddrPort("198.51.100.1:443")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"push", "198.51.100.1:443 2"} {
		if got := late(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	// An answer to somebody else's address would be captured again.
	l.python("ct", `
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.setsockopt(0,19,1); s.bind(("203.0.113.7",443)); s.sendto(b"spoofed",("198.51.100.1",443)); print("sent")`)
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if got := l.python("ct", talk+`print(talk(UDP, "198.51.100.1", 443))`); got != "timeout" {
		t.Errorf("without a daemon: got %q, want %q", got, "timeout")
	}
}

// The ruleset alone, without the host's lock, lets no datagram out when the
// container changes its routing, its marks or its connection tracking.
func TestRoutingAttacks(t *testing.T) {
	l := newLeakTest(t, "0")
	a := l.install(l.open("ct"))
	echoUDP(a)
	l.sh("host", "nft flush ruleset")
	const send = `
for m in (0,0x08000087,1,0xffffffff):
    for h in outside+hosts+neighbours: udp(h,7777,m); udp(h,443,m)
`
	for _, change := range []struct{ do, undo string }{
		{"true", "true"},
		{"ip rule del pref 87; ip -6 rule del pref 87", "ip rule add pref 87 fwmark 0x08000087 lookup 8787 protocol 87; ip -6 rule add pref 87 fwmark 0x08000087 lookup 8787 protocol 87"},
		{"ip rule add pref 1 lookup main; ip -6 rule add pref 1 lookup main", "ip rule del pref 1; ip -6 rule del pref 1"},
		{"ip route flush table 8787; ip -6 route flush table 8787", "true"},
		{"ip route replace default via 172.30.0.1 dev eth0 table 8787; ip -6 route replace default via 2001:db8:30::1 dev eth0 table 8787", "true"},
		{"ip rule del pref 0; ip rule add pref 50 lookup local", "ip rule add pref 0 lookup local; ip rule del pref 50"},
		{"nft 'table inet x { chain c { type route hook output priority 2147483647; meta mark set 0x08000087; }; }'", "nft delete table inet x"},
		{"nft 'table inet x { chain c { type route hook output priority 2147483647; meta mark set 77; }; }'; ip rule add pref 1 fwmark 77 lookup main", "nft delete table inet x; ip rule del pref 1"},
		{"nft 'table inet x { chain c { type filter hook output priority -300; notrack; }; }'", "nft delete table inet x"},
		{"nft 'table inet x { chain c { type nat hook output priority -100; udp dport 443 dnat ip to 198.51.100.1:7777; }; }'", "nft delete table inet x"},
	} {
		l.sh("ct", change.do)
		l.silent(change.do, l.run(send))
		l.sh("ct", change.undo)
		if err := a.links.steer(); err != nil {
			t.Fatal(err)
		}
		if got := l.python("ct", talk+`print(talk(UDP, "198.51.100.1", 444))`); got != "198.51.100.1:444 1" {
			t.Errorf("after %q was undone: got %q", change.do, got)
		}
	}
}

// Somebody who watches puts the routing back.
func TestWatchRestoresRouting(t *testing.T) {
	w := newWatched(t)
	echoUDP(w.a)
	whole := w.state("ct")
	for _, do := range []string{
		"ip rule del pref 87", "ip -6 rule del pref 87", "ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default",
		"ip route flush table 8787", "ip -6 route flush table 8787",
		"ip route add blackhole 198.51.100.0/24 table 8787", "ip -6 route add unreachable 2001:db8:8::/64 table 8787",
	} {
		w.sh("ct", do)
		if got := w.next(Routing); !got.Restored || got.Err != nil {
			t.Errorf("%s: got %+v", do, got)
		}
		for _, call := range []string{`"198.51.100.1"`, `"2001:db8:8::8"`} {
			if got := w.python("ct", talk+"print(talk(UDP, "+call+", 443))"); !strings.HasSuffix(got, ":443 1") {
				t.Errorf("%s, then to %s: %q", do, call, got)
			}
		}
	}
	// One rule was put back in another place than among the lasting ones.
	same(t, whole, w.state("ct"))
}

// The socket goes on with the next process, and so do the clients.
func TestUDPHandover(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	before := l.state("ct")
	first := l.install(ns)
	client := l.program("ct", `
import socket,sys
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5); s.connect(("198.51.100.1",443))
s.send(b"x"); print("sent",flush=True); print(s.recv(99).decode(),flush=True)
s.send(b"xx"); print(s.recv(99).decode(),flush=True)`)
	client()
	sockets, err := first.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := Install(t.Context(), ns, Spec{Name: first.lock.name, Host: l.host, Sockets: sockets})
	if err != nil {
		t.Fatal(err)
	}
	echoUDP(second)
	for _, want := range []string{"198.51.100.1:443 1", "198.51.100.1:443 2"} {
		if got := client(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if len(second.Closed()) > 0 {
		t.Errorf("cut: %v", second.Closed())
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, before, l.state("ct"))
}

// The headers by the letter of the RFCs, the checksums added up by hand.
func TestDatagramHeaders(t *testing.T) {
	for _, c := range []struct {
		from, to, payload string
		want              []byte
	}{
		{"192.0.2.1:53", "192.0.2.2:4660", "hello", []byte{
			0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0xf6, 0xc8, 192, 0, 2, 1, 192, 0, 2, 2,
			0, 53, 0x12, 0x34, 0, 13, 0x25, 0x95}},
		{"[2001:db8::1]:53", "[2001:db8::2]:4660", "hello", []byte{
			0x60, 0, 0, 0, 0, 13, 17, 64,
			0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
			0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
			0, 53, 0x12, 0x34, 0, 13, 0x4e, 0x24}},
	} {
		from, to := netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to)
		if d := cmp.Diff(c.want, datagramHeaders(from, to, []byte(c.payload))); d != "" {
			t.Errorf("%s to %s (-want +got):\n%s", from, to, d)
		}
	}
}

// The checksum of what carries its own checksum is zero (RFC 1071).
func TestChecksums(t *testing.T) {
	for _, pair := range [][2]string{{"192.0.2.1:53", "192.0.2.2:9"}, {"[2001:db8::1]:53", "[2001:db8::2]:9"}} {
		client, dst := netip.MustParseAddrPort(pair[0]), netip.MustParseAddrPort(pair[1])
		header, protocol := 20, byte(1)
		if dst.Addr().Is6() {
			header, protocol = 40, 58
		}
		for n := range 40 {
			payload := bytes.Repeat([]byte{0xf7, 3}, n)[:n]
			h := datagramHeaders(client, dst, payload)
			pseudo := pseudoHeader(client.Addr(), dst.Addr(), 17, 8+n)
			if sum := checksum(pseudo, h[header:], payload); sum != 0 {
				t.Errorf("%s, %d bytes: off by %#x", client, n, sum)
			}
		}
		p := unreachable(client, dst)
		var pseudo []byte
		if dst.Addr().Is6() {
			pseudo = pseudoHeader(dst.Addr(), client.Addr(), protocol, len(p)-header)
		} else if sum := checksum(p[:header]); sum != 0 {
			t.Errorf("%s, IP header: off by %#x", client, sum)
		}
		if sum := checksum(pseudo, p[header:]); sum != 0 {
			t.Errorf("%s, unreachable: off by %#x", client, sum)
		}
	}
}
