package container

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lab is a namespace with a server on loopback, and programs to run in it.
type lab struct {
	name     string
	server   string
	remote   netip.AddrPort
	a, b     string // two programs
	programs *Programs
}

func newLab(t *testing.T, suffix string) lab {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := lab{name: newNetNS(t, suffix), remote: netip.MustParseAddrPort("127.0.0.1:8080")}
	l.a, l.b = program(t, filepath.Join(dir, "a")), program(t, filepath.Join(dir, "b"))
	l.server = program(t, filepath.Join(dir, "server"))
	start(t, "serve", "ip", "netns", "exec", l.name, l.server, "[::]:8080")
	l.programs = programsOf(t, "/run/netns/"+l.name, nil)
	return l
}

func programsOf(t *testing.T, ns string, inits func() []int) *Programs {
	t.Helper()
	f, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := OpenPrograms(f, inits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// dial starts a helper in the namespace and returns its local address.
func (l lab) dial(t *testing.T, mode string, argv ...string) netip.AddrPort {
	t.Helper()
	line, _ := start(t, mode, append([]string{"ip", "netns", "exec", l.name}, argv...)...)
	local, err := netip.ParseAddrPort(line)
	if err != nil {
		t.Fatal(err)
	}
	return local
}

func TestProgram(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, "prog")
	six := netip.MustParseAddrPort("[::1]:8080")
	mapped := netip.MustParseAddrPort("[::ffff:127.0.0.1]:8080")

	local := l.dial(t, "dial", l.a, "tcp", l.remote.String())
	got, err := l.programs.Find(ctx, "tcp", local, l.remote)
	if err != nil || got.Path != l.a || len(got.Ancestors) != 0 {
		t.Errorf("tcp: %+v, %v", got, err)
	}
	// The other end of the same connection is the server's.
	if got, err := l.programs.Find(ctx, "tcp", l.remote, local); err != nil || got.Path != l.server {
		t.Errorf("server's end: %+v, %v", got, err)
	}
	// Addresses in IPv4-mapped form name the same socket.
	m := netip.AddrPortFrom(netip.AddrFrom16(local.Addr().As16()), local.Port())
	if got, err := l.programs.Find(ctx, "tcp", m, mapped); err != nil || got.Path != l.a {
		t.Errorf("mapped addresses: %+v, %v", got, err)
	}
	local = l.dial(t, "dial-mapped", l.b, mapped.String())
	if got, err := l.programs.Find(ctx, "tcp", netip.AddrPortFrom(local.Addr().Unmap(), local.Port()), l.remote); err != nil || got.Path != l.b {
		t.Errorf("mapped socket: %+v, %v", got, err)
	}
	local = l.dial(t, "dial", l.b, "tcp", six.String())
	if got, err := l.programs.Find(ctx, "tcp", local, six); err != nil || got.Path != l.b {
		t.Errorf("tcp6: %+v, %v", got, err)
	}
	local = l.dial(t, "dial", l.a, "udp", "127.0.0.1:5353")
	udp := netip.MustParseAddrPort("127.0.0.1:5353")
	if got, err := l.programs.Find(ctx, "udp", local, udp); err != nil || got.Path != l.a {
		t.Errorf("udp: %+v, %v", got, err)
	}
	if got, err := l.programs.Find(ctx, "udp", local, netip.MustParseAddrPort("127.0.0.1:5354")); err == nil {
		t.Errorf("udp to elsewhere: %+v", got)
	}
	local = l.dial(t, "udp-loose", l.b)
	if got, err := l.programs.Find(ctx, "udp", local, udp); err != nil || got.Path != l.b {
		t.Errorf("unconnected udp: %+v, %v", got, err)
	}
	local = l.dial(t, "dial-thread", l.a, l.remote.String())
	if got, err := l.programs.Find(ctx, "tcp", local, l.remote); err != nil || got.Path != l.a {
		t.Errorf("descriptors of a thread alone: %+v, %v", got, err)
	}
}

func TestProgramAncestors(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, "anc")
	local := l.dial(t, "parent", l.b, "dial", l.a, "tcp", l.remote.String())
	got, err := l.programs.Find(ctx, "tcp", local, l.remote)
	if err != nil || got.Path != l.a || !slices.Equal(got.Ancestors, []string{l.b}) {
		t.Errorf("%+v, %v; want %s below %s", got, err, l.a, l.b)
	}
	// One program through itself: ancestors end where the namespace does.
	local = l.dial(t, "share", l.a, "tcp", l.remote.String(), l.a)
	got, err = l.programs.Find(ctx, "tcp", local, l.remote)
	if err != nil || got.Path != l.a || len(got.Ancestors) != 0 {
		t.Errorf("two holders of one program: %+v, %v", got, err)
	}
}

