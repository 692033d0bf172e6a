package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// Each client fails while no rule allows it, and works with exactly one.
func TestEachClientWorksWithOneRule(t *testing.T) {
	o := newOutside(t)
	o.addName("v4.example", "198.51.100.10")
	o.addName("v6.example", "2001:db8:77::10")
	o.addName("both.example", "198.51.100.10", "2001:db8:77::10")
	o.addName("mail.example", "198.51.100.25")
	ca := newAuthority(t)
	cert := ca.certificate("v4.example", "v6.example", "both.example", "198.51.100.10", "2001:db8:77::10")
	for _, address := range []string{"198.51.100.10", "[2001:db8:77::10]"} {
		o.serveHTTP(address+":80", greet(address))
		o.serveHTTP(address+":443", greet(address), cert)
	}
	git := gitServer(t)
	o.addName("git.example", "198.51.100.20")
	o.serveHTTP("198.51.100.20:80", git)
	o.serveHTTP("198.51.100.20:443", git, ca.certificate("git.example"))
	o.serve("198.51.100.25:25", mailServer)

	w := startWeir(t, "")
	box := newBox(t, "--network", newNetwork(t, "--ipv6", "--subnet", "fd00:77:2::/64"))
	pem := ca.install(box)
	w.run("attach", box.Name)

	python := func(url string) []string {
		return []string{"python3", "-c", fmt.Sprintf("import requests; print(requests.get(%q, timeout=10, verify=%q).text)", url, pem)}
	}
	node := func(url string) []string {
		return []string{"env", "NODE_EXTRA_CA_CERTS=" + pem, "node", "-e",
			fmt.Sprintf("fetch(%q).then(r => r.text()).then(console.log).catch(e => { console.error(e, e.cause); process.exit(1) })", url)}
	}
	curl := func(args ...string) []string {
		return append([]string{"curl", "-sS", "--max-time", "10", "--cacert", pem}, args...)
	}
	clone := func(url string) []string {
		return []string{"sh", "-c", "rm -rf /tmp/repo && GIT_SSL_CAINFO=" + pem + " GIT_TERMINAL_PROMPT=0 timeout 20 git clone " + url + " /tmp/repo && git -C /tmp/repo log --format=%s"}
	}
	for _, c := range []struct {
		name, rule string
		command    []string
		want       string
	}{
		{"curl, IPv4, HTTP", "v4.example:80", curl("http://v4.example/"), "hello v4.example at 198.51.100.10 by HTTP/1.1"},
		{"curl, IPv4, HTTPS", "v4.example:443", curl("https://v4.example/"), "at 198.51.100.10 by HTTP/2.0"},
		{"curl, IPv6, HTTP", "v6.example:80", curl("http://v6.example/"), "at [2001:db8:77::10] by HTTP/1.1"},
		{"curl, IPv6, HTTPS", "v6.example:443", curl("https://v6.example/"), "at [2001:db8:77::10] by HTTP/2.0"},
		{"curl -6 of both families", "both.example:443", curl("-6", "https://both.example/"), "at [2001:db8:77::10]"},
		{"curl, IPv4 address, HTTP", "198.51.100.10:80", curl("http://198.51.100.10/"), "at 198.51.100.10"},
		{"curl, IPv4 address, HTTPS", "198.51.100.10:443", curl("https://198.51.100.10/"), "at 198.51.100.10"},
		{"curl, IPv6 address, HTTPS", "[2001:db8:77::10]:443", curl("https://[2001:db8:77::10]/"), "at [2001:db8:77::10]"},
		{"curl, IPv4 prefix", "198.51.100.0/28:443", curl("https://198.51.100.10/"), "at 198.51.100.10"},
		{"curl -k", "*.example:443", curl("-k", "https://v4.example/"), "at 198.51.100.10"},
		{"getent", "both.example:443", []string{"getent", "ahosts", "both.example"}, "2001:db8:77::10"},
		{"dig", "v4.example:443", []string{"sh", "-c", "dig +short +tries=1 +timeout=5 v4.example | grep ."}, "198.51.100.10"},
		{"git clone, HTTP", "git.example:80", clone("http://git.example/repo.git"), "first commit of the outside"},
		{"git clone, HTTPS", "git.example:443", clone("https://git.example/repo.git"), "first commit of the outside"},
		{"Python requests, HTTP", "both.example:80", python("http://both.example/"), "hello both.example"},
		{"Python requests, HTTPS", "both.example:443", python("https://both.example/"), "hello both.example"},
		{"Node fetch, HTTP", "v4.example:80", node("http://v4.example/"), "hello v4.example"},
		{"Node fetch, HTTPS", "both.example:443", node("https://both.example/"), "hello both.example"},
		{"SMTP, where the server speaks first", "mail.example:25", []string{"python3", "-c",
			"import smtplib; s = smtplib.SMTP('mail.example', timeout=20); print(s.docmd('vrfy', 'me')); s.quit()"}, "heard vrfy me"},
		{"openssl s_client", "v4.example:443", []string{"sh", "-c",
			"openssl s_client -brief -verify_return_error -CAfile " + pem + " -connect v4.example:443 -servername v4.example </dev/null"}, "Verification: OK"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, ok := box.exec(c.command...); ok {
				t.Errorf("worked without a rule: %s", out)
			}
			w.run("session", "create", box.Name, "--id", "only", "--allow", c.rule)
			out, ok := box.exec(c.command...)
			if !ok || !strings.Contains(out, c.want) {
				t.Errorf("with the rule %s: want %q, got %v %s", c.rule, c.want, ok, out)
			}
			w.run("session", "end", "only")
		})
	}
	for _, e := range w.events(box.Name, "--type", "connect") {
		if e.Verdict == "allow" && (e.RuleID == "" || e.Layer != "session" || e.SessionID != "only") {
			t.Errorf("an allowed connection whose rule is not named: %+v", e)
		}
		if e.Verdict == "deny" && (e.RuleID != "" || e.Layer != "default") {
			t.Errorf("a connection denied by something else than the default: %+v", e)
		}
	}
}

