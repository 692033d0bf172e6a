package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
)

// clientImage holds the clients that the tests use inside containers.
const clientImage = "weir-e2e"

var clientPackages = []string{
	"curl", "ca-certificates", "dnsutils", "git", "python3-minimal", "python3-requests", "nodejs",
	"iproute2", "iptables", "nftables", "netcat-openbsd", "openssl", "procps", "iputils-ping", "gh",
}

// weirBinary is the binary under test, built once.
var weirBinary string

func TestMain(m *testing.M) {
	code := 1
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
	} else {
		code = m.Run()
	}
	if weirBinary != "" {
		os.RemoveAll(filepath.Dir(weirBinary))
	}
	os.Exit(code)
}

func prepare() error {
	if os.Getuid() != 0 {
		return errors.New("needs root: sudo ./scripts/test")
	}
	sweep()
	dir, err := os.MkdirTemp("", "weir-e2e")
	if err != nil {
		return err
	}
	weirBinary = filepath.Join(dir, "weir")
	for _, args := range [][]string{
		{"go", "build", "-race", "-o", weirBinary, "../cmd/weir"},
		append([]string{"../scripts/image", clientImage}, clientPackages...),
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// run executes a command on the host and fails the test when it fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try executes a command on the host, for at most a minute.
func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// unique returns a name that no other test and no other run uses.
func unique(t testing.TB, prefix string) string {
	counter.Lock()
	defer counter.Unlock()
	counter.n++
	return fmt.Sprintf("weir-%s-%d-%d", prefix, os.Getpid(), counter.n)
}

var counter struct {
	sync.Mutex
	n int
}

// eventually fails the test when cond does not hold within a time that is
// long for a machine under load.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; {
		if cond() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Outside is the internet of a test: one network namespace behind a veth,
// with many addresses, a DNS server, and whatever servers a test opens.
type Outside struct {
	t     testing.TB
	name  string
	ns    netns.NsHandle
	zone  map[string][]netip.Addr   // name → addresses, guarded by mu
	asked []string                  // names that the DNS server was asked for
	odd   map[string]func(*dns.Msg) // name → what it is answered instead, guarded by mu
	mu    sync.Mutex
}

// DNSAddress is where Outside answers DNS, over UDP and TCP.
const DNSAddress = "198.51.100.53"

// newOutside makes a namespace that owns TEST-NET-2, a documentation
// /64 and some well-known public addresses, so that even what escapes only
// reaches this machine.
func newOutside(t testing.TB) *Outside {
	t.Helper()
	o := &Outside{t: t, name: unique(t, "out"), zone: map[string][]netip.Addr{}, odd: map[string]func(*dns.Msg){}}
	host, peer := fmt.Sprintf("weo%d", os.Getpid()%100000), fmt.Sprintf("wei%d", os.Getpid()%100000)
	run(t, "ip", "netns", "add", o.name)
	t.Cleanup(func() {
		try("ip", "link", "del", host)
		run(t, "ip", "netns", "del", o.name)
	})
	run(t, "ip", "link", "add", host, "type", "veth", "peer", "name", peer, "netns", o.name)
	for _, line := range []string{
		"addr add 198.18.0.1/30 dev " + host,
		"-6 addr add 2001:db8:18::1/64 dev " + host + " nodad",
		"link set " + host + " up",
		"-n " + o.name + " addr add 198.18.0.2/30 dev " + peer,
		"-n " + o.name + " -6 addr add 2001:db8:18::2/64 dev " + peer + " nodad",
		"-n " + o.name + " link set " + peer + " up",
		"-n " + o.name + " link set lo up",
		"-n " + o.name + " route add default via 198.18.0.1",
		"-n " + o.name + " -6 route add default via 2001:db8:18::1",
	} {
		run(t, "ip", strings.Fields(line)...)
	}
	for _, prefix := range outsidePrefixes {
		via := "198.18.0.2"
		family := "-4"
		if strings.Contains(prefix, ":") {
			family, via = "-6", "2001:db8:18::2"
		}
		run(t, "ip", family, "route", "add", prefix, "via", via)
		run(t, "ip", "-n", o.name, family, "route", "add", "local", prefix, "dev", "lo")
	}
	// Any address of the prefixes can be listened on, IPv6 ones too.
	run(t, "ip", "netns", "exec", o.name, "sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")
	var err error
	if o.ns, err = netns.GetFromName(o.name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.ns.Close() })
	o.serveDNS()
	return o
}

// outsidePrefixes are routed to the namespace while a test runs. TEST-NET-1 and
// TEST-NET-3 are left alone: machines that build Weir have been seen to use them.
var outsidePrefixes = []string{
	"198.51.100.0/24", "2001:db8:77::/64",
	"8.8.8.8/32", "1.1.1.1/32", "169.254.169.254/32", "10.77.0.0/24",
}

// in calls f on a thread inside the namespace.
func (o *Outside) in(f func() error) error { return inside(o.ns, f) }

// listen opens a TCP listener inside, closed at the end of the test.
func (o *Outside) listen(address string) net.Listener {
	o.t.Helper()
	var l net.Listener
	err := o.in(func() (err error) { l, err = net.Listen("tcp", address); return })
	if err != nil {
		o.t.Fatalf("listen outside on %s: %v", address, err)
	}
	o.t.Cleanup(func() { l.Close() })
	return l
}

// serve accepts connections on address and hands each to f.
func (o *Outside) serve(address string, f func(net.Conn)) {
	o.t.Helper()
	l := o.listen(address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
}

// name makes the DNS server answer addresses for a name.
func (o *Outside) addName(name string, addresses ...string) {
	var list []netip.Addr
	for _, a := range addresses {
		list = append(list, netip.MustParseAddr(a))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.zone[dns.Fqdn(name)] = list
}

// addOdd makes the DNS server answer a name with whatever f makes of the reply.
func (o *Outside) addOdd(name string, f func(reply *dns.Msg)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.odd[dns.Fqdn(name)] = f
}

// asks returns the names that reached the DNS server, and forgets them.
func (o *Outside) asks() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.asked
	o.asked = nil
	return list
}

func (o *Outside) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	o.mu.Lock()
	defer o.mu.Unlock()
	question := q.Question[0]
	o.asked = append(o.asked, strings.ToLower(question.Name))
	if f := o.odd[strings.ToLower(question.Name)]; f != nil {
		f(m)
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(dns.DefaultMsgSize)
		}
		_ = w.WriteMsg(m)
		return
	}
	addrs, ok := o.zone[strings.ToLower(question.Name)]
	if !ok {
		m.Rcode = dns.RcodeNameError
	}
	for _, a := range addrs {
		header := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 30}
		switch {
		case question.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.AsSlice()})
		case question.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AsSlice()})
		}
	}
	_ = w.WriteMsg(m)
}

