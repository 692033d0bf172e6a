package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/api"
	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/session"
	"weir/store"
)

// patience bounds every wait of the tests.
const patience = 20 * time.Second

const helperVar = "WEIR_WEB_TEST"

// TestMain runs the tests, browser and all, in a network namespace of their
// own. The test binary is also the client and the server behind the wall.
func TestMain(m *testing.M) {
	switch mode := os.Getenv(helperVar); mode {
	case "":
		self := exec.Command("/proc/self/exe", os.Args[1:]...)
		self.Env = append(os.Environ(), helperVar+"=tests")
		self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
		self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		err := self.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "these tests need root:", err)
			os.Exit(1)
		}
	case "tests":
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			os.Exit(1)
		}
		status := m.Run()
		closeBrowser()
		os.Exit(status)
	case "echo", "hold":
		helper(mode, os.Args[1])
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
		c.SetDeadline(time.Now().Add(patience))
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

// waitCut waits until a held connection does no longer work.
func (p *program) waitCut() {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		fmt.Fprintln(p.in)
		if p.line() == "no" {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatal("the connection was not cut")
		}
	}
}

const token = "a-token-for-the-tests"

// clock is one that tests move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// service is a dashboard with everything behind it, as the daemon has it.
type service struct {
	t      testing.TB
	clock  *clock
	log    *audit.Log
	server *Server
	api    *api.Client
	base   string // http://127.0.0.1:PORT
}

func newService(t testing.TB) *service {
	t.Helper()
	dir := t.TempDir()
	s := &service{t: t, clock: &clock{}}
	logger := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	st, err := store.Open(t.Context(), filepath.Join(dir, "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	activity := &Activity{}
	s.log = audit.NewLog(audit.Config{Append: func(ctx context.Context, batch []audit.Event) error {
		activity.Count(batch)
		return st.AppendEvents(ctx, batch)
	}, Events: st.Events, Now: s.clock.now})
	upstream := &dnsmap.Upstream{}
	conductor, err := session.New(t.Context(), session.Config{
		Store: st, Log: s.log, Runtimes: container.Connect(filepath.Join(dir, "no-runtime.sock")),
		Upstream: upstream, Logger: logger, Now: s.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := api.ListenSocket(filepath.Join(dir, "weir.sock"))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.base = "http://" + tcp.Addr().String()
	server := &api.Server{Conductor: conductor, Log: s.log, Events: st.Events, Version: "1.2.3", Token: token, Logger: logger, Now: s.clock.now}
	s.api = server.Client()
	s.server = &Server{API: s.api, Log: s.log, Events: st.Events, Token: token, Activity: activity, Version: "1.2.3", Logger: logger, Now: s.clock.now}
	server.Dashboard = s.server
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	ready := make(chan struct{})
	end := func(what string, f func() error) {
		tasks.Go(func() {
			if err := f(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	stored := make(chan error, 1)
	go func() { stored <- s.log.Serve() }()
	end("conductor", func() error { return conductor.Run(ctx, func() { close(ready) }) })
	<-ready
	end("server", func() error { return server.Serve(ctx, socket, tcp) })
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		upstream.Close()
		drain, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(s.log.Shutdown(drain), <-stored, st.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// answered is what came back.
type answered struct {
	status int
	header http.Header
	body   string
}

// send sends one request as a browser would; change has the last word.
func (s *service) send(method, path, form string, change func(*http.Request)) answered {
	s.t.Helper()
	req, err := http.NewRequest(method, s.base+path, strings.NewReader(form))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if method != "GET" {
		req.Header.Set("Origin", s.base)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if change != nil {
		change(req)
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answered{resp.StatusCode, resp.Header, string(b)}
}

// logIn returns the cookie of a browser that has shown the token.
func (s *service) logIn() *http.Cookie {
	s.t.Helper()
	a := s.send("POST", "/login", "token="+token, nil)
	cookies := (&http.Response{Header: a.header}).Cookies()
	if a.status != http.StatusSeeOther || len(cookies) != 1 {
		s.t.Fatalf("login: %d %s", a.status, a.body)
	}
	return cookies[0]
}

// lab is a container and a world of one server, with the host in between.
type lab struct {
	t          testing.TB
	box, world string // namespaces
}

const worldAddr, server = "198.51.100.7", "198.51.100.7:7000"

var labs atomic.Int32

func newLab(t testing.TB) *lab {
	t.Helper()
	n := labs.Add(1)
	l := &lab{t: t, box: fmt.Sprintf("wwbox%d-%d", os.Getpid(), n), world: fmt.Sprintf("wwworld%d-%d", os.Getpid(), n)}
	for _, ns := range []string{l.box, l.world} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	}
	script := `
		echo 1 > /proc/sys/net/ipv4/ip_forward
		ip link add box%[3]d type veth peer name eth0 netns %[1]s
		ip link add world%[3]d type veth peer name eth0 netns %[2]s
		ip addr add 172.31.0.1/24 dev box%[3]d; ip link set box%[3]d up
		ip addr add 172.31.1.1/24 dev world%[3]d; ip link set world%[3]d up
		ip netns exec %[1]s sh -ec "ip link set lo up; ip addr add 172.31.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.31.0.1"
		ip netns exec %[2]s sh -ec "ip link set lo up; ip addr add 172.31.1.2/24 dev eth0; ip addr add 198.51.100.7/32 dev lo; ip link set eth0 up; ip route add default via 172.31.1.1"
		ip route add 198.51.100.7/32 via 172.31.1.2`
	run(t, "sh", "-ec", fmt.Sprintf(script, l.box, l.world, n))
	t.Cleanup(func() {
		exec.Command("ip", "link", "del", fmt.Sprintf("box%d", n)).Run()
		exec.Command("ip", "link", "del", fmt.Sprintf("world%d", n)).Run()
	})
	if s := l.start(l.world, "echo").line(); s != "ready" {
		t.Fatal(s)
	}
	return l
}

func run(t testing.TB, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (l *lab) start(ns, mode string) *program {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, self, server)
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
		late := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		reading.Wait()
		cmd.Wait()
		late.Stop()
	})
	return p
}

// dial opens a connection from the container to the server.
func (l *lab) dial() (held *program, works bool) {
	l.t.Helper()
	p := l.start(l.box, "hold")
	return p, p.line() == "yes"
}

func (l *lab) ref() string { return "netns:" + l.box }
