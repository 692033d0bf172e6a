package redirect

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// dockerLab has an outside of its own beside the machine's network: one
// namespace with one address that containers can reach.
type dockerLab struct {
	*lab
	image string
	addr  string // of the outside
}

func newDockerLab(t *testing.T) *dockerLab {
	t.Helper()
	l := &lab{t: t, prefix: fmt.Sprintf("wr%d-%d-", os.Getpid(), labs.Add(1))}
	l.namespace("world")
	n := os.Getpid()%60000 + int(labs.Load())
	d := &dockerLab{lab: l, image: "weir-redirect:" + strings.Trim(l.prefix, "-"), addr: fmt.Sprintf("198.19.%d.%d", n>>8, n&0xff)}
	out := fmt.Sprintf("wrd%d", n)
	l.sh("", fmt.Sprintf("ip link add %s type veth peer name in netns %sworld; ip link set %[1]s up", out, l.prefix))
	t.Cleanup(func() { run("ip", "link", "del", out) })
	l.sh("world", fmt.Sprintf("ip addr add %s/32 dev in; ip link set in up; ip route add default dev in; sysctl -qw net.ipv4.conf.in.proxy_arp=1", d.addr))
	l.sh("", fmt.Sprintf("ip route add %s/32 dev %s", d.addr, out))

	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	tw := tar.NewWriter(&image)
	tw.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))})
	tw.Write(busybox)
	tw.WriteHeader(&tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o755})
	tw.Close()
	load := exec.Command("docker", "import", "-", d.image)
	load.Stdin = &image
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	t.Cleanup(func() { run("docker", "rmi", "-f", d.image) })
	return d
}

// start runs a container that sleeps and gives its namespace.
func (d *dockerLab) start(name string, options ...string) *NetNS {
	d.t.Helper()
	full := d.prefix + name
	args := append([]string{"docker", "run", "-d", "--name", full}, options...)
	if out, err := run(append(args, d.image, "/bin/busybox", "sleep", "1000")...); err != nil {
		d.t.Fatalf("docker run: %v\n%s", err, out)
	}
	d.t.Cleanup(func() { run("docker", "rm", "-f", full) })
	ns, err := Open("/proc/" + d.pid(name) + "/ns/net")
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { ns.Close() })
	return ns
}

