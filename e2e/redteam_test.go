package e2e

import (
	_ "embed"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

//go:embed testdata/protocols.py
var protocols string

// A siege is a container with some rules, and an outside of which it must
// reach nothing else.
type siege struct {
	t       *testing.T
	o       *Outside
	w       *Weir
	box     *Box
	other   *Box // a neighbour, attached as well
	seen    map[string]func() []string
	proxied atomic.Int64 // bytes that reached the proxy of an allowed host
}

func newSiege(t *testing.T) *siege {
	t.Helper()
	o := newOutside(t)
	s := &siege{t: t, o: o, seen: map[string]func() []string{}}
	for _, name := range []string{"good.example", "two.example"} {
		o.addName(name, "198.51.100.10")
	}
	o.addName("hop.example", "198.51.100.11")
	o.addName("evil.example", canary4)
	o.addName("dns.google", "8.8.8.8")
	hello(o, "198.51.100.10:80")
	hello(o, "10.77.0.5:80")
	echo(o, "198.51.100.10:7")
	o.serve("198.51.100.10:22", mailServer)
	cert := newAuthority(t).certificate("good.example", "two.example", "dns.google", "8.8.8.8")
	o.serveHTTP("198.51.100.10:8888", greet("198.51.100.10"), cert)
	// Who answers as an open SOCKS proxy would, and counts what it is told.
	o.serve("198.51.100.10:1080", func(c net.Conn) {
		for buf := make([]byte, 512); ; {
			n, err := c.Read(buf)
			s.proxied.Add(int64(n))
			if err != nil {
				return
			}
			c.Write([]byte{5, 0})
		}
	})
	o.serveHTTP("198.51.100.11:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, map[string]string{"/name": "http://evil.example/", "/address": "http://" + canary4 + "/"}[r.URL.Path], http.StatusFound)
	}))
	for _, canary := range []string{canary4, canary6, "8.8.8.8"} {
		for _, port := range []string{"80", "853"} {
			echo(o, net.JoinHostPort(canary, port))
		}
		o.serveHTTP(net.JoinHostPort(canary, "443"), greet(canary), cert)
		s.seen[canary] = o.watch(canary)
	}
	s.w = startWeir(t, "")
	network := newNetwork(t, "--ipv6", "--subnet", "fd00:77:6::/64")
	s.other = newBox(t, "--network", network)
	s.box = newBox(t, "--network", network)
	ns, err := netns.GetFromPath("/proc/" + s.other.pid() + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	s.seen["the neighbour"] = sniff(t, ns, notDiscovery)
	return s
}

// silent fails the test when a canary has seen anything.
func (s *siege) silent(during string) {
	s.t.Helper()
	for who, seen := range s.seen {
		if packets := seen(); len(packets) > 0 {
			s.t.Errorf("%s: %d packets reached %s, the first: %s", during, len(packets), who, packets[0])
		}
	}
}

// kinds are the protocol numbers of what the canaries have seen.
func (s *siege) kinds() map[byte]bool {
	kinds := map[byte]bool{}
	for _, seen := range s.seen {
		for _, packet := range seen() {
			p, err := hex.DecodeString(packet)
			switch {
			case err != nil || len(p) < 20:
			case p[0]>>4 == 6:
				kinds[p[6]] = true
			default:
				kinds[p[9]] = true
			}
		}
	}
	return kinds
}

// The rows of docs/security.md that no other test goes through end to end.
func TestWaysAroundTheRulesAreClosed(t *testing.T) {
	s := newSiege(t)
	send := func() string {
		out, ok := s.box.exec("python3", "-c", protocols, canary4, canary6, "eth0")
		if !ok {
			t.Fatalf("send: %s", out)
		}
		return strings.TrimSpace(out)
	}
	t.Logf("before the attach: %s", send())
	kinds := map[byte]bool{}
	for _, protocol := range []byte{1, 4, 17, 41, 47, 50, 58, 132, 136, 253} {
		eventually(t, fmt.Sprintf("before the attach a packet of protocol %d arrives", protocol), func() bool {
			for k := range s.kinds() {
				kinds[k] = true
			}
			return kinds[protocol]
		})
	}
	s.w.run("attach", s.box.Name, "--session", "s", "--allow", "good.example:7,22,80,1080,8888", "--allow", "hop.example:80",
		"--allow", "two.example:80", "--allow", "*.rebind.example:80")
	s.w.run("attach", s.other.Name, "--allow", "good.example:7")
	for _, seen := range s.seen {
		seen()
	}

	t.Logf("attached: %s", send())
	s.silent("protocols without a connection")
	s.connections()
	s.rebinding()
	s.poisoning()
	s.injection()
}

