package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// echoDNS answers every query with its own bytes and the name of the socket.
func echoDNS(a *Attachment) {
	pc, ln := a.DNS()
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo(append([]byte("udp shim "), buf[:n]...), from)
		}
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 512)
			n, _ := c.Read(buf)
			c.Write(append([]byte("tcp shim "), buf[:n]...))
			c.Close()
		}
	}()
}

// echoDst answers every captured connection with its original destination.
func echoDst(a *Attachment) {
	go func() {
		for {
			c, err := a.TCP().AcceptTCP()
			if err != nil {
				return
			}
			dst, err := OriginalDst(c)
			fmt.Fprintf(c, "%v %v", dst, err)
			c.Close()
		}
	}()
}

// echoUDP answers every captured datagram with its original destination and
// length, but refuses those to port 9.
func echoUDP(a *Attachment) {
	u := a.UDP()
	go func() {
		buf := make([]byte, MaxDatagram)
		for {
			n, client, dst, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			if dst.Port() == 9 {
				u.Refuse(client, dst)
				continue
			}
			u.Reply(fmt.Appendf(nil, "%v %d", dst, n), client, dst)
		}
	}()
}

// talk sends x from a connected socket and prints what comes back, or the
// error, which must come before the timeout.
const talk = `
import socket
def talk(kind, host, port, source=None):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, kind); s.settimeout(3)
    try:
        if source: s.bind((source, 0))
        s.connect((host, *port) if isinstance(port, tuple) else (host, port)); s.send(b"x")
        return s.recv(200).decode()
    except socket.timeout: return "timeout"
    except OSError as e: return e.strerror
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
`

// A client of Multipath TCP gets TCP, and is captured as all are.
func TestMultipathTCPFallsBack(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.sh("ct", "sysctl -qw net.mptcp.enabled=1")
	echoDst(l.install(ns))
	for _, host := range []string{"198.51.100.1", "2001:db8:8::8"} {
		got := l.python("ct", strings.Replace(talk, "socket.socket(family, kind)", "socket.socket(family, kind, 262)", 1)+
			fmt.Sprintf("print(talk(TCP, %q, 443))", host))
		if want := netip.AddrPortFrom(netip.MustParseAddr(host), 443).String() + " <nil>"; got != want {
			t.Errorf("to %s: got %q, want %q", host, got, want)
		}
	}
}

