package redirect

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds every wait of the tests.
const patience = 30 * time.Second

var labs atomic.Int32

// lab is a small world on this machine: a host with a bridge, containers on
// it, and an outside that owns every address the tests speak to and records
// what reaches it.
type lab struct {
	t      testing.TB
	prefix string
	host   *NetNS
}

// world's addresses: a public resolver, metadata, and documentation ranges.
var worldAddrs = []string{"8.8.8.8/32", "198.51.100.1/32", "203.0.113.7/32", "2001:db8:8::8/128"}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{t: t, prefix: fmt.Sprintf("wr%d-%d-", os.Getpid(), labs.Add(1))}
	l.namespace("host")
	l.namespace("world")
	h := l.prefix + "host"
	l.sh("host", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	l.sh("", fmt.Sprintf("ip -n %[1]s link add out type veth peer name in netns %[2]sworld && ip -n %[1]s link add br0 type bridge", h, l.prefix))
	l.sh("host", `ip addr add 10.9.0.1/24 dev out; ip -6 addr add 2001:db8:9::1/64 dev out nodad; ip link set out up
		ip addr add 172.30.0.1/24 dev br0; ip -6 addr add 2001:db8:30::1/64 dev br0 nodad; ip link set br0 up
		ip route add default via 10.9.0.2; ip -6 route add default via 2001:db8:9::2`)
	l.sh("world", `ip addr add 10.9.0.2/24 dev in; ip -6 addr add 2001:db8:9::2/64 dev in nodad; ip link set in up
		ip route add default via 10.9.0.1; ip -6 route add default via 2001:db8:9::1`)
	for _, a := range worldAddrs {
		l.sh("world", "ip addr add "+a+" dev lo")
	}
	l.host = l.open("host")
	return l
}

// namespace makes one that goes away with the test.
func (l *lab) namespace(name string) {
	l.t.Helper()
	l.sh("", "ip netns add "+l.prefix+name)
	l.t.Cleanup(func() { exec.Command("ip", "netns", "del", l.prefix+name).Run() })
	l.sh(name, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; ip link set lo up")
}

// container makes one on the bridge at 172.30.0.N and 2001:db8:30::N.
func (l *lab) container(name string, n int) *NetNS {
	l.t.Helper()
	l.namespace(name)
	l.sh("", fmt.Sprintf("ip -n %[1]shost link add v%[2]s type veth peer name eth0 netns %[1]s%[2]s", l.prefix, name))
	l.sh("host", fmt.Sprintf("ip link set v%s master br0 up", name))
	l.sh(name, fmt.Sprintf(`ip link set eth0 address 02:00:00:00:30:%02[1]x; ip addr add 172.30.0.%[1]d/24 dev eth0; ip -6 addr add 2001:db8:30::%[1]d/64 dev eth0 nodad; ip link set eth0 up
		ip route add default via 172.30.0.1; ip -6 route add default via 2001:db8:30::1`, n))
	return l.open(name)
}

func (l *lab) open(name string) *NetNS {
	l.t.Helper()
	ns, err := Open("/run/netns/" + l.prefix + name)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ns.Close() })
	return ns
}

// install attaches and detaches with the test.
func (l *lab) install(ns *NetNS) *Attachment {
	l.t.Helper()
	return l.installAs(ns, Spec{})
}

// installAs is install with more than a name and a host.
func (l *lab) installAs(ns *NetNS, s Spec) *Attachment {
	l.t.Helper()
	s.Name, s.Host = "t"+strings.TrimSuffix(l.prefix, "-"), l.host
	a, err := Install(l.t.Context(), ns, s)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := a.Close(); err != nil {
			l.t.Errorf("close: %v", err)
		}
	})
	return a
}

// sh runs a script that must succeed, in a namespace of the lab or, with "",
// in none.
func (l *lab) sh(in, script string) string {
	l.t.Helper()
	out, err := l.try(in, script)
	if err != nil {
		l.t.Fatalf("in %q: %s: %v\n%s", in, script, err, out)
	}
	return out
}

// try runs a script and gives its output and error.
func (l *lab) try(in, script string) (string, error) {
	args := []string{"sh", "-ec", script}
	if in != "" {
		args = append([]string{"ip", "netns", "exec", l.prefix + in}, args...)
	}
	return run(args...)
}

func run(args ...string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	stop := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer stop.Stop()
	err := cmd.Wait()
	return out.String(), err
}

// python runs a program in a namespace and gives the last line it printed.
func (l *lab) python(in, program string) string {
	l.t.Helper()
	out, err := run("ip", "netns", "exec", l.prefix+in, "python3", "-c", program)
	if err != nil {
		l.t.Fatalf("python in %s: %v\n%s", in, err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

// state is everything that Close must give back, as the tools print it.
func (l *lab) state(in string) string {
	l.t.Helper()
	return l.sh(in, `nft list ruleset; ip addr; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; ip neigh show nud permanent
		for f in /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/* /proc/sys/net/ipv6/conf/*/*; do echo $f $(cat $f 2>/dev/null); done`)
}

// hostState is what Install may have changed in the host. A route is
// "linkdown" while nobody is on the bridge, which is not our doing.
func (l *lab) hostState() string {
	l.t.Helper()
	return l.sh("host", "nft list ruleset; ip route | sed 's/ linkdown//'; ip rule; ip -6 rule")
}

// program is a long-running one in a namespace; it ends with the test.
func (l *lab) program(in, python string) (line func() string) {
	l.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", l.prefix+in, "python3", "-uc", python)
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	lines := make(chan string, 1024)
	go func() {
		defer close(lines)
		var pending []byte
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			pending = append(pending, buf[:n]...)
			for {
				i := bytes.IndexByte(pending, '\n')
				if i < 0 {
					break
				}
				lines <- string(pending[:i])
				pending = pending[i+1:]
			}
			if err != nil {
				return
			}
		}
	}()
	return func() string {
		l.t.Helper()
		select {
		case s, ok := <-lines:
			if !ok {
				l.t.Fatalf("the program in %s ended", in)
			}
			return s
		case <-time.After(patience):
			l.t.Fatalf("the program in %s said nothing for %v", in, patience)
		}
		return ""
	}
}
