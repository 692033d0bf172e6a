package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// layouts are images with certificates where a distribution has them, each
// with a bundle, other names of it, and the folder of its own tool.
var layouts = map[string]string{
	"Alpine": `mkdir -p /etc/ssl/certs /usr/local/share/ca-certificates
		mv /bundle /etc/ssl/certs/ca-certificates.crt
		ln -s certs/ca-certificates.crt /etc/ssl/cert.pem`,
	"RHEL": `mkdir -p /etc/pki/ca-trust/extracted/pem /etc/pki/ca-trust/source/anchors /etc/pki/tls/certs /etc/ssl
		mv /bundle /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem
		chmod 444 /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem
		ln -s /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem /etc/pki/tls/certs/ca-bundle.crt
		ln -s ../pki/tls/certs /etc/ssl/certs`,
	"SUSE": `mkdir -p /etc/ssl /etc/pki/trust/anchors /var/lib/ca-certificates
		mv /bundle /var/lib/ca-certificates/ca-bundle.pem
		ln -s /var/lib/ca-certificates/ca-bundle.pem /etc/ssl/ca-bundle.pem`,
	"two lists that differ": `mkdir -p /etc/ssl/certs /etc/ssl
		cp /bundle /etc/ssl/cert.pem; printf '\n# its own\n' >>/etc/ssl/cert.pem
		mv /bundle /etc/ssl/certs/ca-certificates.crt
		chown 12:34 /etc/ssl/cert.pem; chmod 640 /etc/ssl/cert.pem`,
	"no line end": `mkdir -p /etc/ssl/certs; printf '# nothing but this' >/etc/ssl/certs/ca-certificates.crt; rm /bundle`,
	"no list":     `rm /bundle`,
}

// busyboxImage is an image that holds busybox and a list of authorities.
func busyboxImage(t testing.TB, bundle string) string {
	t.Helper()
	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, mode int64, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	add("bin/busybox", 0o755, program)
	add("bundle", 0o644, []byte(bundle))
	for _, applet := range strings.Fields("sh mkdir mv cp ln chmod chown find sha256sum stat sleep printf rm cat sort xargs readlink grep") {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	name := unique(t, "layout")
	cmd := exec.Command("docker", "import", "-", name)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	t.Cleanup(func() { try("docker", "rmi", name) })
	return name
}

// files lists what is in a container: kind, mode, owner, size and content.
func (b *Box) files() string {
	b.t.Helper()
	out, ok := b.sh(`cd /; for d in etc usr/local var/lib/ca-certificates opt; do [ -e $d ] && find $d -xdev; done | sort | while read -r f; do
		echo "$f $(stat -c '%F %a %u:%g' "$f") $(if [ -L "$f" ]; then readlink "$f"; elif [ -f "$f" ]; then sha256sum <"$f"; fi)"; done`)
	if !ok || !strings.Contains(out, "directory") {
		b.t.Fatalf("list the files: %s", out)
	}
	return out
}

// fingerprint is a line in the middle of the authority's certificate.
func (w *Weir) fingerprint() string {
	lines := strings.Split(strings.TrimSpace(w.run("ca", "show")), "\n")
	return lines[len(lines)/2]
}

func TestTrustIsInstalledInEveryLayoutAndTakenOutWithoutATrace(t *testing.T) {
	w := startWeir(t, "")
	bundle, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Fatal(err)
	}
	image := busyboxImage(t, string(bundle))
	boxes := map[string]*Box{"Debian": newBox(t)}
	for name, setup := range layouts {
		b := &Box{t: t, Name: unique(t, "box")}
		run(t, "docker", "run", "-d", "--name", b.Name, "--init", image, "sleep", "600")
		t.Cleanup(func() { try("docker", "rm", "-f", b.Name) })
		if out, ok := b.sh(setup); !ok {
			t.Fatalf("%s: %s", name, out)
		}
		boxes[name] = b
	}
	own := w.fingerprint()
	for name, b := range boxes {
		t.Run(name, func(t *testing.T) {
			before := b.files()
			printed := w.run("ca", "install", b.Name)
			if again := w.run("ca", "install", b.Name); strings.Contains(again, "# changed") {
				t.Errorf("installing again changed something: %s", again)
			}
			after := b.files()
			if before == after {
				t.Error("the install changed nothing")
			}
			// Every file that is printed is there and holds the authority, and
			// a whole bundle still holds the others.
			for _, line := range strings.Split(printed, "\n") {
				_, value, ok := strings.Cut(line, `="`)
				file, _, _ := strings.Cut(value, `"`)
				if !ok || strings.HasPrefix(file, "-D") {
					continue
				}
				out, ok := b.exec("grep", "-c", "-F", "-e", own, file)
				if !ok || strings.TrimSpace(out) != "1" {
					t.Errorf("%s: %s", line, out)
				}
			}
			for _, file := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt"} {
				if _, ok := b.sh("[ -e " + file + " ]"); !ok {
					continue
				}
				if out, ok := b.exec("grep", "-c", "-F", "-e", own, file); !ok || strings.TrimSpace(out) != "1" {
					t.Errorf("%s does not hold the authority once: %s", file, out)
				}
			}
			w.run("ca", "uninstall", b.Name)
			if restored := b.files(); restored != before {
				t.Errorf("not as before:\n%s", difference(before, restored))
			}
			w.run("ca", "uninstall", b.Name)
		})
	}
}

func difference(a, b string) string {
	var out strings.Builder
	in := map[string]bool{}
	for _, line := range strings.Split(a, "\n") {
		in[line] = true
	}
	for _, line := range strings.Split(b, "\n") {
		if !in[line] {
			fmt.Fprintln(&out, "+", line)
		}
		delete(in, line)
	}
	for line := range in {
		fmt.Fprintln(&out, "-", line)
	}
	return out.String()
}