func (d *dockerLab) pid(name string) string {
	d.t.Helper()
	out, err := run("docker", "inspect", "-f", "{{.State.Pid}}", d.prefix+name)
	if err != nil {
		d.t.Fatalf("docker inspect: %v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

// in runs a program of the machine in a container's network.
func (d *dockerLab) in(name string, args ...string) string {
	d.t.Helper()
	out, err := run(append([]string{"nsenter", "-t", d.pid(name), "-n"}, args...)...)
	if err != nil {
		d.t.Fatalf("%v in %s: %v\n%s", args, name, err, out)
	}
	return strings.TrimSpace(out)
}

func (d *dockerLab) network(name string) string {
	d.t.Helper()
	full := d.prefix + name
	if out, err := run("docker", "network", "create", full); err != nil {
		d.t.Fatalf("docker network create: %v\n%s", err, out)
	}
	d.t.Cleanup(func() { run("docker", "network", "rm", full) })
	return full
}

func (d *dockerLab) attach(name string, ns *NetNS) *Attachment {
	d.t.Helper()
	a, err := Install(d.t.Context(), ns, Spec{Name: d.prefix + name})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := a.Close(); err != nil {
			d.t.Errorf("close: %v", err)
		}
	})
	for _, i := range a.Interfaces() {
		if !i.Locked {
			d.t.Errorf("interface %s is not locked: %s", i.Name, i.Reason)
		}
	}
	echoDNS(a)
	echoDst(a)
	return a
}

// serve answers on port 8080 in a container.
func (d *dockerLab) serve(name, word string) {
	d.t.Helper()
	cmd := exec.Command("nsenter", "-t", d.pid(name), "-n", "python3", "-c", `
import socket
s=socket.socket(); s.bind(("",8080)); s.listen(); print("ready",flush=True)
while True: c,_=s.accept(); c.send(b"`+word+`"); c.close()`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 8)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *dockerLab) expect(name, call, want string) {
	d.t.Helper()
	if got := d.in(name, "python3", "-c", talk+"print(talk("+call+"))"); got != want {
		d.t.Errorf("%s: talk(%s): got %q, want %q", name, call, got, want)
	}
}

func TestDocker(t *testing.T) {
	d := newDockerLab(t)
	port := 20000 + os.Getpid()%20000
	plain := d.start("plain", "-p", fmt.Sprintf("127.0.0.1:%d:8080", port), "--cap-add", "NET_ADMIN")
	network := d.network("net")
	one, two := d.start("one", "--network", network), d.start("two", "--network", network)
	none := d.start("none", "--network", "none")
	d.serve("plain", "published")
	d.serve("two", "two")
	d.program("world", `
import socket
s=socket.socket(); s.bind(("",8080)); s.listen(); print("ready",flush=True)
while True: c,_=s.accept(); c.send(b"outside"); c.close()`)()
	outside := fmt.Sprintf("TCP, %q, 8080", d.addr)
	d.expect("plain", outside, "outside")
	before := map[string]string{}
	names := map[string]*NetNS{"plain": plain, "one": one, "two": two, "none": none}
	state := func(name string) string {
		return d.in(name, "sh", "-c", "nft list ruleset; ip addr; ip route show table all; ip -6 route show table all; ip rule")
	}
	for name := range names {
		before[name] = state(name)
	}
	attached := map[string]*Attachment{}
	for name, ns := range names {
		attached[name] = d.attach(name, ns)
	}
	twoAddr := strings.Fields(d.in("two", "ip", "-4", "-o", "addr", "show", "dev", "eth0"))[3]
	twoAddr = strings.Split(twoAddr, "/")[0]
	for name := range names {
		d.expect(name, outside, d.addr+":8080 <nil>")
		d.expect(name, `UDP, "127.0.0.11", 53`, "udp shim x")
		d.expect(name, `UDP, "8.8.8.8", 53`, "udp shim x")
		d.expect(name, `TCP, "8.8.8.8", 53`, "tcp shim x")
	}
	d.expect("one", fmt.Sprintf("TCP, %q, 8080", twoAddr), twoAddr+":8080 <nil>")

	// Docker's resolver by the port that it really listens on.
	resolver := d.in("one", "sh", "-c", `awk '$2 ~ /^0B00007F:/ {print $2}' /proc/net/udp`)
	var real int
	if _, err := fmt.Sscanf(resolver, "0B00007F:%x", &real); err != nil {
		t.Fatalf("docker's resolver is not among the sockets of the container: %q", resolver)
	}
	d.expect("one", fmt.Sprintf(`UDP, "127.0.0.11", %d`, real), "Operation not permitted")

	// Inbound: a published port, and a flow dialled by the host to a locked
	// container.
	for _, to := range []struct{ addr, want string }{{fmt.Sprintf("127.0.0.1:%d", port), "published"}, {twoAddr + ":8080", "two"}} {
		host, p, _ := strings.Cut(to.addr, ":")
		if out, err := run("python3", "-c", talk+fmt.Sprintf("print(talk(TCP, %q, %s))", host, p)); err != nil || strings.TrimSpace(out) != to.want {
			t.Errorf("inbound to %s: %q, %v", to.addr, out, err)
		}
	}

	// The rules gone, the lock holds.
	for _, name := range []string{"plain", "one"} {
		d.in(name, "nft", "flush", "ruleset")
		for _, call := range []string{outside, fmt.Sprintf("TCP, %q, 8080", twoAddr), `TCP, "172.17.0.1", 8080`} {
			d.expect(name, call, "timeout")
		}
	}
	for name, a := range attached {
		if name == "plain" || name == "one" {
			continue // flushed, Docker's rules with ours
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		same(t, before[name], state(name))
	}
}

// A network that is connected later is locked before it can be used.
func TestDockerNetworkConnect(t *testing.T) {
	d := newDockerLab(t)
	ns := d.start("ct", "--cap-add", "NET_ADMIN")
	network := d.network("late")
	d.start("peer", "--network", network)
	d.serve("peer", "peer")
	a := d.attach("ct", ns)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	w := &watched{lab: d.lab, a: a, reports: make(chan Tamper, 64)}
	go func() { done <- a.Watch(ctx, func(tamper Tamper) { w.reports <- tamper }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if out, err := run("docker", "network", "connect", network, d.prefix+"ct"); err != nil {
		t.Fatalf("docker network connect: %v\n%s", err, out)
	}
	if got := w.next(NewInterface); !got.Restored {
		t.Errorf("got %+v", got)
	}
	t.Cleanup(func() { run("docker", "network", "disconnect", "-f", network, d.prefix+"ct") })
	peer := strings.Split(strings.Fields(d.in("peer", "ip", "-4", "-o", "addr", "show", "dev", "eth0"))[3], "/")[0]
	d.expect("ct", fmt.Sprintf("TCP, %q, 8080", peer), peer+":8080 <nil>")
	d.serve("ct", "late")
	own := strings.Split(strings.Fields(d.in("ct", "ip", "-4", "-o", "addr", "show", "dev", "eth1"))[3], "/")[0]
	if out, err := run("python3", "-c", talk+fmt.Sprintf("print(talk(TCP, %q, 8080))", own)); err != nil || strings.TrimSpace(out) != "late" {
		t.Errorf("inbound by the new network: %q, %v", out, err)
	}
	if !strings.Contains(d.in("ct", "nft", "list", "ruleset"), "127.0.0.11") {
		t.Error("docker's own rules for its resolver are gone")
	}
	if _, err := run("nsenter", "-t", d.pid("ct"), "-n", "nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	w.next(Ruleset)
	d.expect("ct", fmt.Sprintf("TCP, %q, 8080", peer), peer+":8080 <nil>")
}
