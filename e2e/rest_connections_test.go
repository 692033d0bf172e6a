package e2e

import (
	"strings"
	"testing"
)

// One event for each request and one for its connection; the authority outlives
// the daemon, and what is not HTTP has no way through an inspected endpoint.
func TestInspectedConnectionsFromOpenToRestart(t *testing.T) {
	w, box, secure, clear := restWorld(t)
	const url = "https://rest.example/v1/items/"

	out, ok := box.curl("--http1.1", url+"1", url+"2", "-X", "DELETE", url+"3", "-w", "%{num_connects} ")
	if !ok || strings.Count(out, `"ok":true`) != 0 && strings.Count(out, "policy_denied") != 3 {
		t.Errorf("three denied requests: %s", out)
	}
	out, ok = box.curl("--http1.1", url+"1", url+"2", url+"secret/3", url+"4")
	if !ok || strings.Count(out, `"ok":true`) != 3 || strings.Count(out, "policy_denied") != 1 {
		t.Errorf("four requests on one connection: %s", out)
	}
	if got := secure.opened(); got > 2 {
		t.Errorf("the server saw %d connections", got)
	}
	secure.take()
	w.refusals(box.Name, "http", 3, func(e Event) bool { return e.Verdict == "allow" && e.Path != "" && e.BytesIn > 0 })
	w.refusals(box.Name, "http", 4, func(e Event) bool { return e.Verdict == "deny" })
	w.refusals(box.Name, "connect", 2, func(e Event) bool { return e.Host == "rest.example" && e.Port == 443 && e.Verdict == "allow" })

	before := secure.opened()
	for name, bytes := range map[string]string{
		"SSH":      "SSH-2.0-OpenSSH_9.2\r\n",
		"binary":   "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
		"SMTP":     "EHLO x\r\nMAIL FROM:<a@b>\r\n",
		"redis":    "*1\r\n$4\r\nPING\r\n",
		"TLS 1.49": "\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff",
	} {
		if r := box.client(bytes, "raw", "-plain", "rest.example:443"); r.Got != "" && !strings.HasPrefix(r.Got, "HTTP/1.1 40") || r.Open {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if now := secure.opened(); now != before {
		t.Errorf("the server saw %d connections of what is not HTTP", now-before)
	}

	// Nothing but HTTP inside TLS either.
	if r := box.client("SSH-2.0-OpenSSH_9.2\r\n\r\n", "raw", "rest.example:443"); !strings.HasPrefix(r.Got, "HTTP/1.1 400") {
		t.Errorf("SSH inside TLS: %+v", r)
	}
	if _, raw := secure.take(); strings.Contains(raw, "SSH-2.0") {
		t.Error("the server got what is not HTTP")
	}

	// Killed and started again: the same authority, which the container trusts.
	shown := w.run("ca", "show")
	w.kill()
	if out, ok := box.curl(url + "1"); ok {
		t.Errorf("without a daemon: %s", out)
	}
	w.start()
	if again := w.run("ca", "show"); again != shown {
		t.Error("another authority after a restart")
	}
	eventually(t, "requests pass after a restart", func() bool {
		out, ok := box.curl(url + "5")
		return ok && strings.Contains(out, `"ok":true`)
	})
	if out, ok := box.curl("-f", "-X", "DELETE", url+"5"); ok {
		t.Errorf("denied before, after a restart: %s", out)
	}
	if seen, _ := clear.take(); len(seen) > 0 {
		t.Errorf("the server in the clear saw %+v", seen)
	}
}