func TestProgramsTrustInterceptionOnceInstalledAndNotBefore(t *testing.T) {
	o := newOutside(t)
	o.addName("work.example", "198.51.100.90")
	outside := newAuthority(t)
	server := o.record("198.51.100.90:443", serverConfig(outside, "work.example"), gitServer(t))
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := newBox(t)
	w.run("attach", box.Name, "--session", box.Name, "--policy", writeFile(t, "policy.yaml", `
version: 1
network_policies:
  work:
    endpoints:
      - host: work.example
        port: 443
        protocol: rest
        rules:
          - allow: {method: GET, path: "/**/info/refs", query: {service: git-upload-pack}}
          - allow: {method: POST, path: "/**/git-upload-pack"}
`))
	box.addClient()
	const url = "https://work.example/repo.git/info/refs?service=git-upload-pack"
	type program struct {
		name, want string
		args       []string
	}
	programs := []program{
		{"curl", "git-upload-pack", []string{"curl", "-sSf", "--max-time", "5", url, "-o", "-"}},
		{"git", "refs/heads/", []string{"git", "ls-remote", "https://work.example/repo.git"}},
		{"git clone", "first commit", []string{"sh", "-c", "rm -rf /tmp/c; git clone -q https://work.example/repo.git /tmp/c && git -C /tmp/c log"}},
		{"Go", `"status":200`, []string{clientFile, "request", "-X", "GET", url}},
		{"Python ssl", "200", []string{"python3", "-c", "import urllib.request; print(urllib.request.urlopen('" + url + "', timeout=5).status)"}},
		{"Python requests", "200", []string{"python3", "-c", "import requests; print(requests.get('" + url + "', timeout=5).status_code)"}},
		{"Node", "200", []string{"node", "-e", "fetch('" + url + "').then(r => console.log(r.status), e => { console.error(e.cause); process.exit(1) })"}},
		{"openssl", "Verify return code: 0", []string{"sh", "-c", "openssl s_client -connect work.example:443 -servername work.example -brief -verify_return_error </dev/null 2>&1 && echo Verify return code: 0"}},
	}
	refuse := func(when string) {
		t.Helper()
		for _, p := range programs {
			if out, ok := box.exec(p.args...); ok && strings.Contains(out, p.want) {
				t.Errorf("%s %s trusted the interception: %s", p.name, when, out)
			}
		}
		if requests, _ := server.take(); len(requests) > 0 {
			t.Errorf("%s: the server saw %+v", when, requests)
		}
	}
	refuse("before the install")
	w.waitEvent(box.Name, "a client that does not trust Weir", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "deny" && e.Host == "work.example" &&
			strings.Contains(e.Reason, "the client refused Weir's certificate") && strings.Contains(e.Reason, "weir ca install")
	})
	box.trust(w)
	for _, p := range programs {
		if out, ok := box.exec(p.args...); !ok || !strings.Contains(out, p.want) {
			t.Errorf("%s: %s", p.name, out)
		}
	}
	if out, ok := box.exec("git", "-C", "/tmp/c", "push", "origin", "HEAD:x"); ok || !strings.Contains(out, "403") {
		t.Errorf("git push: %s", out)
	}
	w.waitEvent(box.Name, "a denied push", func(e Event) bool {
		return e.Type == "http" && e.Verdict == "deny" && e.Path == "/repo.git/info/refs"
	})
	// The certificate is for this name only, and the CA that signs it may sign
	// no other authority.
	out, _ := box.sh("echo | openssl s_client -connect work.example:443 -servername work.example 2>/dev/null | openssl x509 -noout -ext subjectAltName,basicConstraints,extendedKeyUsage -issuer")
	if !strings.Contains(out, "DNS:work.example\n") || strings.Contains(out, "CA:TRUE") || !strings.Contains(out, "Weir interception CA") {
		t.Errorf("the certificate: %s", out)
	}
	box.holdsNoKeyOf(t, w)

	box.env = nil
	w.run("ca", "uninstall", box.Name)
	server.take()
	refuse("after the uninstall")
}

// holdsNoKeyOf fails the test when the container's file system holds the key
// of the authority (row 71), as a file or within one, in PEM or DER.
func (b *Box) holdsNoKeyOf(t *testing.T, w *Weir) {
	t.Helper()
	file := filepath.Join(w.dir, "data", "ca.key")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v", file, info.Mode())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s: no PEM", file)
	}
	encoded := base64.StdEncoding.EncodeToString(block.Bytes)
	// PKCS #8 of P-256: the private value is the 32 bytes from 36 on.
	needles := [][]byte{block.Bytes[36:68], []byte(encoded[52:84])}
	cmd := exec.Command("docker", "export", b.Name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	size, found := int64(0), false
	var tail []byte
	for buf := make([]byte, 1<<20); ; {
		n, err := io.ReadFull(out, buf)
		size += int64(n)
		window := append(tail, buf[:n]...)
		for _, needle := range needles {
			found = found || bytes.Contains(window, needle)
		}
		tail = append([]byte(nil), window[max(0, len(window)-64):]...)
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil || size < 50<<20 {
		t.Fatalf("docker export: %v after %d bytes", err, size)
	}
	if found {
		t.Error("the container's file system holds the authority's key")
	}
	if !bytes.Contains(text, needles[1][:8]) && !strings.Contains(strings.ReplaceAll(string(text), "\n", ""), string(needles[1])) {
		t.Error("the search does not look for what the key file holds")
	}
}
