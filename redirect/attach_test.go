package redirect

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func same(t *testing.T, before, after string) {
	t.Helper()
	if d := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); d != "" {
		t.Errorf("the state is another than before (-before +after):\n%s", d)
	}
}

// Close gives everything back, also when the daemon died in between and
// another took over.
func TestCloseRestores(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.sh("ct", "nft add table ip theirs '{ chain out { type nat hook output priority -100; ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40000; }; }'")
	inside, outside := l.state("ct"), l.hostState()

	dead := l.install(ns)
	if err := dead.Release(); err != nil {
		t.Fatal(err)
	}
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "Connection refused" {
		t.Errorf("after release: got %q, want %q", got, "Connection refused")
	}
	if left, err := Left(l.host); err != nil || len(left) != 1 || !slices.Equal(left[0].Interfaces, []string{"vct"}) {
		t.Errorf("left behind: %v, %v", left, err)
	}

	start := time.Now()
	a := l.install(ns)
	t.Logf("install took %v", time.Since(start))
	echoDst(a)
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "198.51.100.1:443 <nil>" {
		t.Errorf("after taking over: got %q", got)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, inside, l.state("ct"))
	same(t, outside, l.hostState())
}

func TestRemove(t *testing.T) {
	l := newLab(t)
	before := l.hostState()
	a := l.install(l.container("ct", 2))
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	left, err := Left(l.host)
	if err != nil {
		t.Fatal(err)
	}
	for _, lock := range left {
		if err := Remove(l.host, lock.Name); err != nil {
			t.Fatal(err)
		}
	}
	l.sh("host", "ip link del vct")
	same(t, before, l.hostState())
	if err := Remove(l.host, "never-was"); err != nil {
		t.Errorf("remove of nothing: %v", err)
	}
}

// A failed Install leaves nothing behind.
func TestInstallFails(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	inside, outside := l.state("ct"), l.hostState()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Install(ctx, ns, Spec{Name: "x", Host: l.host}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if _, err := Install(t.Context(), l.host, Spec{Name: "x", Host: l.host}); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("host: got %v", err)
	}
	if _, err := Install(t.Context(), ns, Spec{Name: "a/b", Host: l.host}); err == nil || !strings.Contains(err.Error(), `"a/b"`) {
		t.Errorf("bad name: got %v", err)
	}
	same(t, inside, l.state("ct"))
	same(t, outside, l.hostState())
}

// A failed Install does not set free what a dead daemon had closed.
func TestTakeoverFails(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	dead := l.install(ns)
	if err := dead.Release(); err != nil {
		t.Fatal(err)
	}
	outside := l.hostState()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Install(ctx, ns, Spec{Name: dead.lock.name, Host: l.host}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	same(t, outside, l.hostState())
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "Connection refused" {
		t.Errorf("after the failure: got %q, want %q", got, "Connection refused")
	}
}

// Connections from before are cut and named; own ones are not.
func TestCut(t *testing.T) {
	for _, nat := range []string{"no nat", "with nat"} {
		t.Run(nat, func(t *testing.T) {
			l := newLab(t)
			ns := l.container("ct", 2)
			if nat == "with nat" {
				l.sh("ct", "nft add table ip theirs '{ chain out { type nat hook output priority -100; ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40000; }; }'")
			}
			l.program("world", `
import socket,signal
s=socket.socket(socket.AF_INET6); s.bind(("::",7)); s.listen(); print("ready",flush=True)
keep=[s.accept()[0] for _ in range(2)]
signal.pause()`)()
			client := l.program("ct", `
import socket,select
out=[socket.create_connection((h,7)) for h in ("198.51.100.1","2001:db8:8::8")]
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.connect(("203.0.113.7",9)); u.send(b"x"); out.append(u)
s=socket.socket(); s.bind(("127.0.0.1",0)); s.listen(); own=socket.create_connection(s.getsockname()); other,_=s.accept()
print("ready",flush=True)
for c in out:
    c.settimeout(5)
    try: print(c.recv(1))
    except socket.timeout: print("timeout",flush=True)
    except OSError as e: print(e.strerror,flush=True)
own.send(b"k"); print(other.recv(1).decode(),flush=True)`)
			client()
			a := l.install(ns)
			for _, want := range []string{"Software caused connection abort", "Software caused connection abort", "Software caused connection abort", "k"} {
				if got := client(); got != want {
					t.Errorf("client: got %q, want %q", got, want)
				}
			}
			if out := l.sh("ct", "conntrack -L 2>/dev/null; conntrack -L -f ipv6 2>/dev/null"); strings.Contains(out, "dst=203.0.113.7") || strings.Contains(out, "dst=198.51.100.1") {
				t.Errorf("connection tracking still knows:\n%s", out)
			}
			got := map[string]bool{}
			for _, c := range a.Closed() {
				got[c.Protocol+" "+c.Remote.String()] = true
			}
			want := map[string]bool{"tcp 198.51.100.1:7": true, "tcp [2001:db8:8::8]:7": true, "udp 203.0.113.7:9": true}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("closed (-want +got):\n%s", d)
			}
		})
	}
}

// Connections that send while the ruleset comes in are reset by it; they are
// named all the same.
func TestCutBusy(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.program("world", `
import socket,threading
s=socket.socket(); s.bind(("",7)); s.listen(); print("ready",flush=True)
def drain(c):
    try:
        while c.recv(65536): pass
    except OSError: pass
while True: threading.Thread(target=drain,args=(s.accept()[0],),daemon=True).start()`)()
	l.program("ct", `
import socket
out=[socket.create_connection(("198.51.100.1",7)) for _ in range(20)]
print("ready",flush=True)
while out:
    for c in list(out):
        try: c.send(b"x")
        except OSError: out.remove(c)`)()
	a := l.install(ns)
	if closed := a.Closed(); len(closed) != 20 {
		t.Errorf("%d of 20 connections are named: %v", len(closed), closed)
	}
}

func TestOpen(t *testing.T) {
	ns, err := Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if parts := strings.Split(ns.ID(), ":"); len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		t.Errorf("id %q is not device:inode", ns.ID())
	}
	for _, path := range []string{"/proc/self/ns/mnt", os.DevNull, "/nonexistent"} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("open %s: got %v, want an error that names it", path, err)
		}
	}
}

func TestCheck(t *testing.T) {
	findings := Check()
	if len(findings) < 10 {
		t.Errorf("only %d findings", len(findings))
	}
	for _, f := range findings {
		if !f.OK || f.Detail != "" {
			t.Errorf("%s: %s; %s", f.Feature, f.Detail, f.Fix)
		}
	}
}
