package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
