package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// Question is the part of an open question that the tests look at.
type Question struct {
	ID, Container, Host, Address, Binary, Reason string
	Port, Flows                                  int
	ExpiresAt                                    time.Time `json:"expires_at"`
	Choices                                      []struct{ What, Destination, Ports string }
}

// questions lists what a container waits for.
func (w *Weir) questions(box *Box) (list []Question) {
	w.t.Helper()
	w.json(&list, "ask", "list", "--container", box.Name)
	return list
}

// question waits until a container is asked about something, by n connections.
func (w *Weir) question(box *Box, host string, port, n int) (q Question) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d connections to %s:%d are asked about", n, host, port), func() bool {
		for _, one := range w.questions(box) {
			if (one.Host == host || one.Host == "" && one.Address == host) && one.Port == port && one.Flows == n {
				q = one
				return true
			}
		}
		return false
	})
	return q
}

// Answered is what weir ask answer says.
type Answered struct {
	Flows, Others int
	Rule          *struct{ ID, Source, Container, Destination, Ports, Action, Notes string }
}

func (w *Weir) answer(q Question, args ...string) (a Answered) {
	w.t.Helper()
	w.json(&a, append([]string{"ask", "answer", q.ID}, args...)...)
	return a
}

// Pending is a command inside a box that has not ended yet.
type Pending struct {
	out   string
	ok    bool
	ended chan struct{}
}

func (b *Box) begin(args ...string) *Pending {
	p := &Pending{ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.out, p.ok = b.exec(args...)
	}()
	return p
}

// fetch is a curl that waits for as long as anything does.
func (b *Box) fetch(url string) *Pending { return b.begin("curl", "-sS", "--max-time", "55", url) }

func (p *Pending) end(t testing.TB) (string, bool) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		t.Fatal("a command in a container did not end")
	}
	return p.out, p.ok
}

// waits fails the test if the command has ended.
func (p *Pending) waits(t testing.TB) {
	t.Helper()
	select {
	case <-p.ended:
		t.Errorf("ended although nobody has answered: %s", p.out)
	default:
	}
}

// askedFor is an outside with some names, two servers behind each.
func askedFor(t *testing.T) *Outside {
	o := newOutside(t)
	for i, name := range []string{"one.shop.example", "two.shop.example", "three.example"} {
		address := fmt.Sprintf("198.51.100.%d", 40+i)
		o.addName(name, address)
		o.serveHTTP(address+":80", greet(address))
		o.serveHTTP(address+":8080", greet(address))
	}
	return o
}

// askLab is an outside with some names, and a container whose session asks.
func askLab(t *testing.T) (*Outside, *Weir, *Box) {
	o := askedFor(t)
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--ask", "--session", "asks", "--ttl", "10m")
	return o, w, box
}

func TestAPersonIsAskedAndTheSameConnectionGoesOn(t *testing.T) {
	o, w, box := askLab(t)
	if mode := w.attached(box.Name).Mode; mode != "asking" {
		t.Errorf("mode %q", mode)
	}
	first, second := box.fetch("http://one.shop.example/"), box.fetch("http://one.shop.example/")
	q := w.question(box, "one.shop.example", 80, 2)
	first.waits(t)
	if asked := o.asks(); len(asked) > 0 {
		t.Errorf("asked upstream before anybody allowed it: %v", asked)
	}
	if q.Address != "" || !strings.HasSuffix(q.Binary, "/curl") || !strings.Contains(q.Reason, "one.shop.example") || q.Container != box.Name {
		t.Errorf("question %+v", q)
	}
	if a := w.answer(q, "allow"); a.Flows != 2 || a.Rule != nil {
		t.Errorf("answer %+v", a)
	}
	for _, p := range []*Pending{first, second} {
		if out, ok := p.end(t); !ok || !strings.Contains(out, "hello one.shop.example at 198.51.100.40") {
			t.Errorf("after the answer: %s", out)
		}
	}
	w.waitEvent(box.Name, "the connection", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "allow" && e.Layer == "asked" && e.Host == "one.shop.example" && e.Address == "198.51.100.40" &&
			strings.Contains(e.Reason, "allowed once by root")
	})
	for _, kind := range []struct{ verdict, text string }{{"", "an answer is waited for"}, {"allow", "allowed once by root; connections that waited: 2"}} {
		w.waitEvent(box.Name, "the question: "+kind.text, func(e Event) bool {
			return e.Type == "ask" && e.Verdict == kind.verdict && e.SessionID == "asks" && strings.Contains(e.Reason, kind.text)
		})
	}
	if out, code := w.try("ask", "answer", q.ID, "deny"); code != 1 || !strings.Contains(out, "answered already") || !strings.Contains(out, "allowed once by root") {
		t.Errorf("a second answer: exit %d, %s", code, out)
	}
	if out, code := w.try("ask", "answer", "q-NEVER", "deny"); code != 1 || !strings.Contains(out, "no such question") {
		t.Errorf("an answer to nothing: exit %d, %s", code, out)
	}

	// Once is once: the next connection is asked about anew, and by its placeholder.
	out, _ := box.sh("dig +short one.shop.example A; dig +short one.shop.example AAAA; getent ahostsv4 one.shop.example")
	addr, err := netip.ParseAddr(strings.Fields(out)[0])
	if err != nil || !netip.MustParsePrefix("240.0.0.0/4").Contains(addr) || !strings.Contains(out, addr.String()+" ") {
		t.Errorf("dig and getent: %q", out)
	}
	again := box.fetch("http://one.shop.example/")
	w.answer(w.question(box, "one.shop.example", 80, 1), "deny")
	if out, ok := again.end(t); ok {
		t.Errorf("denied once, and: %s", out)
	}
	w.waitEvent(box.Name, "what was denied", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Layer == "asked" && strings.Contains(e.Reason, "denied once by root")
	})
	// It is not asked again for a while.
	if out, ok := box.curl("http://one.shop.example/"); ok || len(w.questions(box)) > 0 {
		t.Errorf("asked again at once: %s %+v", out, w.questions(box))
	}
}

