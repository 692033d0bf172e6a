package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Authority signs the certificates of a test's servers.
type Authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	PEM  string
}

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "outside authority"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certificate is one for these names and addresses.
func (a *Authority) certificate(names ...string) tls.Certificate {
	a.t.Helper()
	return a.certify(func(*x509.Certificate) {}, names...)
}

// certify is certificate with a change to what is signed.
func (a *Authority) certify(change func(*x509.Certificate), names ...string) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// file is the authority's certificate as a PEM file.
func (a *Authority) file() string {
	a.t.Helper()
	return writeFile(a.t, "authority.pem", a.PEM)
}

// writeFile writes a file that lives as long as the test.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// install puts the authority's certificate into a box, for clients that are
// told to trust it, and returns where.
func (a *Authority) install(b *Box) string {
	a.t.Helper()
	const path = "/outside.pem"
	if out, ok := b.exec("sh", "-c", "cat >"+path+" <<'END'\n"+a.PEM+"END"); !ok {
		a.t.Fatalf("put the certificate into the box: %s", out)
	}
	return path
}

// serveHTTP serves handler on address; with certificates over TLS, HTTP/2
// included.
func (o *Outside) serveHTTP(address string, handler http.Handler, certs ...tls.Certificate) {
	o.t.Helper()
	l := o.listen(address)
	server := &http.Server{Handler: handler}
	o.t.Cleanup(func() { server.Close() })
	if len(certs) == 0 {
		go server.Serve(l)
		return
	}
	server.TLSConfig = &tls.Config{Certificates: certs}
	go server.ServeTLS(l, "", "")
}

// greet is a handler that says which name and address were reached.
func greet(address string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s at %s by %s\n", r.Host, address, r.Proto)
	})
}

// gitServer makes a repository with one commit and returns git's own smart
// HTTP server for it, under /repo.git.
func gitServer(t testing.TB) http.Handler {
	t.Helper()
	root := t.TempDir()
	work := filepath.Join(root, "work")
	run(t, "git", "init", "-q", work)
	run(t, "git", "-C", work, "-c", "user.name=test", "-c", "user.email=test@example.com",
		"commit", "-q", "--allow-empty", "-m", "first commit of the outside")
	run(t, "git", "clone", "-q", "--bare", work, filepath.Join(root, "repo.git"))
	return &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(run(t, "git", "--exec-path")), "git-http-backend"),
		// The repository belongs to the user who runs the tests.
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root},
	}
}

// mailServer speaks first, as SMTP servers do, and answers every command.
func mailServer(c net.Conn) {
	fmt.Fprintf(c, "220 mail.example ready\r\n")
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if strings.EqualFold(lines.Text(), "quit") {
			fmt.Fprintf(c, "221 bye\r\n")
			return
		}
		fmt.Fprintf(c, "250 heard %s\r\n", lines.Text())
	}
}
