package e2e

import (
	"strings"
	"testing"
)

// What a policy's binaries say, for an inspected endpoint and an uninspected one.
func TestBinariesOfAPolicyAreTheProgramsThatConnect(t *testing.T) {
	o := newOutside(t)
	o.addName("tools.example", "198.51.100.50")
	outside := newAuthority(t)
	secure := o.record("198.51.100.50:443", serverConfig(outside, "tools.example"), nil)
	plain := o.record("198.51.100.50:8080", nil, nil)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	policy := func(binary string) string {
		return `
version: 1
network_policies:
  tools:
    endpoints:
      - {host: tools.example, port: 443, protocol: rest, access: read-only}
      - {host: tools.example, port: 8080}
    binaries:
      - path: ` + binary + "\n"
	}
	box := w.trustedBox(policy("/usr/bin/curl"))
	if out, ok := box.sh("mkdir -p /opt/agent && cp /bin/dash /opt/agent/agent && cp /usr/bin/curl /tmp/curl && " +
		"printf '#!/opt/agent/agent\\n\"$@\"\\n' >/opt/agent/run && chmod +x /opt/agent/run"); !ok {
		t.Fatal(out)
	}
	const python = `import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)`
	urls := []string{"https://tools.example/", "http://tools.example:8080/"}
	check := func(what string, want bool, args ...string) {
		t.Helper()
		for i, url := range urls {
			server := []*Recorder{secure, plain}[i]
			out, ok := box.exec(append(args, url)...)
			seen, _ := server.take()
			if ok != want || (len(seen) > 0) != want {
				t.Errorf("%s, %s: passed %v, want %v; the server saw %d: %s", what, url, ok, want, len(seen), out)
			}
		}
	}
	curl := []string{"curl", "-sSf", "--max-time", "5"}
	check("curl", true, curl...)
	check("a copy of curl elsewhere", false, "/tmp/curl", "-sSf", "--max-time", "5")
	check("curl, called by a shell", true, "sh", "-c", `curl -sSf --max-time 5 "$0"; exit $?`)
	check("python", false, "python3", "-c", python)
	check("curl, called by python", true, "python3", "-c", `import subprocess, sys; sys.exit(subprocess.call(["curl", "-sSf", sys.argv[1]]))`)
	e := w.waitEvent(box.Name, "python denied", func(e Event) bool { return e.Verdict == "deny" && strings.Contains(e.Binary, "python3") })
	if e.Host == "" && e.Address != "198.51.100.50" {
		t.Errorf("event %+v", e)
	}
	w.waitEvent(box.Name, "curl allowed", func(e Event) bool { return e.Type == "http" && e.Verdict == "allow" && e.Binary == "/usr/bin/curl" })

	// An ancestor that is listed speaks for what it starts.
	w.setPolicy(box, policy("/opt/agent/**"))
	check("curl by itself", false, curl...)
	check("curl, from a script of the agent", true, append([]string{"/opt/agent/run"}, curl...)...)
	check("python, from a script of the agent", true, "/opt/agent/run", "python3", "-c", python)
	// What outlives the agent is nobody's child.
	if out, ok := box.exec("/opt/agent/agent", "-c",
		`sh -c 'while kill -0 "$1" 2>/dev/null; do sleep 0.05; done; curl -sSf --max-time 5 "$2"; echo $? >/tmp/done' x $$ "$0" >/dev/null 2>&1 & exit 0`, urls[0]); !ok {
		t.Fatal(out)
	}
	var code string
	eventually(t, "curl without its agent has ended", func() bool {
		out, ok := box.sh("cat /tmp/done")
		code = strings.TrimSpace(out)
		return ok && code != ""
	})
	if seen, _ := secure.take(); code == "0" || len(seen) > 0 {
		t.Errorf("curl without its agent passed: exit %s, the server saw %+v", code, seen)
	}

	// A glob over programs, as policies for agents have them.
	w.setPolicy(box, policy("/usr/bin/python3*"))
	check("python by a glob", true, "python3", "-c", python)
	check("curl, which the glob does not cover", false, curl...)
}