// refused waits for an event of a refusal that is not among those before.
func (s *siege) refused(what string, before map[int64]bool, match func(Event) bool) {
	s.t.Helper()
	var e Event
	for range 100 {
		for _, e = range s.w.events(s.box.Name, "--verdict", "deny") {
			if before[e.ID] || !match(e) {
				continue
			}
			if e.Reason == "" || e.Container != s.box.Name || e.Layer == "" {
				s.t.Errorf("%s: event %+v", what, e)
			}
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	s.t.Errorf("%s: no event; the last refusal: %+v", what, e)
}

// connections are refused, each with an event that says which.
func (s *siege) connections() {
	s.t.Helper()
	curl := func(args ...string) []string { return append([]string{"curl", "-sS", "-k", "-m", "5"}, args...) }
	to := func(address string, port int) func(Event) bool {
		return func(e Event) bool { return e.Type == "connect" && e.Address == address && e.Port == port }
	}
	saying := func(words string) func(Event) bool {
		return func(e Event) bool { return e.Type == "connect" && strings.Contains(e.Reason, words) }
	}
	asking := func(name string) func(Event) bool {
		return func(e Event) bool { return e.Type == "dns" && e.Host == name }
	}
	raw := func(host string, port int, text string) []string {
		return []string{"sh", "-c", fmt.Sprintf("printf '%s' | timeout 5 nc -N -w3 %s %d | grep .", text, host, port)}
	}
	for _, c := range []struct {
		name    string
		command []string
		event   func(Event) bool // of the refusal
	}{
		{"DNS over TLS", []string{"sh", "-c", "echo | timeout 5 openssl s_client -brief -connect 8.8.8.8:853"}, to("8.8.8.8", 853)},
		{"DNS over HTTPS, by address", curl("https://8.8.8.8/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB"), to("8.8.8.8", 443)},
		{"DNS over HTTPS, by name", curl("https://dns.google/dns-query"), asking("dns.google")},
		{"an IPv6 address", curl("http://[" + canary6 + "]/"), to(canary6, 80)},
		{"a mapped address", curl("http://[::ffff:" + canary4 + "]/"), to(canary4, 80)},
		{"an address in hex", curl("http://0xC6336442:443/"), to(canary4, 443)},
		{"an address as one number", curl("http://3325256770:853/"), to(canary4, 853)},
		{"an address in octal as Host", curl("-H", "Host: 0306.063.0144.0102", "http://good.example/"), saying("0306.063.0144.0102")},
		{"an address as one number as Host", curl("-H", "Host: 3325256770", "http://good.example/"), saying("3325256770")},
		{"an address as Host", curl("-H", "Host: "+canary4, "http://good.example/"), saying(canary4)},
		{"a proxy by CONNECT", curl("-p", "-x", "http://good.example:80", "http://evil.example/"), saying("asked for evil.example")},
		{"a proxy by absolute form", curl("-x", "http://good.example:80", "http://evil.example/"), saying("evil.example")},
		{"a proxy by SOCKS 5", curl("--socks5-hostname", "good.example:1080", "http://evil.example/"), saying("SOCKS")},
		{"a proxy by SOCKS 4a", curl("--socks4a", "good.example:1080", "http://evil.example/"), saying("SOCKS")},
		{"TLS for another name on another port", curl("--connect-to", "two.example::good.example:", "https://two.example:8888/"), saying("two.example")},
		{"HTTP for another name where SSH is spoken", curl("-H", "Host: evil.example", "http://good.example:22/"), saying("evil.example")},
		{"clear-text HTTP/2 by prior knowledge", curl("--http2-prior-knowledge", "http://good.example/"), saying("HTTP/2")},
		{"an upgrade to clear-text HTTP/2", curl("--http2", "http://good.example/"), saying("HTTP/2")},
		{"SSH on a port of two names", raw("two.example", 22, `SSH-2.0-x\r\n`), func(e Event) bool { return e.Port == 22 && e.Type == "connect" }},
		{"NUL in Host", raw("good.example", 80, `GET / HTTP/1.1\r\nHost: good.example\0.evil.example\r\n\r\n`), saying("NUL")},
		{"a redirect to a name", curl("-L", "-f", "http://hop.example/name"), asking("evil.example")},
		{"a redirect to an address", curl("-L", "-f", "http://hop.example/address"), to(canary4, 80)},
	} {
		if c.name == "SSH on a port of two names" {
			s.box.exec("getent", "ahosts", "good.example")
			s.box.exec("getent", "ahosts", "two.example")
		}
		before := map[int64]bool{}
		for _, e := range s.w.events(s.box.Name, "--verdict", "deny") {
			before[e.ID] = true
		}
		if out, ok := s.box.exec(c.command...); ok {
			s.t.Errorf("%s: %s", c.name, out)
		}
		s.refused(c.name, before, c.event)
		s.silent(c.name)
	}
	if n := s.proxied.Load(); n > 0 {
		s.t.Errorf("%d bytes reached the SOCKS proxy", n)
	}
	// Refused by the kernel before it is a connection.
	for _, url := range []string{"http://[fe80::1%25eth0]/", "http://[fe80::1%25eth0]:53/", "http://[ff02::1%25eth0]/", "http://224.0.0.251/", "http://255.255.255.255/"} {
		if out, ok := s.box.curl(url); ok || strings.Contains(out, "timed out") {
			s.t.Errorf("%s: %s", url, out)
		}
	}
	s.silent("connections that cannot be made")
}

// rebinding: the address that was judged is the one that is dialled, and a
// name cannot lead a wildcard's rule inside.
func (s *siege) rebinding() {
	s.t.Helper()
	s.o.addName("a.rebind.example", "198.51.100.10")
	if out, ok := s.box.curl("http://a.rebind.example/"); !ok {
		s.t.Fatalf("at first: %s", out)
	}
	for _, inside := range []string{"10.77.0.5", "169.254.169.254", "127.0.0.1", "198.18.0.1", "0.0.0.0"} {
		name := strings.ReplaceAll(inside, ".", "-") + ".rebind.example"
		s.o.addName(name, inside, "198.51.100.99")
		// Both addresses of an answer, whichever comes first, and the bare address under the name.
		for _, args := range [][]string{{"http://" + name + "/"}, {"--resolve", name + ":80:" + inside, "http://" + name + "/"}} {
			if out, ok := s.box.curl(args...); ok {
				s.t.Errorf("%s under the wildcard: %s", inside, out)
			}
		}
	}
	s.w.waitEvent(s.box.Name, "a private address under a wildcard", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Layer == "guard" && e.Address == "10.77.0.5"
	})
	s.o.addName("b.rebind.example", "10.77.0.5")
	s.w.run("session", "create", s.box.Name, "--id", "s", "--allow", "b.rebind.example:80")
	if out, ok := s.box.curl("http://b.rebind.example/"); !ok {
		s.t.Errorf("a private address by its exact name: %s", out)
	}
}

// poisoning: what one container resolved says nothing of another's addresses.
func (s *siege) poisoning() {
	s.t.Helper()
	// Every name that leads to the address has to be allowed where nothing says which is meant.
	s.w.run("session", "create", s.box.Name, "--id", "s", "--allow", "*.example:7")
	s.box.exec("getent", "ahosts", "good.example")
	if !s.box.echoes("198.51.100.10", 7) {
		s.t.Error("who resolved the name does not reach its address")
	}
	if s.other.echoes("198.51.100.10", 7) {
		s.t.Error("who never resolved the name reaches its address")
	}
	s.w.waitEvent(s.other.Name, "an address without a name", func(e Event) bool {
		return e.Verdict == "deny" && e.Address == "198.51.100.10" && e.Port == 7 && e.Host == ""
	})
}

// injection: what a container says cannot draw on the screen of who reads it.
func (s *siege) injection() {
	s.t.Helper()
	s.w.run("session", "create", s.box.Name, "--id", "s", "--allow", "good.example:80,8888")
	for _, line := range []string{
		`printf 'GET /\033[2Jpath HTTP/1.1\r\nHost: good.example\r\n\r\n' | nc -N -w3 good.example 80`,
		`printf 'GET / HTTP/1.1\r\nHost: \033]0;title\007evil.example\r\n\r\n' | nc -N -w3 good.example 80`,
		`timeout 5 openssl s_client -connect good.example:8888 -servername "$(printf 'a\033[31m\nallow all')" </dev/null`,
		`dig +tries=1 +time=3 'x\027[2J\010allow.evil.example'`,
	} {
		if out, ok := s.box.sh(line); ok && strings.Contains(out, "200 OK") {
			s.t.Errorf("%s: %s", line, out)
		}
	}
	s.w.waitEvent(s.box.Name, "a name with control characters", func(e Event) bool {
		return e.Type == "dns" && e.Verdict == "deny" && strings.Contains(e.Host, "evil.example") && strings.Contains(e.Host, "allow")
	})
	for _, args := range [][]string{{"events", "--container", s.box.Name}, {"events", "--container", s.box.Name, "-o", "json"}, {"dns", s.box.Name}} {
		out := s.w.run(args...)
		if i := strings.IndexFunc(out, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 }); i >= 0 {
			s.t.Errorf("weir %s prints a control character: %q", args[0], out[max(0, i-80):min(len(out), i+80)])
		}
	}
}
