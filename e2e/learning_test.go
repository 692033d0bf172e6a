package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// hostServer serves on every address of the host itself and returns the port,
// and what reached it.
func hostServer(t testing.TB) (port int, hits func() []string) {
	t.Helper()
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan string, 100)
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.Host })}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return l.Addr().(*net.TCPAddr).Port, func() (list []string) {
		for len(reached) > 0 {
			list = append(list, <-reached)
		}
		return list
	}
}

// port is where the daemon serves its API over TCP.
func (w *Weir) port() int {
	w.t.Helper()
	out := run(w.t, "ss", "-ltnpH")
	for _, line := range strings.Split(out, "\n") {
		if !strings.Contains(line, fmt.Sprintf("pid=%d,", w.cmd.Process.Pid)) {
			continue
		}
		if found := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(line); found != nil {
			port, _ := strconv.Atoi(found[1])
			return port
		}
	}
	w.t.Fatalf("the daemon listens nowhere: %s", out)
	return 0
}

func TestLearningOpensAllButGuardedAddresses(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	o.addName("ruled.example", "198.51.100.11")
	o.addName("inner.example", "10.77.0.5")
	o.addName("metadata.example", "169.254.169.254")
	o.addName("host.example", "198.18.0.1")
	for _, address := range []string{"198.51.100.10:80", "198.51.100.11:80", "[2001:db8:77::10]:8080", "10.77.0.5:80", "169.254.169.254:80"} {
		o.serveHTTP(address, greet(address))
	}
	metadata := o.watch("169.254.169.254")
	port, hits := hostServer(t)
	w := startWeir(t, "")
	network := newNetwork(t, "--ipv6", "--subnet", "fd00:77:4::/64", "--subnet", "172.31.77.0/24")
	box := newBox(t, "--network", network)
	if out, ok := box.curl(fmt.Sprintf("http://172.31.77.1:%d/", port)); !ok {
		t.Fatalf("without Weir the host is not reachable from the box: %s", out)
	}
	hits()
	w.run("attach", box.Name, "--allow-all", "--session", "learn", "--allow", "ruled.example:80")

	for _, c := range []struct{ url, host, would string }{
		{"http://shop.example/", "shop.example", "deny"},
		{"http://ruled.example/", "ruled.example", "allow"},
		{"http://198.51.100.10/", "", "deny"},
		{"http://[2001:db8:77::10]:8080/", "", "deny"},
		{"http://inner.example/", "inner.example", "deny"},
		{"http://10.77.0.5/", "", "deny"},
	} {
		if out, ok := box.curl(c.url); !ok || !strings.Contains(out, "hello") {
			t.Errorf("%s: %s", c.url, out)
		}
		w.waitEvent(box.Name, c.url+" would be "+c.would, func(e Event) bool {
			return e.Type == "connect" && e.Verdict == "allow" && e.Layer == "allow_all" && e.SessionID == "learn" &&
				(c.host == "" || e.Host == c.host) && e.Would != nil && e.Would.Verdict == c.would && e.Would.Reason != "" && e.BytesIn > 0
		})
	}
	w.waitEvent(box.Name, "the name would be refused", func(e Event) bool {
		return e.Type == "dns" && e.Verdict == "allow" && e.Host == "shop.example" && e.Would != nil && e.Would.Verdict == "deny"
	})

	guarded := []string{
		"http://169.254.169.254/", "http://metadata.example/",
		"http://[::ffff:169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/",
		fmt.Sprintf("http://172.31.77.1:%d/", port), fmt.Sprintf("http://[fd00:77:4::1]:%d/", port),
		fmt.Sprintf("http://198.18.0.1:%d/", port), fmt.Sprintf("http://host.example:%d/", port),
		fmt.Sprintf("http://172.31.77.1:%d/v1/health", w.port()), fmt.Sprintf("http://198.18.0.1:%d/v1/health", w.port()),
	}
	for _, a := range hostAddresses(t) {
		guarded = append(guarded, "http://"+netip.AddrPortFrom(a, uint16(port)).String()+"/")
	}
	refuse := func(mode, layer string, urls []string) {
		t.Helper()
		for _, url := range urls {
			before := len(w.events(box.Name, "--verdict", "deny", "--type", "connect"))
			if out, ok := box.curl(url); ok {
				t.Errorf("%s: %s was reached: %s", mode, url, out)
			}
			eventually(t, mode+": an event of the guard for "+url, func() bool {
				list := w.events(box.Name, "--verdict", "deny", "--type", "connect")
				return len(list) == before+1 && list[before].Layer == layer && list[before].Reason != ""
			})
		}
	}
	refuse("learning", "guard", guarded)

	// A rule for everything opens none of them either; only metadata services
	// can be named.
	w.run("session", "create", box.Name, "--allow", "*", "--allow", "172.31.77.1", "--allow", "198.18.0.1")
	refuse("a rule for everything", "guard", guarded)
	if packets := metadata(); len(packets) > 0 {
		t.Errorf("packets reached the metadata service: %v", packets)
	}
	if list := hits(); len(list) > 0 {
		t.Errorf("requests reached the host: %v", list)
	}
	w.run("session", "create", box.Name, "--allow", "169.254.169.254:80")
	if out, ok := box.curl("http://169.254.169.254/"); !ok {
		t.Errorf("a metadata service with a rule for its very address: %s", out)
	}
}

// hostAddresses are this machine's own, without loopback and link-local ones.
func hostAddresses(t testing.TB) (list []netip.Addr) {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			list = append(list, p.Addr())
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}