func (o *Outside) serveDNS() {
	o.t.Helper()
	l := o.listen(DNSAddress + ":53")
	var pc net.PacketConn
	if err := o.in(func() (err error) { pc, err = net.ListenPacket("udp", DNSAddress+":53"); return }); err != nil {
		o.t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: o}, {PacketConn: pc, Handler: o}} {
		go s.ActivateAndServe()
		o.t.Cleanup(func() { s.Shutdown() })
	}
}

// Weir is one daemon under test.
type Weir struct {
	t      testing.TB
	dir    string
	socket string
	cmd    *exec.Cmd
	log    *os.File
	exited chan error
	env    []string   // of the daemon, beside the test's own
	files  []*os.File // of the daemon, from descriptor 3 on
	binary string     // of daemon and clients
}

// startWeir starts a daemon whose resolver is the test's DNS server. Its
// configuration can be extended with more YAML.
func startWeir(t testing.TB, config string) *Weir {
	t.Helper()
	w := newWeir(t, config)
	w.start()
	return w
}

// newWeir prepares a daemon without starting it.
func newWeir(t testing.TB, config string) *Weir {
	t.Helper()
	w := &Weir{t: t, dir: t.TempDir(), binary: weirBinary}
	w.socket = filepath.Join(w.dir, "weir.sock")
	config = "dns:\n  upstreams: [\"" + DNSAddress + ":53\"]\n" + config
	if err := os.WriteFile(filepath.Join(w.dir, "config.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.log, err = os.Create(filepath.Join(w.dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.detachAll()
		w.stop()
		text, _ := os.ReadFile(w.log.Name())
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", text)
		}
		if bytes.Contains(text, []byte("DATA RACE")) {
			t.Errorf("the race detector spoke:\n%s", text)
		}
	})
	return w
}