func TestProgramRefusals(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, "ref")
	refused := func(what string, local netip.AddrPort, says string) {
		t.Helper()
		got, err := l.programs.Find(ctx, "tcp", local, l.remote)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %+v, %v; want %q", what, got, err, says)
		}
	}
	refused("no socket", netip.MustParseAddrPort("127.0.0.1:1"), "no tcp socket")
	refused("the listener's port", l.remote, "no tcp socket")
	refused("mixed families", netip.MustParseAddrPort("[::1]:1"), "not a connection")
	refused("no address", netip.AddrPort{}, "not a connection")
	if _, err := l.programs.Find(ctx, "sctp", l.remote, l.remote); err == nil {
		t.Error("sctp: no error")
	}

	refused("two programs", l.dial(t, "share", l.a, "tcp", l.remote.String(), l.b), "different programs")
	refused("a holder that left the namespace", l.dial(t, "share", l.a, "tcp", l.remote.String(), l.b, "unshare"), "different programs")

	gone := program(t, l.a+"-gone")
	local := l.dial(t, "dial", gone, "tcp", l.remote.String())
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	refused("deleted", local, "not on disk")

	replaced := program(t, l.a+"-replaced")
	local = l.dial(t, "dial", replaced, "tcp", l.remote.String())
	if err := os.Rename(l.b, replaced); err != nil {
		t.Fatal(err)
	}
	refused("replaced", local, "not on disk")
	program(t, l.b)

	lent := program(t, l.a+"-lent")
	local = l.dial(t, "dial", "unshare", "-m", "sh", "-c", fmt.Sprintf("mount --bind %s %s && exec %s tcp %s", l.b, lent, lent, l.remote))
	refused("a path lent by a mount namespace", local, "not the file that the container has")

	fd, err := unix.MemfdCreate("prog", 0)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(fd), "prog")
	self, err := os.ReadFile(l.a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Write(self); err != nil {
		t.Fatal(err)
	}
	refused("memfd", l.dial(t, "dial", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), "tcp", l.remote.String()), "not on disk")
	mem.Close()

	deleted := program(t, l.a+"-parent")
	local = l.dial(t, "parent", deleted, "dial", l.a, "tcp", l.remote.String())
	if err := os.Remove(deleted); err != nil {
		t.Fatal(err)
	}
	refused("a deleted ancestor", local, "ancestors: ")

	local = l.dial(t, "dial", l.a, "tcp", l.remote.String())
	if _, err := l.programs.Find(ctx, "tcp", local, l.remote); err != nil {
		t.Errorf("nothing wrong with this one: %v", err)
	}
}

func TestProgramOtherNamespace(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, "here")
	other := newNetNS(t, "there")
	local := l.dial(t, "dial", l.a, "tcp", l.remote.String())
	if got, err := programsOf(t, "/run/netns/"+other, nil).Find(ctx, "tcp", local, l.remote); !errors.Is(err, ErrGone) {
		t.Errorf("another namespace's socket: %+v, %v", got, err)
	}
	gone := programsOf(t, "/run/netns/"+l.name, func() []int { return []int{os.Getpid()} })
	if got, err := gone.Find(ctx, "tcp", local, l.remote); !errors.Is(err, ErrGone) {
		t.Errorf("main process of elsewhere: %+v, %v", got, err)
	}
}

func TestProgramInContainer(t *testing.T) {
	ctx := testContext(t)
	name := prefix() + "-program"
	docker(t, name)
	c, err := Connect().Find(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := c.OpenNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	programs, err := OpenPrograms(ns, func() []int { return []int{c.PID} })
	if err != nil {
		t.Fatal(err)
	}
	defer programs.Close()
	// nc below sh; sh is busybox, nc a program of its own.
	server := listenIn(t, ns, "127.0.0.1:8080")
	server.SetDeadline(time.Now().Add(time.Minute))
	run(t, "docker", "exec", "-d", name, "/bin/sh", "-c", "/bin/sleep 600 | /usr/bin/nc 127.0.0.1 8080; true")
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	local := netip.MustParseAddrPort(conn.RemoteAddr().String())
	got, err := programs.Find(ctx, "tcp", local, netip.MustParseAddrPort("127.0.0.1:8080"))
	if err != nil || got.Path != "/usr/bin/nc" || !slices.Equal(got.Ancestors, []string{"/bin/busybox"}) {
		t.Errorf("%+v, %v", got, err)
	}
	// In the eyes of this machine's own file system that is no such program.
	bare, err := OpenPrograms(ns, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if got, err := bare.Find(ctx, "tcp", local, netip.MustParseAddrPort("127.0.0.1:8080")); err == nil {
		t.Errorf("without the container's root: %+v", got)
	}
}

// listenIn listens in another network namespace.
func listenIn(t *testing.T, ns *os.File, addr string) *net.TCPListener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		goruntime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp", addr)
		}
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.l.Close() })
	return r.l.(*net.TCPListener)
}

func TestReadProcess(t *testing.T) {
	// A command with spaces and parentheses must not shift the fields.
	dir := t.TempDir()
	odd := program(t, filepath.Join(dir, "x) S 1 (y"))
	_, cmd := start(t, "hold", odd)
	p, err := readProcess(cmd.Process.Pid)
	if err != nil || p.ppid != os.Getpid() || p.start == 0 {
		t.Errorf("%+v, %v; want parent %d", p, err, os.Getpid())
	}
	if _, err := readProcess(1 << 22); !isGone(err) {
		t.Errorf("no such process: %v", err)
	}
}

func FuzzParseSocket(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, diagMessage-1))
	f.Add(append([]byte{unix.AF_INET}, make([]byte, diagMessage)...))
	f.Add(append([]byte{unix.AF_INET6}, make([]byte, diagMessage)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSocket(b)
		if (err == nil) != (len(b) >= diagMessage) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err == nil && (s.local.Addr().Is4In6() || s.remote.Addr().Is4In6()) {
			t.Fatalf("mapped address left: %+v", s)
		}
	})
}