func TestAnswersBecomeRules(t *testing.T) {
	_, w, box := askLab(t)
	type fetch struct {
		url  string
		pass string // "allow", "deny", or "ask"
	}
	for _, c := range []struct {
		verdict, span, what string
		destination, ports  string
		then                []fetch
	}{
		{"allow", "session", "endpoint", "one.shop.example", "80", []fetch{{"one.shop.example:80", "allow"}, {"one.shop.example:8080", "ask"}, {"two.shop.example:80", "ask"}}},
		{"allow", "session", "host", "one.shop.example", "*", []fetch{{"one.shop.example:8080", "allow"}, {"two.shop.example:80", "ask"}}},
		{"allow", "session", "suffix", "**.shop.example", "80", []fetch{{"two.shop.example:80", "allow"}, {"two.shop.example:8080", "ask"}, {"three.example:80", "ask"}}},
		{"deny", "session", "endpoint", "one.shop.example", "80", []fetch{{"one.shop.example:80", "deny"}, {"one.shop.example:8080", "ask"}}},
		{"deny", "session", "host", "one.shop.example", "*", []fetch{{"one.shop.example:8080", "deny"}}},
		{"allow", "global", "endpoint", "one.shop.example", "80", []fetch{{"one.shop.example:80", "allow"}, {"one.shop.example:8080", "ask"}}},
		{"allow", "global", "host", "one.shop.example", "*", []fetch{{"one.shop.example:8080", "allow"}}},
		{"deny", "global", "suffix", "**.shop.example", "80", []fetch{{"two.shop.example:80", "deny"}, {"two.shop.example:8080", "ask"}}},
	} {
		name := strings.Join([]string{c.verdict, c.span, c.what}, " ")
		w.session("create", box.Name, "--id", "asks", "--ask")
		p := box.fetch("http://one.shop.example/")
		a := w.answer(w.question(box, "one.shop.example", 80, 1), c.verdict, "--for", c.span, "--what", c.what)
		if r := a.Rule; r == nil || r.Source != c.span || r.Destination != c.destination || r.Ports != c.ports || r.Action != c.verdict ||
			!strings.Contains(r.Notes, "answer to question") || r.Container != box.Name && c.span == "global" {
			t.Fatalf("%s: %+v", name, a.Rule)
		}
		if out, ok := p.end(t); ok != (c.verdict == "allow") {
			t.Errorf("%s: the held connection: %s", name, out)
		}
		for _, f := range c.then {
			host, port, _ := strings.Cut(f.url, ":")
			p := box.fetch("http://" + f.url + "/")
			if f.pass == "ask" {
				n := 80
				if port != "80" {
					n = 8080
				}
				w.answer(w.question(box, host, n, 1), "allow")
			}
			if out, ok := p.end(t); ok != (f.pass != "deny") {
				t.Errorf("%s: then %s: %s", name, f.url, out)
			}
		}
		if out := w.run("rule", "list", "--container", box.Name); !strings.Contains(out, c.destination) {
			t.Errorf("%s: not listed: %s", name, out)
		}
		if c.span == "global" {
			w.run("rule", "rm", a.Rule.ID)
		}
	}
	w.run("session", "end", "asks")
	if out := w.run("rule", "list", "--container", box.Name); strings.Contains(out, "shop.example") {
		t.Errorf("rules that were answers outlive their session: %s", out)
	}
}

