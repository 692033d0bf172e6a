package bench

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	serverAddr  = "198.51.100.7"
	server      = serverAddr + ":7000"
	resolver    = "198.51.100.53:53"
	serverName  = "www.example.com"
	httpRest    = " HTTP/1.1\r\nHost: " + serverName + "\r\n\r\n"
	rateClients = 4
	patience    = 30 * time.Second
)

// TestMain runs benchmarks in a network namespace of their own.
func TestMain(m *testing.M) {
	flag.Parse()
	role := strings.Fields(os.Getenv(roleVariable))
	switch {
	case len(role) == 0 && flag.Lookup("test.bench").Value.String() == "":
		os.Exit(m.Run())
	case len(role) == 0:
		self := exec.Command("/proc/self/exe", os.Args[1:]...)
		self.Env = append(os.Environ(), roleVariable+"=host")
		self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
		self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		err := self.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "these benchmarks need root:", err)
			os.Exit(1)
		}
	case role[0] == "host":
		status := m.Run()
		theLab.close()
		os.Exit(status)
	default:
		play(role)
	}
}

// lab is the world of all benchmarks of one run.
type lab struct {
	ready  bool
	dir    string
	prefix string
	undo   []func()
	weir   string // the binary
	socket string
	daemon *exec.Cmd
	ways   []way // direct first
}

// A way is a namespace whose connections reach the server somehow.
type way struct {
	name      string
	namespace string
	proxy     *exec.Cmd // nil: nobody is in between
}

// theLab is made once, for the first benchmark that needs it: starting a
// daemon and the others for each would take longer than measuring.
var theLab lab

func (l *lab) close() {
	for _, undo := range l.undo {
		defer undo() // in reverse order
	}
}

func (l *lab) open(b *testing.B) *lab {
	b.Helper()
	if l.ready {
		return l
	}
	if l.prefix != "" {
		b.Fatal("there is no lab")
	}
	l.prefix = fmt.Sprintf("weirbench%d-", os.Getpid())
	var err error
	if l.dir, err = os.MkdirTemp("", "weirbench"); err != nil {
		b.Fatal(err)
	}
	l.undo = append(l.undo, func() { os.RemoveAll(l.dir) })
	l.sh(b, "", "ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward")
	l.namespace(b, "srv", "10.9.0")
	l.sh(b, "srv", "ip addr add 198.51.100.7/32 dev lo; ip addr add 198.51.100.53/32 dev lo")
	l.sh(b, "", "ip route add 198.51.100.0/24 via 10.9.0.2")
	l.role(b, "srv", "server "+server)
	l.role(b, "srv", "names "+resolver)
	for i, name := range []string{"direct", "weir"} {
		l.namespace(b, name, fmt.Sprintf("10.10.%d", i))
		l.ways = append(l.ways, way{name: name, namespace: name})
	}
	l.build(b)
	l.startDaemon(b)
	l.startPeers(b)
	l.ready = true
	return l
}

// namespace makes one, joined to the host by a veth.
func (l *lab) namespace(b *testing.B, name, net string) {
	b.Helper()
	ns := l.prefix + name
	l.sh(b, "", "ip netns add "+ns)
	l.undo = append(l.undo, func() { exec.Command("ip", "netns", "del", ns).Run() })
	l.sh(b, "", fmt.Sprintf("ip link add v-%[1]s type veth peer name eth0 netns %[2]s; ip addr add %[3]s.1/24 dev v-%[1]s; ip link set v-%[1]s up", name, ns, net))
	l.sh(b, name, fmt.Sprintf("ip link set lo up; ip addr add %[1]s.2/24 dev eth0; ip link set eth0 up; ip route add default via %[1]s.1", net))
}

// build makes the binary, unless WEIR_BENCH_BINARY says which to measure.
func (l *lab) build(b *testing.B) {
	b.Helper()
	if l.weir = os.Getenv("WEIR_BENCH_BINARY"); l.weir != "" {
		return
	}
	l.weir = filepath.Join(l.dir, "weir")
	c := exec.Command("go", "build", "-trimpath", "-o", l.weir, "../cmd/weir")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
}

