package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// javaHome is this machine's Java, which the test lends to its container.
func javaHome(t *testing.T) string {
	t.Helper()
	compiler, err := exec.LookPath("javac")
	if err != nil {
		t.Fatalf("%v: scripts/test installs it", err)
	}
	if compiler, err = filepath.EvalSymlinks(compiler); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(compiler))
}

// lend are docker's arguments to show a directory of the host, if there is
// one, at the same place in the container.
func lend(dirs ...string) (args []string) {
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			args = append(args, "-v", dir+":"+dir+":ro")
		}
	}
	return args
}

// A JVM has a store of authorities of its own: with the one that the install
// made it trusts Weir, still trusts what the image trusts, and neither before
// nor after.
func TestJavaTrustsInterceptionOnceInstalledAndNotBefore(t *testing.T) {
	o := newOutside(t)
	o.addName("work.example", "198.51.100.90")
	o.addName("plain.example", "198.51.100.91")
	outside := newAuthority(t)
	server := o.record("198.51.100.90:443", serverConfig(outside, "work.example"), nil)
	o.record("198.51.100.91:443", serverConfig(outside, "plain.example"), nil)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")

	home, classes := javaHome(t), t.TempDir()
	run(t, filepath.Join(home, "bin", "javac"), "-d", classes, "testdata/java/Fetch.java")
	// Debian keeps the settings and the list of a Java outside its directory.
	settings, err := filepath.Glob("/etc/java-*-openjdk")
	if err != nil {
		t.Fatal(err)
	}
	box := newBox(t, lend(append(settings, home, classes, "/etc/ssl/certs/java")...)...)
	// The image's own authorities, with one that signs for plain.example.
	if out, ok := box.pipe(outside.PEM, "sh", "-c", "cat >>/etc/ssl/certs/ca-certificates.crt"); !ok {
		t.Fatal(out)
	}
	w.run("attach", box.Name, "--session", box.Name, "--policy", writeFile(t, "policy.yaml", `
version: 1
network_policies:
  work:
    endpoints:
      - {host: work.example, port: 443, protocol: rest, access: read-only}
      - {host: plain.example, port: 443}
`))
	fetch := func() string {
		t.Helper()
		out, ok := box.exec(filepath.Join(home, "bin", "java"), "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classes, "Fetch", "https://work.example/a", "https://plain.example/b")
		if !ok {
			t.Fatalf("java: %s", out)
		}
		return out
	}
	refused := func(when string) {
		t.Helper()
		if out := fetch(); strings.Count(out, "failed: javax.net.ssl.SSLHandshakeException") != 4 {
			t.Errorf("%s: %s", when, out)
		}
		if requests, _ := server.take(); len(requests) > 0 {
			t.Errorf("%s the server saw %+v", when, requests)
		}
	}
	refused("before the install")
	w.waitEvent(box.Name, "Java does not trust Weir", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Host == "work.example" && strings.Contains(e.Reason, "the client refused Weir's certificate")
	})

	before := box.files()
	box.trust(w)
	out := fetch()
	for _, want := range []string{
		"HttpURLConnection https://work.example/a HTTP/1.1 200\n", "HttpClient https://work.example/a HTTP_2 200\n",
		"HttpURLConnection https://plain.example/b HTTP/1.1 200\n", "HttpClient https://plain.example/b HTTP_2 200\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if requests, _ := server.take(); len(requests) != 2 || requests[0].Target != "/a" {
		t.Errorf("the server saw %+v", requests)
	}

	w.run("ca", "uninstall", box.Name)
	if after := box.files(); after != before {
		t.Errorf("not as before:\n%s", difference(before, after))
	}
	box.env = nil
	refused("after the uninstall")
}