// Several names live on one address; what the client says in the clear
// decides, and only together with what it has looked up.
func TestOnlyTheAllowedNameOfAnAddressOpens(t *testing.T) {
	o := newOutside(t)
	for _, name := range []string{"good.example", "also.example", "bad.example"} {
		o.addName(name, "198.51.100.10")
	}
	o.addName("elsewhere.example", "198.51.100.99")
	ca := newAuthority(t)
	cert := ca.certificate("good.example", "also.example", "bad.example")
	o.serveHTTP("198.51.100.10:80", greet("198.51.100.10"))
	o.serveHTTP("198.51.100.10:443", greet("198.51.100.10"), cert)
	o.serve("198.51.100.10:25", mailServer)
	w := startWeir(t, "")
	box := newBox(t)
	pem := ca.install(box)
	w.run("attach", box.Name, "--allow", "good.example:80,443,25", "--allow", "also.example:443", "--allow", "elsewhere.example")

	curl := func(args ...string) (string, bool) { return box.curl(append([]string{"--cacert", pem}, args...)...) }
	for _, args := range [][]string{
		{"http://good.example/"}, {"https://good.example/"}, {"https://also.example/"},
		{"https://GOOD.example./"}, {"--http1.1", "https://good.example/"}, {"--tlsv1.2", "--tls-max", "1.2", "https://good.example/"},
	} {
		if out, ok := curl(args...); !ok || !strings.Contains(out, "hello") {
			t.Errorf("%v: %s", args, out)
		}
	}
	for _, c := range []struct {
		what, reason string
		args         []string
	}{
		{"another name as SNI", "asked for bad.example in its TLS hello", []string{"--connect-to", "bad.example::good.example:", "https://bad.example/"}},
		{"another name as Host", "asked for bad.example in its HTTP request", []string{"-H", "Host: bad.example", "http://good.example/"}},
		{"a name without a rule for the port", "no rule of any layer allows also.example:80", []string{"http://also.example/"}},
		{"an allowed name of another address", "asked for elsewhere.example in its TLS hello", []string{"--connect-to", "elsewhere.example::good.example:", "https://elsewhere.example/"}},
		{"an allowed name on an address of the client's choice", "does not resolve to 198.51.100.98", []string{"--resolve", "good.example:443:198.51.100.98", "https://good.example/"}},
		{"no SNI", "TLS hello names no host", []string{"-k", "https://198.51.100.10/"}},
		{"the address as Host", "HTTP request names no host", []string{"http://198.51.100.10/"}},
		{"a name that the DNS refuses", "no rule of any layer allows bad.example", []string{"http://bad.example/"}},
		{"a Host that is no name", "malformed host", []string{"-H", "Host: good.example\tbad.example", "http://good.example/"}},
	} {
		if out, ok := curl(c.args...); ok {
			t.Errorf("%s: reached %s", c.what, out)
		}
		w.waitEvent(box.Name, c.what+": "+c.reason, func(e Event) bool {
			return e.Verdict == "deny" && e.Layer == "default" && strings.Contains(e.Reason, c.reason)
		})
	}
	// Where nothing names the one that is meant, all that are looked up must be
	// allowed: also.example is not, on port 25.
	smtp := []string{"python3", "-c", "import smtplib; print(smtplib.SMTP('good.example', timeout=20).noop())"}
	if out, ok := box.exec(smtp...); ok {
		t.Errorf("a connection that could be meant for a name without a rule for its port: %s", out)
	}
	w.run("session", "create", box.Name, "--allow", "good.example:25", "--allow", "also.example:25")
	if out, ok := box.exec(smtp...); !ok || !strings.Contains(out, "heard noop") {
		t.Errorf("with both names allowed: %s", out)
	}
}