// An address is asked about as one, and some answers make no sense.
func TestAddressesAreAskedAbout(t *testing.T) {
	o, w, box := askLab(t)
	o.addName("loop.example", "127.0.0.1")
	o.addName("meta.example", "169.254.169.254")
	p := box.fetch("http://198.51.100.40/")
	q := w.question(box, "198.51.100.40", 80, 1)
	if q.Host != "" || len(q.Choices) != 2 {
		t.Errorf("question %+v", q)
	}
	if out, code := w.try("ask", "answer", q.ID, "allow", "--for", "session", "--what", "suffix"); code != 1 || !strings.Contains(out, "is an address") {
		t.Errorf("the suffix of an address: exit %d, %s", code, out)
	}
	if out, code := w.try("ask", "answer", q.ID, "perhaps"); code != 2 {
		t.Errorf("perhaps: exit %d, %s", code, out)
	}
	if status, answer := w.api("POST", "/v1/questions/"+q.ID, `{"verdict":"allow","for":"ever"}`); status != 422 {
		t.Errorf("for ever: %d %s", status, answer)
	}
	w.answer(q, "allow", "--for", "session")
	if out, ok := p.end(t); !ok || !strings.Contains(out, "hello 198.51.100.40") {
		t.Errorf("an allowed address: %s", out)
	}

	// Half-closed clients are still there; those that ended are not.
	half := box.begin("sh", "-c", "printf 'GET / HTTP/1.0\\r\\nHost: three.example\\r\\n\\r\\n' | nc -N -w50 three.example 80")
	w.answer(w.question(box, "three.example", 80, 1), "allow")
	if out, _ := half.end(t); !strings.Contains(out, "hello three.example") {
		t.Errorf("a client that closed its sending side: %q", out)
	}
	box.begin("curl", "-sS", "--max-time", "3", "http://three.example:8080/")
	gone := w.question(box, "three.example", 8080, 1)
	eventually(t, "the question of a client that has gone is withdrawn", func() bool { return len(w.questions(box)) == 0 })
	if late := time.Until(gone.ExpiresAt); late < 15*time.Second {
		t.Errorf("withdrawn %s before its end only", late)
	}

	// Explicit denies and guarded addresses are never asked about.
	w.session("create", box.Name, "--id", "asks", "--ask", "--deny", "two.shop.example", "--deny", "198.51.100.41")
	for _, url := range []string{"http://two.shop.example/", "http://198.51.100.41/", "http://169.254.169.254/", "http://100.100.100.200/", "http://172.17.0.1:22/"} {
		start := time.Now()
		if out, ok := box.curl(url); ok || time.Since(start) > 4*time.Second {
			t.Errorf("%s: after %s: %s", url, time.Since(start), out)
		}
	}
	for _, name := range []string{"loop.example", "meta.example"} {
		p := box.fetch("http://" + name + "/")
		w.answer(w.question(box, name, 80, 1), "allow", "--for", "session")
		if out, ok := p.end(t); ok {
			t.Errorf("%s once allowed: %s", name, out)
		}
	}
	for _, e := range w.events(box.Name, "--type", "ask") {
		if e.Host == "two.shop.example" || slices.Contains([]string{"198.51.100.41", "169.254.169.254", "100.100.100.200", "172.17.0.1"}, e.Address) {
			t.Errorf("asked about: %+v", e)
		}
	}
}

