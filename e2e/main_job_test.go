package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// hello serves HTTP that says which address and name were reached.
func hello(o *Outside, address string) {
	l := o.listen(address)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s at %s\n", r.Host, address)
	})}
	go server.Serve(l)
	o.t.Cleanup(func() { server.Close() })
}

// echo sends back whatever comes.
func echo(o *Outside, address string) {
	o.serve(address, func(c net.Conn) { io.Copy(c, c) })
}

func TestDenyByDefaultThenSessionOpensExactlyWhatItSays(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10", "2001:db8:77::10")
	o.addName("other.example", "198.51.100.10")
	o.addName("evil.example", "198.51.100.66")
	hello(o, "198.51.100.10:80")
	hello(o, "198.51.100.10:8080")
	hello(o, "[2001:db8:77::10]:80")
	hello(o, "198.51.100.66:80")
	seen := o.watch("198.51.100.66")
	w := startWeir(t, "")
	box := newBox(t, "--network", newNetwork(t, "--ipv6", "--subnet", "fd00:77:1::/64"))

	if out, ok := box.curl("http://198.51.100.10/"); !ok {
		t.Fatalf("before the attach the server is not reachable: %s", out)
	}
	w.run("attach", box.Name)

	// Denied by default: names, addresses, both families.
	for _, url := range []string{"http://shop.example/", "http://198.51.100.10/", "http://[2001:db8:77::10]/", "http://evil.example/"} {
		if out, ok := box.curl(url); ok {
			t.Errorf("%s was reached with no rule: %s", url, out)
		}
	}
	if asked := o.asks(); len(asked) > 0 {
		t.Errorf("names that no rule allows were asked for upstream: %v", asked)
	}
	w.waitEvent(box.Name, "a denied connection by address", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Address == "198.51.100.10" && e.Layer == "default"
	})

	w.run("session", "create", box.Name, "--id", "one", "--allow", "shop.example:80")
	out, ok := box.curl("http://shop.example/")
	if !ok || !strings.Contains(out, "hello shop.example") {
		t.Fatalf("shop.example: %v %s", ok, out)
	}
	if out, ok := box.curl("-6", "http://shop.example/"); !ok || !strings.Contains(out, "2001:db8:77::10") {
		t.Errorf("shop.example over IPv6: %s", out)
	}
	for _, args := range [][]string{
		{"http://shop.example:8080/"},
		{"http://other.example/"},
		{"http://198.51.100.10/"},
		{"-H", "Host: other.example", "http://shop.example/"},
	} {
		if out, ok := box.curl(args...); ok {
			t.Errorf("%v was reached: %s", args, out)
		}
	}

	// A newer session without rules closes it again; ending that one re-opens.
	w.run("session", "create", box.Name, "--id", "two")
	if out, ok := box.curl("http://shop.example/"); ok {
		t.Errorf("reached under the newer session: %s", out)
	}
	w.run("session", "end", "two")
	if out, ok := box.curl("http://shop.example/"); !ok {
		t.Errorf("not reached after the newer session ended: %s", out)
	}

	// Learning opens everything and records what enforcement would have said.
	w.run("session", "create", box.Name, "--id", "three", "--allow-all")
	if out, ok := box.curl("http://evil.example/"); !ok {
		t.Errorf("learning mode denied: %s", out)
	}
	w.waitEvent(box.Name, "what enforcement would have said", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "allow" && e.Layer == "allow_all" && e.Host == "evil.example" && e.Would != nil && e.Would.Verdict == "deny"
	})
	seen()
	w.run("session", "end", "three")

	// Global deny beats session allow.
	w.run("rule", "add", "deny", "shop.example")
	if out, ok := box.curl("http://shop.example/"); ok {
		t.Errorf("a global deny did not beat the session's allow: %s", out)
	}

	w.run("detach", box.Name)
	if out, ok := box.curl("http://198.51.100.10/"); !ok {
		t.Errorf("after the detach: %s", out)
	}
	if packets := seen(); len(packets) > 0 {
		t.Errorf("packets reached evil.example: %v", packets)
	}
}