func TestCapture(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	const ping = "busybox ping -c1 -W3 198.51.100.1"
	l.sh("ct", ping) // it would get out
	a := l.install(ns)
	echoDNS(a)
	echoDst(a)
	echoUDP(a)
	p := a.listeners.ports()
	for _, c := range []struct{ call, want string }{
		{`TCP, "198.51.100.1", 443`, "198.51.100.1:443 <nil>"},
		{`TCP, "2001:db8:8::8", 443`, "[2001:db8:8::8]:443 <nil>"},
		{`TCP, "169.254.169.254", 80`, "169.254.169.254:80 <nil>"},
		{`TCP, "172.30.0.1", 22`, "172.30.0.1:22 <nil>"},
		{`TCP, "172.30.0.3", 22`, "172.30.0.3:22 <nil>"},
		{`UDP, "8.8.8.8", 53`, "udp shim x"},
		{`UDP, "2001:db8:8::8", 53`, "udp shim x"},
		{`UDP, "127.0.0.11", 53`, "udp shim x"},
		{`UDP, "127.0.0.1", 53`, "udp shim x"},
		{`UDP, "172.30.0.2", 53`, "udp shim x"},
		{`UDP, "::1", 53`, "udp shim x"},
		{`TCP, "8.8.8.8", 53`, "tcp shim x"},
		{`TCP, "2001:db8:8::8", 53`, "tcp shim x"},
		{`TCP, "127.0.0.11", 53`, "tcp shim x"},
		{`UDP, "198.51.100.1", 443`, "198.51.100.1:443 1"},
		{`UDP, "2001:db8:8::8", 443`, "[2001:db8:8::8]:443 1"},
		{`UDP, "172.30.0.3", 443`, "172.30.0.3:443 1"},
		{`UDP, "198.51.100.1", 9`, "Connection refused"},
		{`UDP, "2001:db8:8::8", 9`, "Connection refused"},
		{`UDP, "224.0.0.251", 5353`, "Operation not permitted"},
		{`UDP, "ff0e::fb", 5353`, "Operation not permitted"},
		{fmt.Sprintf(`UDP, "127.0.0.1", %d`, p.udp), "Connection refused"},
		{fmt.Sprintf(`UDP, "172.30.0.2", %d`, p.udp), "Connection refused"},
		{fmt.Sprintf(`UDP, "::1", %d`, p.udp), "Connection refused"},
		{`UDP, "127.0.0.11", 40000`, "Operation not permitted"},
		{`TCP, "127.0.0.11", 40000`, "Connection refused"},
		{fmt.Sprintf(`TCP, "127.0.0.1", %d`, p.tcp), "Connection refused"},
		{fmt.Sprintf(`TCP, "172.30.0.2", %d`, p.tcp), "Connection refused"},
		{fmt.Sprintf(`TCP, "::1", %d`, p.dnsTCP), "Connection refused"},
		{fmt.Sprintf(`UDP, "127.0.0.1", %d`, p.dnsUDP), "Connection refused"},
	} {
		if got := l.python("ct", talk+"print(talk("+c.call+"))"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.call, got, c.want)
		}
	}
	// Link-local destinations cannot be redirected; they are refused, not lost.
	for _, port := range []string{"53", "80"} {
		if got := l.python("ct", talk+`print(talk(TCP, "fe80::1", (`+port+`, 0, socket.if_nametoindex("eth0"))))`); got != "Connection refused" {
			t.Errorf("TCP to port %s of a link-local address: %q", port, got)
		}
	}
	if out, err := l.try("ct", ping); err == nil {
		t.Errorf("ping goes out:\n%s", out)
	}
	for _, raw := range []string{"socket.AF_INET, socket.SOCK_RAW, 47", "socket.AF_INET, socket.SOCK_RAW, 132", "socket.AF_INET, socket.SOCK_RAW, 1"} {
		got := l.python("ct", "import socket\ns=socket.socket("+raw+`)
try: s.sendto(b"x"*32, ("198.51.100.1",0)); print("sent")
except OSError as e: print(e.strerror)`)
		if got == "sent" {
			t.Errorf("raw socket %s sends", raw)
		}
	}
}

// The container's own loopback is its own.
func TestOwnLoopback(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.program("ct", `
import socket,threading
for f,a in ((socket.AF_INET,"127.0.0.1"),(socket.AF_INET6,"::1"),(socket.AF_INET,"172.30.0.2")):
    s=socket.socket(f); s.bind((a,8080)); s.listen()
    threading.Thread(target=lambda s=s:[(lambda c:(c.send(b"own"),c.close()))(s.accept()[0]) for _ in range(9)]).start()
print("ready")`)()
	l.install(ns)
	for _, host := range []string{"127.0.0.1", "::1", "172.30.0.2"} {
		if got := l.python("ct", talk+fmt.Sprintf("print(talk(TCP, %q, 8080))", host)); got != "own" {
			t.Errorf("%s: got %q, want %q", host, got, "own")
		}
	}
}

// Inbound connections work, and what they answer gets out.
func TestInbound(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.program("ct", `
import socket,threading
s=socket.socket(socket.AF_INET6); s.bind(("::",8080)); s.listen()
u=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); u.bind(("::",8080))
def udp():
    while True:
        d,a=u.recvfrom(99); u.sendto(b"published",a)
threading.Thread(target=udp).start()
print("ready",flush=True)
while True:
    c,_=s.accept(); c.send(b"published"); c.close()`)()
	l.install(ns)
	for _, from := range []string{"host", "world"} {
		for _, call := range []string{`TCP, "172.30.0.2"`, `TCP, "2001:db8:30::2"`, `UDP, "172.30.0.2"`, `UDP, "2001:db8:30::2"`} {
			if got := l.python(from, talk+"print(talk("+call+", 8080))"); got != "published" {
				t.Errorf("%s from %s: got %q", call, from, got)
			}
		}
	}
	_ = ns
}

// A flow dialled from the host reaches a neighbour on the same bridge, both
// being locked.
func TestDialToNeighbour(t *testing.T) {
	l := newLab(t)
	one, two := l.container("one", 2), l.container("two", 3)
	l.program("two", `
import socket
s=socket.socket(); s.bind(("",8080)); s.listen(); print("ready",flush=True)
while True:
    c,_=s.accept(); c.send(b"neighbour"); c.close()`)()
	for i, ns := range []*NetNS{one, two} {
		a, err := Install(t.Context(), ns, Spec{Name: fmt.Sprintf("n%d-%s", i, strings.TrimSuffix(l.prefix, "-")), Host: l.host})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
	}
	if got := l.python("host", talk+`print(talk(TCP, "172.30.0.3", 8080))`); got != "neighbour" {
		t.Errorf("from the host: got %q, want %q", got, "neighbour")
	}
}

