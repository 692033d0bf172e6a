package netlab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Patience bounds every wait.
const Patience = 20 * time.Second

// The world's server echoes what it gets.
const (
	ServerAddr = "198.51.100.7"
	Server     = ServerAddr + ":7000"
)

// Lab is a container and a world of one server, with the host in between.
type Lab struct {
	T     testing.TB
	Box   string // the container's namespace, as "ip netns" knows it
	World string // the server's
}

var labs atomic.Int32 // so that no two share a name

// New makes a lab that ends with the test.
func New(t testing.TB) *Lab {
	t.Helper()
	n := labs.Add(1)
	l := &Lab{T: t, Box: fmt.Sprintf("weir-box-%d-%d", os.Getpid(), n), World: fmt.Sprintf("weir-world-%d-%d", os.Getpid(), n)}
	for _, ns := range []string{l.Box, l.World} {
		Run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	}
	script := `
		echo 1 > /proc/sys/net/ipv4/ip_forward
		# IPv6 gives links addresses and routes some time after they came up, in the middle of a comparison.
		for at in "" "ip netns exec %[1]s" "ip netns exec %[2]s"; do
			$at sh -ec "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
		done
		ip link add box%[3]d type veth peer name eth0 netns %[1]s
		ip link add world%[3]d type veth peer name eth0 netns %[2]s
		ip addr add 172.31.0.1/24 dev box%[3]d; ip link set box%[3]d up
		ip addr add 172.31.1.1/24 dev world%[3]d; ip link set world%[3]d up
		ip netns exec %[1]s sh -ec "ip link set lo up; ip addr add 172.31.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.31.0.1"
		ip netns exec %[2]s sh -ec "ip link set lo up; ip addr add 172.31.1.2/24 dev eth0; ip addr add %[4]s/32 dev lo; ip link set eth0 up; ip route add default via 172.31.1.1"
		ip route add %[4]s/32 via 172.31.1.2`
	Run(t, "sh", "-ec", fmt.Sprintf(script, l.Box, l.World, n, ServerAddr))
	t.Cleanup(func() {
		exec.Command("ip", "link", "del", fmt.Sprintf("box%d", n)).Run()
		exec.Command("ip", "link", "del", fmt.Sprintf("world%d", n)).Run()
	})
	if s := l.start(l.World, "echo").line(); s != "ready" {
		t.Fatal(s)
	}
	return l
}

// Run runs a program to its end and returns what it printed.
func Run(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Ref is what the container is attached by.
func (l *Lab) Ref() string { return "netns:" + l.Box }

// Dial opens a connection from the container to the server and says whether it
// works.
func (l *Lab) Dial() (held *Connection, works bool) {
	l.T.Helper()
	c := l.Open()
	return c, c.Opened()
}

// Open begins to open a connection, which may take its time.
func (l *Lab) Open() *Connection { return l.start(l.Box, "hold") }

// start runs this binary inside a namespace until the test ends.
func (l *Lab) start(ns, mode string) *Connection {
	l.T.Helper()
	self, err := os.Executable()
	if err != nil {
		l.T.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", ns, self, Server)
	cmd.Env = append(os.Environ(), ModeVar+"="+mode)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		l.T.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.T.Fatal(err)
	}
	c := &Connection{t: l.T, in: in, lines: make(chan string, 100)}
	var reading sync.WaitGroup
	reading.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
	})
	l.T.Cleanup(func() {
		in.Close()
		late := time.AfterFunc(Patience, func() { cmd.Process.Kill() })
		reading.Wait()
		cmd.Wait()
		late.Stop()
	})
	return c
}

// Connection is one that a program in the container holds until the test ends.
type Connection struct {
	t     testing.TB
	in    io.Writer
	lines chan string
}

func (c *Connection) line() string {
	c.t.Helper()
	select {
	case s := <-c.lines:
		return s
	case <-time.After(Patience):
		c.t.Fatal("a program in a namespace said nothing")
		return ""
	}
}

// Opened waits until the connection could be opened, or not, and says whether it
// works. It is to be asked once.
func (c *Connection) Opened() bool {
	c.t.Helper()
	return c.line() == "yes"
}

// Works says whether the connection still does.
func (c *Connection) Works() bool {
	c.t.Helper()
	fmt.Fprintln(c.in)
	return c.line() == "yes"
}

// WaitCut waits until the connection does no longer work.
func (c *Connection) WaitCut() {
	c.t.Helper()
	for deadline := time.Now().Add(Patience); c.Works(); {
		if time.Now().After(deadline) {
			c.t.Fatal("the connection was not cut")
		}
	}
}