func TestQuestionsEndWithTheirReason(t *testing.T) {
	o, w, box := askLab(t)
	// Nobody answers.
	start := time.Now()
	if out, ok := box.fetch("http://three.example/").end(t); ok || time.Since(start) < 25*time.Second || time.Since(start) > 45*time.Second {
		t.Errorf("without an answer: after %s: %s", time.Since(start), out)
	}
	w.waitEvent(box.Name, "the time that ran out", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Layer == "default" && strings.Contains(e.Reason, "nobody answered within 30s")
	})
	w.waitEvent(box.Name, "the question that nobody answered", func(e Event) bool {
		return e.Type == "ask" && e.Verdict == "deny" && e.Host == "three.example"
	})

	// The policy settles it.
	p := box.fetch("http://one.shop.example/")
	w.question(box, "one.shop.example", 80, 1)
	w.run("rule", "add", "allow", "one.shop.example:80", "--container", box.Name)
	if out, ok := p.end(t); !ok {
		t.Errorf("allowed by a rule meanwhile: %s", out)
	}
	p = box.fetch("http://two.shop.example/")
	w.question(box, "two.shop.example", 80, 1)
	w.run("rule", "add", "deny", "two.shop.example", "--container", box.Name)
	if out, ok := p.end(t); ok {
		t.Errorf("denied by a rule meanwhile: %s", out)
	}
	// It is not asked any more, or another session asks.
	p = box.fetch("http://two.shop.example:8080/")
	if out, ok := p.end(t); ok {
		t.Errorf("denied: %s", out)
	}
	p = box.fetch("http://three.example:8080/")
	w.question(box, "three.example", 8080, 1)
	w.session("create", box.Name, "--id", "asks", "--ask", "--ttl", "5m", "--label", "a=b")
	p.waits(t)
	w.session("create", box.Name, "--id", "asks", "--ttl", "5m")
	if out, ok := p.end(t); ok {
		t.Errorf("asking was turned off: %s", out)
	}
	w.session("create", box.Name, "--id", "asks", "--ask")
	p = box.fetch("http://three.example:8080/")
	w.question(box, "three.example", 8080, 1)
	w.run("session", "end", "asks")
	if out, ok := p.end(t); ok {
		t.Errorf("the session ended: %s", out)
	}
	if asked := o.asks(); slices.Contains(asked, "three.example.") || slices.Contains(asked, "two.shop.example.") {
		t.Errorf("asked upstream for what nobody allowed: %v", asked)
	}
	if out, code := w.try("session", "create", box.Name, "--ask", "--allow-all"); code != 1 || !strings.Contains(out, "ask and allow_all") {
		t.Errorf("ask and allow-all: exit %d, %s", code, out)
	}
	w.session("create", box.Name, "--id", "asks", "--ask")

	// A daemon that is killed in the middle, and asks again when it is back.
	p = box.fetch("http://three.example:8080/")
	w.question(box, "three.example", 8080, 1)
	w.kill()
	if out, ok := p.end(t); ok {
		t.Errorf("the daemon died: %s", out)
	}
	w.start()
	p = box.fetch("http://three.example:8080/")
	w.answer(w.question(box, "three.example", 8080, 1), "allow", "--for", "session")
	if out, ok := p.end(t); !ok {
		t.Errorf("after a restart: %s", out)
	}
	w.kill()
	w.start()
	if out, ok := box.curl("http://three.example:8080/"); !ok {
		t.Errorf("the answer for the session is lost after a restart: %s", out)
	}
}

