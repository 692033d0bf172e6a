package redirect

import (
	"fmt"
	"strings"
	"testing"
)

// No program of the container can share a port with a listener, and so take a
// part of the traffic, whatever options it sets.
func TestListenersPortsCannotBeShared(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	a := l.install(ns)
	p := a.listeners.ports()
	for _, c := range []struct {
		kind string
		port uint16
	}{{"TCP", p.tcp}, {"TCP", p.dnsTCP}, {"UDP", p.dnsUDP}} {
		got := l.python("ct", talk+fmt.Sprintf(`
shared = []
for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "172.30.0.2"), (socket.AF_INET6, "::"), (socket.AF_INET6, "::1")):
    for options in ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)):
        s = socket.socket(family, %s)
        for o in options: s.setsockopt(socket.SOL_SOCKET, o, 1)
        try:
            s.bind((host, %d))
            if s.type == TCP: s.listen()
            shared.append("%%s %%s" %% (host, options))
        except OSError as e:
            if e.strerror != "Address already in use": shared.append(e.strerror)
print(shared)`, c.kind, c.port))
		if got != "[]" {
			t.Errorf("%s port %d: %s", c.kind, c.port, got)
		}
	}
	// What a program binds beside a listener gets nothing of what is redirected.
	echoDst(a)
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "198.51.100.1:443 <nil>" {
		t.Errorf("got %q", got)
	}
}

// Ports that programs already have are left to them. When none is free the
// attachment fails and leaves the namespace as it was.
func TestPortsThatAreTaken(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.sh("ct", "sysctl -qw net.ipv4.ip_local_port_range='40000 40015'")
	take := func(from, to int) {
		l.program("ct", fmt.Sprintf(`
import socket,signal
keep=[]
for port in range(%d,%d):
    for kind in (socket.SOCK_STREAM,socket.SOCK_DGRAM):
        s=socket.socket(socket.AF_INET6,kind); s.bind(("::",port)); keep.append(s)
        if kind==socket.SOCK_STREAM: s.listen()
print("ready",flush=True)
signal.pause()`, from, to))()
	}
	take(40000, 40008)
	a := l.install(ns)
	if p := a.listeners.ports(); min(p.tcp, p.dnsTCP, p.dnsUDP) < 40008 || max(p.tcp, p.dnsTCP, p.dnsUDP) > 40015 {
		t.Errorf("ports %+v", p)
	}
	echoDst(a)
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "198.51.100.1:443 <nil>" {
		t.Errorf("got %q", got)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	take(40008, 40016)
	inside, outside := l.state("ct"), l.hostState()
	if _, err := Install(t.Context(), ns, Spec{Name: "full", Host: l.host}); err == nil || !strings.Contains(err.Error(), "listen") {
		t.Errorf("with no port free: %v", err)
	}
	same(t, inside, l.state("ct"))
	same(t, outside, l.hostState())
}
