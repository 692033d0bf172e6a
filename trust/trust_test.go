package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weir/container"
)

func newCA(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"  Weir   Firewall "}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// chrooted starts a process whose root is dir, and opens that root as Install
// gets it.
func chrooted(t *testing.T, dir string) *container.Root {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("needs busybox-static: run scripts/test")
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-n", "chroot", dir, "/busybox", "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(5 * time.Millisecond) {
		if exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)); exe == filepath.Join(dir, "busybox") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the process did not start within 10 s")
		}
	}
	c, err := container.Connect().Find(t.Context(), fmt.Sprintf("pid:%d", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	root, err := container.OpenRoot(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// tree is every file below dir, with mode and content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "busybox" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + target
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += "\n" + string(data)
		}
		files[strings.TrimPrefix(path, dir)] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func pemOf(ca *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
}

// images are the layouts that Install knows, path → content; "-> X" is a
// symlink, "/" at the end a directory.
func images(t *testing.T) map[string]map[string]string {
	other := pemOf(newCA(t, "Other"))
	return map[string]map[string]string{
		"debian": {
			"etc/ssl/certs/ca-certificates.crt": other, "usr/local/share/ca-certificates/": "",
			"etc/ssl/certs/other.pem": other,
		},
		"alpine": {
			"etc/ssl/certs/ca-certificates.crt": other, "etc/ssl/cert.pem": "-> certs/ca-certificates.crt",
			"usr/local/share/ca-certificates/": "",
		},
		"rhel": {
			"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": other, "etc/pki/ca-trust/source/anchors/": "",
			"etc/pki/tls/certs/ca-bundle.crt": "-> /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
			"etc/ssl/certs/":                  "",
		},
		"no newline at the end": {"etc/ssl/certs/ca-certificates.crt": strings.TrimSuffix(other, "\n")},
		"an empty list":         {"etc/ssl/certs/ca-certificates.crt": ""},
		"no list at all":        {"etc/": ""},
	}
}

func TestInstallIsUndoneExactly(t *testing.T) {
	for name, image := range images(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range image {
				path := filepath.Join(dir, file)
				if strings.HasSuffix(file, "/") {
					path += "/"
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				var err error
				if target, ok := strings.CutPrefix(content, "-> "); ok {
					err = os.Symlink(target, path)
				} else if !strings.HasSuffix(file, "/") {
					err = os.WriteFile(path, []byte(content), 0o640)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			root, ca := chrooted(t, dir), newCA(t, "Weir test")
			before := tree(t, dir)
			result, err := Install(root, ca)
			if err != nil {
				t.Fatal(err)
			}
			installed := tree(t, dir)
			for file, content := range image {
				if !strings.HasSuffix(file, "/") && !strings.HasPrefix(content, "->") && !strings.HasSuffix(file, "other.pem") {
					if got := installed["/"+file]; strings.Count(got, pemOf(ca)) != 1 || !strings.Contains(got, content) {
						t.Errorf("%s: want the old list and the authority once, got\n%s", file, got)
					}
				}
			}
			if !strings.Contains(installed[Authority], pemOf(ca)) || len(result.Environment) == 0 {
				t.Errorf("no %s, or no environment: %v", Authority, result)
			}
			again, err := Install(root, ca)
			if err != nil || len(again.Changed) != 0 {
				t.Errorf("a second install changed %v, %v", again.Changed, err)
			}
			for range 2 { // the second finds nothing to do
				if err := Uninstall(root, ca); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
				t.Errorf("not as it was:\n%s", diff)
			}
		})
	}
}

func TestInstallUndoesAHalfDoneOne(t *testing.T) {
	dir := t.TempDir()
	// A directory where a file has to be: the list is changed first, then this fails.
	for _, d := range []string{"etc/ssl/certs", "usr/local/share/ca-certificates/weir.crt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := filepath.Join(dir, "etc/ssl/certs/ca-certificates.crt")
	if err := os.WriteFile(list, []byte("list\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := chrooted(t, dir)
	before := tree(t, dir)
	if _, err := Install(root, newCA(t, "Weir test")); err == nil || !strings.Contains(err.Error(), "weir.crt") {
		t.Fatalf("want an error that names the file, got %v", err)
	}
	if diff := cmp.Diff(before, tree(t, dir)); diff != "" {
		t.Errorf("left half done:\n%s", diff)
	}
}

func TestSubjectHashAgreesWithOpenSSL(t *testing.T) {
	for _, name := range []string{"Weir", "Weir  interception\tauthority", "ÄÖ Weir"} {
		ca := newCA(t, name)
		cmd := exec.Command("openssl", "x509", "-noout", "-subject_hash")
		cmd.Stdin = bytes.NewReader([]byte(pemOf(ca)))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got, err := subjectHash(ca)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.TrimSpace(string(out)); fmt.Sprintf("%08x", got) != want {
			t.Errorf("%q: got %08x, openssl says %s", name, got, want)
		}
	}
}
