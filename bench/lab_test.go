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
	port        = ":7000"
	securePort  = ":443" // HTTP in TLS
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

// inspected is the policy for HTTP in TLS; the others decide the same.
const inspected = `version: 1
network_policies:
  bench:
    endpoints: [{host: ` + serverName + `, port: 443, path: /ok/**, protocol: rest, access: read-only}]
`

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
	server    string // its address: ports that one way has just used are not missing to the next
	does      ability
	proxy     []*exec.Cmd // nil: nobody is in between
	roots     string      // a file: whom its client trusts
}

// An ability is what a way can be measured at.
type ability int

const (
	relays   ability = 1 << iota // connections, whatever is in them
	requests                     // plain HTTP
	inspects                     // HTTP in TLS, request by request
)

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
	if err := os.Chmod(l.dir, 0o711); err != nil { // some of the others are not root
		b.Fatal(err)
	}
	l.sh(b, "", "ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 10000 65535 >/proc/sys/net/ipv4/ip_local_port_range")
	l.namespace(b, "srv", "10.9.0")
	l.sh(b, "srv", "ip route add local 198.51.100.0/24 dev lo")
	l.sh(b, "", "ip route add 198.51.100.0/24 via 10.9.0.2")
	l.certify(b)
	l.role(b, "srv", "server "+port)
	l.role(b, "srv", "https "+securePort+" "+filepath.Join(l.dir, "server.pem"))
	l.role(b, "srv", "names "+resolver)
	for i, name := range []string{"direct", "weir"} {
		l.namespace(b, name, fmt.Sprintf("10.10.%d", i))
		l.ways = append(l.ways, way{name: name, namespace: name, server: serverAddr, does: relays | requests | inspects, roots: filepath.Join(l.dir, "outside.pem")})
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
	text := "dns: {upstreams: [198.51.100.53]}\nruntimes: [" + l.dir + "/none.sock]\ntls: {extra_roots: [" + l.dir + "/outside.pem]}\nlimits: {connections_per_second: 1000000, connections: 100000, dns_queries_per_second: 10000000, dns_new_names: 100000000}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	policy := filepath.Join(l.dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(inspected), 0o600); err != nil {
		b.Fatal(err)
	}
	l.socket = filepath.Join(data, "weir.sock")
	l.daemon = exec.Command(l.weir, "serve", "--config", config, "--data-dir", data, "--socket", l.socket, "--http", "off")
	l.log(b, l.daemon, "weir")
	l.start(b, l.daemon)
	l.wait(b, "weir", func() bool { return exec.Command(l.weir, "ps", "--socket", l.socket).Run() == nil })
	run(b, l.weir, "attach", "netns:/run/netns/"+l.prefix+"weir", "--ttl", "24h", "--allow", serverAddr, "--allow", "*.example.com", "--policy", policy, "--socket", l.socket)
	l.ways[1].proxy, l.ways[1].roots = []*exec.Cmd{l.daemon}, filepath.Join(data, "ca.pem")
}

func run(b *testing.B, args ...string) {
	b.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// log keeps what a program says.
func (l *lab) log(b *testing.B, c *exec.Cmd, name string) {
	b.Helper()
	log, err := os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	c.Stdout, c.Stderr = log, log
}

// said is what it said.
func (l *lab) said(name string) string {
	text, _ := os.ReadFile(filepath.Join(l.dir, name+".log")) // there is none of the direct way
	return string(text)
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

// client runs a job in a namespace, whose client trusts roots if it speaks TLS, and returns the numbers that it printed.
func (l *lab) client(b *testing.B, namespace, addr, job string, n int, roots ...string) []float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	out, err := l.command(ctx, namespace, fmt.Sprintf("client %s %s %d %s", addr, job, n, strings.Join(roots, " "))).Output()
	if err != nil {
		b.Fatalf("%s in %s: %v\n%s", job, namespace, err, l.said(namespace))
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

func (l *lab) wait(b *testing.B, name string, done func() bool) {
	b.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("%s is not there\n%s", name, l.said(name))
		}
	}
}

// cpu is what processes have used so far, in seconds, in user mode and in the
// kernel.
func cpu(b *testing.B, list []*exec.Cmd) (user, kernel float64) {
	b.Helper()
	for _, c := range list {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		used := numbers(b, fields[11]+" "+fields[12])
		user, kernel = user+used[0]/100, kernel+used[1]/100 // USER_HZ
	}
	return user, kernel
}

// resident is the memory of processes in bytes.
func resident(b *testing.B, list []*exec.Cmd) (bytes float64) {
	b.Helper()
	for _, c := range list {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		bytes += numbers(b, string(text))[1] * float64(os.Getpagesize())
	}
	return bytes
}

func descriptors(b *testing.B, list []*exec.Cmd) (n float64) {
	b.Helper()
	for _, c := range list {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		n += float64(len(open))
	}
	return n
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