func TestProgramsWaitForAnAnswer(t *testing.T) {
	o, w, box := askLab(t)
	authority := newAuthority(t)
	o.addName("tls.example", "198.51.100.50", "2001:db8:77::50")
	o.serveHTTP("198.51.100.50:443", greet("198.51.100.50"), authority.certificate("tls.example"))
	pem := authority.install(box)
	for name, args := range map[string][]string{
		"Python": {"python3", "-c", fmt.Sprintf("import requests; print(requests.get('https://tls.example/', timeout=50, verify=%q).text)", pem)},
		"Node": {"env", "NODE_EXTRA_CA_CERTS=" + pem, "node", "-e",
			"fetch('https://tls.example/').then(r => r.text()).then(console.log, e => { console.error(e); process.exit(1) })"},
	} {
		p := box.begin(args...)
		q := w.question(box, "tls.example", 443, 1)
		p.waits(t)
		w.answer(q, "allow")
		if out, ok := p.end(t); !ok || !strings.Contains(out, "hello tls.example at 198.51.100.50") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// What a person allows opens nothing that an inspected endpoint looks into.
func TestAnswersLeaveInspectedEndpointsInspected(t *testing.T) {
	o := newOutside(t)
	o.addName("one.shop.example", "198.51.100.40")
	api := o.record("198.51.100.40:80", nil, nil)
	o.serveHTTP("198.51.100.40:8080", greet("198.51.100.40"))
	w := startWeir(t, "")
	box := newBox(t)
	policy := func(binaries string) string {
		return writeFile(t, "policy.yaml", `
version: 1
network_policies:
  shop:
    endpoints:
      - {host: one.shop.example, port: 80, protocol: rest, access: read-only}
`+binaries)
	}
	w.run("attach", box.Name, "--ask", "--session", "asks", "--policy", policy(""))
	// check sends a GET, which the endpoint allows, and a DELETE.
	check := func(when string, command ...string) {
		t.Helper()
		for _, method := range []string{"GET", "DELETE"} {
			out, _ := box.exec(append(command, method, "http://one.shop.example/items/1")...)
			seen, _ := api.take()
			switch {
			case method == "GET" && (len(seen) != 1 || !strings.Contains(out, `"ok":true`)):
				t.Errorf("%s, %s: %s; the server saw %+v", when, method, out, seen)
			case method == "DELETE" && (len(seen) > 0 || !strings.Contains(out, "403")):
				t.Errorf("%s, %s: %s; the server saw %+v", when, method, out, seen)
			}
		}
		if open := w.questions(box); len(open) > 0 {
			t.Errorf("%s: asked about %+v", when, open)
		}
	}
	curl := []string{"curl", "-sS", "--max-time", "5", "-w", "%{http_code}", "-X"}
	check("before any answer", curl...)
	for _, args := range [][]string{{"allow"}, {"allow", "--for", "session"}, {"allow", "--for", "session", "--what", "host"}} {
		w.session("create", box.Name, "--id", "asks", "--ask", "--policy", policy(""))
		p := box.fetch("http://one.shop.example:8080/")
		w.answer(w.question(box, "one.shop.example", 8080, 1), args...)
		if out, ok := p.end(t); !ok {
			t.Errorf("%v: %s", args, out)
		}
		check(strings.Join(args, " "), curl...)
	}

	// The endpoint is one program's, and a person allows the same to another.
	w.session("create", box.Name, "--id", "asks", "--ask", "--policy", policy("    binaries: [\"/usr/bin/python3*\"]\n"))
	p := box.fetch("http://one.shop.example/")
	w.answer(w.question(box, "one.shop.example", 80, 1), "allow", "--for", "session")
	if out, ok := p.end(t); !ok {
		t.Errorf("allowed to curl: %s", out)
	}
	api.take()
	check("allowed to another program", "python3", "-c", "import requests, sys; r = requests.request(*sys.argv[1:], timeout=5); print(r.status_code, r.text)")
	w.waitEvent(box.Name, "a refused request", func(e Event) bool {
		return e.Type == "http" && e.Verdict == "deny" && e.Method == "DELETE" && e.Host == "one.shop.example" && strings.Contains(e.Binary, "python3")
	})
}

func TestFloodOfQuestionsStaysBounded(t *testing.T) {
	o, w, box := askLab(t)
	other := newBox(t)
	w.run("attach", other.Name, "--ask", "--ttl", "10m")
	// Two thousand names, and a connection to each; as many at once as a program
	// can have under way with little effort.
	flood := box.begin("python3", "-c", `
import socket, concurrent.futures
def one(i):
    try:
        s = socket.create_connection(("n%d.flood%d.example" % (i, i % 50), 80), timeout=8)
        s.sendall(b"GET / HTTP/1.1\r\nHost: n%d.flood%d.example\r\n\r\n" % (i, i % 50))
        return len(s.recv(100))
    except OSError:
        return 0
with concurrent.futures.ThreadPoolExecutor(200) as pool:
    print("bytes", sum(pool.map(one, range(2000))))
`)
	eventually(t, "the container has all questions that it may have", func() bool { return len(w.questions(box)) == 32 })
	p := other.fetch("http://three.example/")
	w.answer(w.question(other, "three.example", 80, 1), "allow")
	if out, ok := p.end(t); !ok {
		t.Errorf("another container meanwhile: %s", out)
	}
	if n := len(w.questions(box)); n > 32 {
		t.Errorf("%d questions of one container", n)
	}
	if out, _ := flood.end(t); !strings.Contains(out, "bytes 0") {
		t.Errorf("the flood: %s", out)
	}
	w.waitEvent(box.Name, "a connection that nobody is asked about", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && strings.Contains(e.Reason, "32 questions of this container are open")
	})
	for _, asked := range o.asks() {
		if strings.Contains(asked, "flood") {
			t.Fatalf("%s was asked upstream", asked)
		}
	}
}