// Containers nested in the container are captured with it, and reach each
// other as before.
func TestNested(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.sh("ct", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; ip link add in0 type bridge; ip addr add 172.28.0.1/24 dev in0; ip -6 addr add 2001:db8:28::1/64 dev in0 nodad; ip link set in0 up")
	for i, name := range []string{"n1", "n2"} {
		l.namespace(name)
		l.sh("", fmt.Sprintf("ip -n %[1]sct link add %[2]s type veth peer name eth0 netns %[1]s%[2]s", l.prefix, name))
		l.sh("ct", fmt.Sprintf("ip link set %s master in0 up", name))
		l.sh(name, fmt.Sprintf("ip addr add 172.28.0.%[1]d/24 dev eth0; ip -6 addr add 2001:db8:28::%[1]d/64 dev eth0 nodad; ip link set eth0 up; ip route add default via 172.28.0.1; ip -6 route add default via 2001:db8:28::1", i+2))
	}
	l.program("n2", `
import socket
s=socket.socket(); s.bind(("",8080)); s.listen(); print("ready",flush=True)
while True: c,_=s.accept(); c.send(b"nested"); c.close()`)()
	a := l.install(ns)
	echoDNS(a)
	echoDst(a)
	echoUDP(a)
	for _, c := range []struct{ call, want string }{
		{`TCP, "198.51.100.1", 443`, "198.51.100.1:443 <nil>"},
		{`TCP, "2001:db8:8::8", 443`, "[2001:db8:8::8]:443 <nil>"},
		{`UDP, "8.8.8.8", 53`, "udp shim x"},
		{`UDP, "2001:db8:8::8", 53`, "udp shim x"},
		{`TCP, "8.8.8.8", 53`, "tcp shim x"},
		{`UDP, "198.51.100.1", 443`, "No route to host"},
		{`UDP, "2001:db8:8::8", 443`, "Permission denied"},
		{`TCP, "172.28.0.3", 8080`, "nested"},
	} {
		if got := l.python("n1", talk+"print(talk("+c.call+"))"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.call, got, c.want)
		}
	}
}

// With only lo there is a way to the listeners, and it goes with Close.
func TestNetworkNone(t *testing.T) {
	for _, lo := range []string{"up", "down", "down; ip addr flush dev lo"} {
		t.Run("lo "+lo, func(t *testing.T) {
			l := newLab(t)
			l.namespace("ct")
			l.sh("ct", "ip link set lo "+lo)
			ns := l.open("ct")
			before := l.state("ct")
			a := l.install(ns)
			echoDNS(a)
			echoDst(a)
			echoUDP(a)
			for _, c := range []struct{ call, want string }{
				{`TCP, "198.51.100.1", 443`, "198.51.100.1:443 <nil>"},
				{`TCP, "2001:db8:8::8", 443`, "[2001:db8:8::8]:443 <nil>"},
				{`UDP, "8.8.8.8", 53`, "udp shim x"},
				{`UDP, "2001:db8:8::8", 53`, "udp shim x"},
				{`UDP, "198.51.100.1", 443`, "198.51.100.1:443 1"},
				{`UDP, "2001:db8:8::8", 443`, "[2001:db8:8::8]:443 1"},
				{`UDP, "198.51.100.1", 9`, "Connection refused"},
				{`UDP, "2001:db8:8::8", 9`, "Connection refused"},
			} {
				if got := l.python("ct", talk+"print(talk("+c.call+"))"); got != c.want {
					t.Errorf("%s: got %q, want %q", c.call, got, c.want)
				}
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			same(t, before, l.state("ct"))
		})
	}
}

func TestOriginalDstOfDirectConnection(t *testing.T) {
	ln, err := net.ListenTCP("tcp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, host := range []string{"127.0.0.1", "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(host), uint16(ln.Addr().(*net.TCPAddr).Port))
		c, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		in, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if dst, err := OriginalDst(in); !errors.Is(err, ErrNotRedirected) {
			t.Errorf("%s: got %v, %v, want %v", host, dst, err, ErrNotRedirected)
		}
	}
}