// startDaemon starts one that knows nothing of an earlier one, which it ends.
func (l *lab) startDaemon(b *testing.B) {
	b.Helper()
	if l.daemon != nil {
		run(b, l.weir, "detach", "netns:/run/netns/"+l.prefix+"weir", "--socket", l.socket)
		l.daemon.Process.Kill()
		l.daemon.Wait()
	}
	data, err := os.MkdirTemp(l.dir, "data")
	if err != nil {
		b.Fatal(err)
	}
	config := filepath.Join(l.dir, "config.yaml")
	text := "dns: {upstreams: [198.51.100.53]}\nruntimes: [" + l.dir + "/none.sock]\nlimits: {connections_per_second: 1000000, connections: 100000, dns_queries_per_second: 10000000, dns_new_names: 100000000}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	l.socket = filepath.Join(data, "weir.sock")
	log, err := os.Create(filepath.Join(l.dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	l.daemon = exec.Command(l.weir, "serve", "--config", config, "--data-dir", data, "--socket", l.socket, "--http", "off")
	l.daemon.Stderr = log
	l.start(b, l.daemon)
	wait(b, "the daemon", func() bool { return exec.Command(l.weir, "ps", "--socket", l.socket).Run() == nil })
	run(b, l.weir, "attach", "netns:/run/netns/"+l.prefix+"weir", "--ttl", "24h", "--allow", serverAddr, "--allow", "*.example.com", "--socket", l.socket)
	l.ways[1].proxy = l.daemon
}

func run(b *testing.B, args ...string) {
	b.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// startPeers starts what this machine has of others.
func (l *lab) startPeers(b *testing.B) {
	b.Helper()
	for i, p := range []struct{ name, config string }{
		{"haproxy", "global\n maxconn 9000\ndefaults\n mode tcp\n timeout client 1h\n timeout server 1h\n timeout connect 5s\n" +
			"frontend in\n bind :PORT\n default_backend out\nbackend out\n option transparent\n"},
		{"sing-box", `{"log":{"level":"error"},"inbounds":[{"type":"redirect","listen":"0.0.0.0","listen_port":PORT}],"outbounds":[{"type":"direct"}]}`},
	} {
		binary := peer(p.name)
		if binary == "" {
			continue
		}
		l.namespace(b, p.name, fmt.Sprintf("10.11.%d", i))
		port := strconv.Itoa(7100 + i)
		config := filepath.Join(l.dir, p.name+".conf")
		if err := os.WriteFile(config, []byte(strings.ReplaceAll(p.config, "PORT", port)), 0o644); err != nil {
			b.Fatal(err)
		}
		args := map[string][]string{"haproxy": {"-db", "-f", config}, "sing-box": {"run", "-c", config}}[p.name]
		l.sh(b, "", fmt.Sprintf(`nft "add table ip peer%[1]d; add chain ip peer%[1]d pre { type nat hook prerouting priority dstnat; }; add rule ip peer%[1]d pre iifname v-%[2]s ip protocol tcp redirect to :%[3]s"`, i, p.name, port))
		cmd := exec.Command(binary, args...)
		l.start(b, cmd)
		l.ways = append(l.ways, way{p.name, p.name, cmd})
	}
	time.Sleep(500 * time.Millisecond) // they say nothing when they are ready
}

// peer is where another program is, or "".
func peer(name string) string {
	if path, set := os.LookupEnv("WEIR_BENCH_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); set {
		return path // "": not to be measured
	}
	path, _ := exec.LookPath(name)
	return path
}

// start starts a program that ends with the lab.
func (l *lab) start(b *testing.B, c *exec.Cmd) {
	b.Helper()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	l.undo = append(l.undo, func() {
		c.Process.Kill()
		c.Wait()
	})
}

// role starts this binary in a namespace and waits for its first line.
func (l *lab) role(b *testing.B, namespace, role string) {
	b.Helper()
	c := l.command(context.Background(), namespace, role)
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	l.undo = append(l.undo, func() { in.Close() })
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	l.start(b, c)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatal(role, err)
	}
}

func (l *lab) command(ctx context.Context, namespace, role string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	c := exec.CommandContext(ctx, "ip", "netns", "exec", l.prefix+namespace, self)
	c.Env = append(os.Environ(), roleVariable+"="+role)
	c.Stderr = os.Stderr
	return c
}

// client runs a job in a namespace and returns the numbers that it printed.
func (l *lab) client(b *testing.B, namespace, addr, job string, n int) []float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	out, err := l.command(ctx, namespace, fmt.Sprintf("client %s %s %d", addr, job, n)).Output()
	if err != nil {
		log, _ := os.ReadFile(l.dir + "/log")
		b.Fatalf("%s in %s: %v\n%s", job, namespace, err, log)
	}
	return numbers(b, string(out))
}

func numbers(b *testing.B, text string) (list []float64) {
	b.Helper()
	for _, word := range strings.Fields(text) {
		v, err := strconv.ParseFloat(word, 64)
		if err != nil {
			b.Fatal(err)
		}
		list = append(list, v)
	}
	return list
}

func (l *lab) sh(b *testing.B, namespace, script string) {
	b.Helper()
	args := []string{"sh", "-ec", script}
	if namespace != "" {
		args = append([]string{"ip", "netns", "exec", l.prefix + namespace}, args...)
	}
	run(b, args...)
}

func wait(b *testing.B, what string, done func() bool) {
	b.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal(what, " is not there")
		}
	}
}

// cpu is what a process has used so far, in seconds, in user mode and in the
// kernel. nil: nothing.
func cpu(b *testing.B, c *exec.Cmd) (user, kernel float64) {
	b.Helper()
	if c == nil {
		return 0, 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	used := numbers(b, fields[11]+" "+fields[12])
	return used[0] / 100, used[1] / 100 // USER_HZ
}

// resident is the memory of a process in bytes.
func resident(b *testing.B, c *exec.Cmd) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	return numbers(b, string(text))[1] * float64(os.Getpagesize())
}

func descriptors(b *testing.B, c *exec.Cmd) float64 {
	b.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	return float64(len(list))
}

// slab is the kernel's own memory, of the whole machine, in bytes.
func slab(b *testing.B) float64 {
	b.Helper()
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nSlab:")
	return numbers(b, strings.Fields(rest)[0])[0] * 1024
}
