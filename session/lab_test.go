package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/rules"
	"weir/store"
)

// patience bounds every wait of the tests.
const patience = 15 * time.Second

const helperVar = "WEIR_SESSION_TEST"

// TestMain runs the tests in a network namespace of their own, which is the
// host of everything they make: the machine's own network is not touched. The
// test binary is also the client and the server inside the namespaces.
func TestMain(m *testing.M) {
	switch os.Getenv(helperVar) {
	case "":
		self := exec.Command("/proc/self/exe", os.Args[1:]...)
		self.Env = append(os.Environ(), helperVar+"=tests")
		self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
		self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := self.Run(); err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				os.Exit(exit.ExitCode())
			}
			fmt.Fprintln(os.Stderr, "these tests need root:", err)
			os.Exit(1)
		}
	case "tests":
		os.Exit(m.Run())
	default:
		helper(os.Getenv(helperVar), os.Args[1])
	}
}

// helper is a server that echoes, or a client that holds one connection and
// says for every line of its input whether the connection still works.
func helper(mode, addr string) {
	lines := bufio.NewScanner(os.Stdin)
	if mode == "echo" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("ready")
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go io.Copy(c, c)
			}
		}()
		for lines.Scan() {
		}
		return
	}
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	works := func() string {
		if err != nil {
			return "no"
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		// No protocol begins so, and nothing waits to see whether one does.
		if _, err = c.Write([]byte{0}); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err != nil {
			return "no"
		}
		return "yes"
	}
	fmt.Println(works())
	for lines.Scan() {
		fmt.Println(works())
	}
}

// program is one that runs in a namespace until the test ends.
type program struct {
	t     testing.TB
	in    io.Writer
	lines chan string
}

func (p *program) line() string {
	p.t.Helper()
	select {
	case s := <-p.lines:
		return s
	case <-time.After(patience):
		p.t.Fatal("a program in a namespace said nothing")
		return ""
	}
}

// works says whether a held connection still does.
func (p *program) works() bool {
	p.t.Helper()
	fmt.Fprintln(p.in)
	return p.line() == "yes"
}

// waitCut waits until a held connection does no longer work.
func (p *program) waitCut() {
	p.t.Helper()
	for deadline := time.Now().Add(patience); p.works(); {
		if time.Now().After(deadline) {
			p.t.Fatal("the flow was not cut")
		}
	}
}

// lab is a container and a world of one server, with the host in between.
type lab struct {
	t     testing.TB
	box   string // the container's namespace
	world string
}

const (
	serverAddr = "203.0.113.7"
	server     = serverAddr + ":7000"
)

var labs atomic.Int32

func newLab(t testing.TB) *lab {
	t.Helper()
	n := labs.Add(1)
	l := &lab{t: t, box: fmt.Sprintf("wsbox%d-%d", os.Getpid(), n), world: fmt.Sprintf("wsworld%d-%d", os.Getpid(), n)}
	for _, ns := range []string{l.box, l.world} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	}
	script := `
		ip link set lo up
		echo 1 > /proc/sys/net/ipv4/ip_forward
		# IPv6 gives links addresses and routes some time after they came up, in the middle of a comparison.
		for at in "" "ip netns exec %[1]s" "ip netns exec %[2]s"; do
			$at sh -ec "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
		done
		ip link add box%[3]d type veth peer name eth0 netns %[1]s
		ip link add world%[3]d type veth peer name eth0 netns %[2]s
		ip addr add 172.31.0.1/24 dev box%[3]d; ip link set box%[3]d up
		ip addr add 192.0.2.1/24 dev world%[3]d; ip link set world%[3]d up
		ip netns exec %[1]s sh -ec "ip link set lo up; ip addr add 172.31.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.31.0.1"
		ip netns exec %[2]s sh -ec "ip link set lo up; ip addr add 192.0.2.2/24 dev eth0; ip addr add 203.0.113.7/32 dev lo; ip link set eth0 up; ip route add default via 192.0.2.1"
		ip route add 203.0.113.7/32 via 192.0.2.2`
	run(t, "sh", "-ec", fmt.Sprintf(script, l.box, l.world, n))
	t.Cleanup(func() {
		exec.Command("ip", "link", "del", fmt.Sprintf("box%d", n)).Run()
		exec.Command("ip", "link", "del", fmt.Sprintf("world%d", n)).Run()
	})
	if s := l.start(l.world, "echo", server).line(); s != "ready" {
		t.Fatal(s)
	}
	return l
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (l *lab) start(ns, mode, addr string) *program {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, self, addr)
	cmd.Env = append(os.Environ(), helperVar+"="+mode)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	p := &program{t: l.t, in: in, lines: make(chan string, 100)}
	var reading sync.WaitGroup
	reading.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	})
	l.t.Cleanup(func() {
		in.Close()
		time.AfterFunc(patience, func() { cmd.Process.Kill() })
		reading.Wait()
		cmd.Wait()
	})
	return p
}

// dial opens a connection from the container to the server.
func (l *lab) dial() (held *program, works bool) {
	l.t.Helper()
	p := l.start(l.box, "hold", server)
	return p, p.line() == "yes"
}

func (l *lab) ref() string { return "netns:" + l.box }

// clock is one that tests move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// daemon is a Conductor with everything it needs, as the daemon has it.
type daemon struct {
	*Conductor
	clock *clock
	stop  func()
}

// start runs a Conductor over the database in dir. It is stopped with the
// test, or before by stop.
func start(t testing.TB, dir string, clk *clock) *daemon {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	st, err := store.Open(t.Context(), filepath.Join(dir, "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	trail := audit.NewLog(audit.Config{Append: st.AppendEvents, Events: st.Events, Now: clk.now})
	served := make(chan error, 1)
	go func() { served <- trail.Serve() }()
	upstream := &dnsmap.Upstream{}
	c, err := New(t.Context(), Config{
		Store: st, Log: trail, Runtimes: container.Connect(filepath.Join(dir, "no-runtime.sock")),
		Upstream: upstream, Logger: logger, Now: clk.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("the conductor is not ready")
	}
	stop := sync.OnceFunc(func() {
		cancel()
		drain, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		upstream.Close()
		if err := errors.Join(<-ended, trail.Shutdown(drain), <-served, st.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &daemon{Conductor: c, clock: clk, stop: stop}
}

// testWriter gives a log to a test, as long as it runs.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// attach attaches the lab's container.
func (d *daemon) attach(l *lab) Status {
	l.t.Helper()
	s, _, err := d.Attach(l.t.Context(), l.ref())
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// session creates one that allows the lab's server.
func (d *daemon) session(t testing.TB, id, ref string, ttl time.Duration) Session {
	t.Helper()
	s, err := d.CreateSession(t.Context(), Spec{ID: id, Container: ref, TTL: ttl, Rules: []rules.Rule{{Destination: serverAddr}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pass moves the clock and has what has expired expire.
func (d *daemon) pass(by time.Duration) {
	d.clock.advance(by)
	d.expire(context.Background())
}

// reasons are the lifecycle events so far.
func (d *daemon) reasons(t testing.TB) string {
	t.Helper()
	for deadline := time.Now().Add(patience); d.log.Waiting() > 0 && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	events, err := d.store.Events(t.Context(), audit.Filter{Type: audit.Lifecycle, Limit: audit.MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range events {
		fmt.Fprintf(&all, "%s|%s|%s\n", e.ContainerName, e.SessionID, e.Reason)
	}
	return all.String()
}

// kind is the kind of an error, 0 when it has none.
func kind(err error) Kind {
	var known *Error
	if errors.As(err, &known) {
		return known.Kind
	}
	return 0
}