func (w *Weir) start() {
	w.t.Helper()
	// The shell becomes the daemon, so that $$ is the daemon's pid.
	w.cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", w.binary, "serve", "--data-dir", filepath.Join(w.dir, "data"), "--socket", w.socket,
		"--config", filepath.Join(w.dir, "config.yaml"), "--http", "127.0.0.1:0")
	w.cmd.Stdout, w.cmd.Stderr = w.log, w.log
	w.cmd.Env, w.cmd.ExtraFiles = append(os.Environ(), w.env...), w.files
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(w.cmd, w.exited)
	eventually(w.t, "the daemon answers", func() bool {
		_, code := w.try("version", "-o", "json")
		if code == 0 {
			out, _ := w.try("ps", "-o", "json")
			return strings.HasPrefix(out, "[") || strings.HasPrefix(out, "null")
		}
		return false
	})
}

// stop ends the daemon as an administrator would.
func (w *Weir) stop() {
	if w.cmd == nil {
		return
	}
	w.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-w.exited:
		if err != nil {
			w.t.Errorf("weir serve: %v", err)
		}
	case <-time.After(20 * time.Second):
		w.t.Errorf("weir serve did not stop within 20 s")
		w.cmd.Process.Kill()
		<-w.exited
	}
	w.cmd = nil
}

// kill ends the daemon with SIGKILL.
func (w *Weir) kill() {
	w.cmd.Process.Kill()
	<-w.exited
	w.cmd = nil
}

func (w *Weir) detachAll() {
	if w.cmd == nil {
		return
	}
	var list []struct {
		ID string `json:"container_id"`
	}
	out, _ := w.try("ps", "-o", "json")
	_ = json.Unmarshal([]byte(out), &list)
	for _, a := range list {
		w.try("detach", a.ID)
	}
}

// try runs a client command and returns what it printed, and its exit code.
func (w *Weir) try(args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.binary, append([]string{"--socket", w.socket}, args...)...)
	// The race detector otherwise makes every client linger for a second.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("weir %s: %v", strings.Join(args, " "), err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// run runs a client command that must succeed.
func (w *Weir) run(args ...string) string {
	w.t.Helper()
	out, code := w.try(args...)
	if code != 0 {
		w.t.Fatalf("weir %s: exit %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// json runs a client command and decodes its JSON.
func (w *Weir) json(v any, args ...string) {
	w.t.Helper()
	out := w.run(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		w.t.Fatalf("weir %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// Event is the part of an audit event that the tests look at.
type Event struct {
	Type, Verdict, Layer, Reason, Host, Address string
	Port                                        int
	RuleID                                      string `json:"rule_id"`
	SessionID                                   string `json:"session_id"`
	Container                                   string `json:"container_name"`
	BytesIn                                     int64  `json:"bytes_in"`
	Method, Path                                string
	Would                                       *struct{ Verdict, Reason string }

	ID         int64
	Time       time.Time
	Binary     string
	Operations []Operation
}

// Operation is a GraphQL operation of an event.
type Operation struct {
	Type, Name, Persisted string
	Fields                []string
}

// events returns the audit trail of a container.
func (w *Weir) events(container string, args ...string) []Event {
	w.t.Helper()
	out := w.run(append([]string{"events", "--container", container, "-o", "json"}, args...)...)
	var list []Event
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var e Event
		err := dec.Decode(&e)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, e)
	}
}

// waitEvent waits for an event that satisfies match.
func (w *Weir) waitEvent(container, what string, match func(Event) bool) Event {
	w.t.Helper()
	var found Event
	eventually(w.t, "event: "+what, func() bool {
		for _, e := range w.events(container) {
			if match(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}
