package proxy

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/audit"
)

// certificate makes a leaf with the changes wanted.
func (l *relayLab) certificate(change func(*x509.Certificate), issuer *CA) tls.Certificate {
	l.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: labHost}, DNSNames: []string{labHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	change(c)
	parent, signer := c, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		l.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestRelayRefusesBadServerCertificates(t *testing.T) {
	other := testCA(t, "other")
	cases := []struct {
		name   string
		want   string
		change func(*x509.Certificate)
		issuer func(*relayLab) *CA
	}{
		{"expired", "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, nil},
		{"not yet valid", "expired or is not yet valid", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }, nil},
		{"another host", "valid for", func(c *x509.Certificate) { c.DNSNames = []string{"other.example.com"} }, nil},
		{"self-signed", "unknown authority", func(*x509.Certificate) {}, func(*relayLab) *CA { return nil }},
		{"unknown issuer", "unknown authority", func(*x509.Certificate) {}, func(*relayLab) *CA { return other }},
		{"for clients", "incompatible key usage", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, nil},
		{"Weir's own", "unknown authority", func(*x509.Certificate) {}, func(l *relayLab) *CA { return l.ca }},
		{"revoked", "revoked", func(c *x509.Certificate) { c.SerialNumber = big.NewInt(666) }, nil},
	}
	for _, c := range cases {
		for _, h2 := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				l := newRelayLab(t, 443, restPolicy, func(l *relayLab) { l.relay.CRLs = []*x509.RevocationList{l.crl(666)} })
				issuer := l.server
				if c.issuer != nil {
					issuer = c.issuer(l)
				}
				var server canary
				cert := l.certificate(c.change, issuer)
				l.serveWith(&server, &tls.Config{Certificates: []tls.Certificate{cert}}, protocolsOf(h2)...)
				code, text, err := readRes(l.client(h2).Get(l.url("/ok/a")))
				if err != nil || code != 502 || !strings.Contains(text, c.want) || !strings.Contains(text, "upstream_failed") {
					t.Errorf("%d %v %s", code, err, text)
				}
				if e := l.event(audit.HTTP); e.Verdict != "deny" || !strings.Contains(e.Reason, c.want) {
					t.Errorf("event: %+v", e)
				}
				if server.hits != 0 {
					t.Error("the server got a request")
				}
			})
		}
	}
}

// crl revokes a serial number of the servers' CA.
func (l *relayLab) crl(serial int64) *x509.RevocationList {
	l.t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-48 * time.Hour), NextUpdate: time.Now().Add(-24 * time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}},
	}, l.server.cert, l.server.key)
	if err != nil {
		l.t.Fatal(err)
	}
	name := filepath.Join(l.t.TempDir(), "crl.der")
	if err := os.WriteFile(name, der, 0o600); err != nil {
		l.t.Fatal(err)
	}
	lists, err := LoadCRLs(name)
	if err != nil {
		l.t.Fatal(err)
	}
	return lists[0]
}

func TestRelayNotRevoked(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy, func(l *relayLab) { l.relay.CRLs = []*x509.RevocationList{l.crl(666)} })
	var server canary
	l.serve(&server)
	if code, text, err := readRes(l.client(false).Get(l.url("/ok/a"))); err != nil || code != 200 {
		t.Errorf("%d %v %s", code, err, text)
	}
}

func TestRelayMirrorsALPN(t *testing.T) {
	for _, c := range []struct {
		server, client []string
		want           string
	}{
		{[]string{"h2", "http/1.1"}, []string{"h2", "http/1.1"}, "h2"},
		{[]string{"http/1.1"}, []string{"h2", "http/1.1"}, "http/1.1"},
		{[]string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1"},
		{[]string{"h2", "http/1.1"}, nil, ""},
		{[]string{"h2", "http/1.1"}, []string{"imap"}, ""},
		{nil, []string{"h2", "http/1.1"}, ""},
	} {
		l := newRelayLab(t, 443, restPolicy)
		cert, err := l.server.Leaf(labHost)
		if err != nil {
			t.Fatal(err)
		}
		ln := tls.NewListener(listen(t), &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: c.server})
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go conn.(*tls.Conn).Handshake()
			}
		}()
		l.upstream(ln.Addr().String())
		conn := l.dial(c.client...).(*tls.Conn)
		s := conn.ConnectionState()
		if s.NegotiatedProtocol != c.want {
			t.Errorf("server %v, client %v: %q", c.server, c.client, s.NegotiatedProtocol)
		}
		leaf := s.PeerCertificates[0]
		if err := leaf.VerifyHostname(labHost); err != nil || leaf.CheckSignatureFrom(l.ca.Certificate()) != nil {
			t.Errorf("leaf %v: %v", leaf.DNSNames, err)
		}
	}
}

func TestRelayUpstreamUnreachable(t *testing.T) {
	for _, form := range forms {
		l := newRelayLab(t, form.port, restPolicy)
		ln := listen(t)
		l.upstream(ln.Addr().String())
		ln.Close()
		client := l.client(form.h2)
		if code, text, err := readRes(client.Get(l.url("/ok/a"))); err != nil || code != 502 {
			t.Errorf("%s: %d %v %s", form.name, code, err, text)
		}
		if e := l.event(audit.HTTP); e.Verdict != "allow" || !strings.Contains(e.Reason, "could not connect") {
			t.Errorf("%s: %+v", form.name, e)
		}
		if code, _, err := readRes(client.Get(l.url("/no"))); err != nil || code != 403 {
			t.Errorf("%s: denied: %d %v", form.name, code, err)
		}
	}
}

func TestRelayClientDoesNotTrust(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := tls.Client(c, &tls.Config{ServerName: labHost, RootCAs: x509.NewCertPool()}).Handshake(); err == nil {
		t.Fatal("trusted")
	}
	if e := l.event(audit.Connect); e.Verdict != "deny" || !strings.Contains(e.Reason, "weir ca install") {
		t.Errorf("event: %+v", e)
	}
}

func TestRelayNotHTTPInTLS(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	for _, text := range []string{"SSH-2.0-x\r\n", "\x00\x01\x02\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"} {
		if res, _, closed := l.raw(text); res.StatusCode != 400 || !closed {
			t.Errorf("%q: %d", text, res.StatusCode)
		}
	}
}

func TestRelaySlowHead(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy, func(l *relayLab) { l.relay.Limits.Head = time.Millisecond })
	var server canary
	l.serve(&server)
	c := l.dial()
	io.WriteString(c, "GET /ok/ HTTP/1.1\r\nHost: ")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 400 {
		t.Errorf("%+v %v", res, err)
	}
	if e := l.event(audit.HTTP); !strings.Contains(e.Reason, "not finished in time") {
		t.Errorf("event: %+v", e)
	}
}

func TestCA(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	ca, err := OpenCA(dir, "host a1b2", clock)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenCA(dir, "another", clock)
	if err != nil || !bytes.Equal(again.PEM(), ca.PEM()) {
		t.Fatalf("not the same again: %v", err)
	}
	info, _ := os.Stat(filepath.Join(dir, "ca.key"))
	if info.Mode().Perm() != 0o600 || !strings.Contains(ca.Certificate().Subject.CommonName, "host a1b2") || ca.Certificate().NotAfter != now.AddDate(10, 0, 0) {
		t.Errorf("mode %v, %v until %v", info.Mode(), ca.Certificate().Subject, ca.Certificate().NotAfter)
	}
	p256 := func(what string, c *x509.Certificate) {
		t.Helper()
		if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: a key of kind %v", what, c.PublicKeyAlgorithm)
		}
	}
	p256("the authority", ca.Certificate())
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	for _, host := range []string{"a.example", "203.0.113.7", "2001:db8::1", strings.Repeat("a.", 100) + "example"} {
		leaf, err := ca.Leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
		if same, _ := ca.Leaf(host); same != leaf {
			t.Errorf("%s: not cached", host)
		}
		p256(host, leaf.Leaf)
	}
	first, _ := ca.Leaf("a.example")
	now = now.Add(6*24*time.Hour + time.Hour)
	if renewed, _ := ca.Leaf("a.example"); renewed == first || !renewed.Leaf.NotAfter.After(now.Add(leafRenew)) {
		t.Error("not renewed before it expires")
	}
	var wg sync.WaitGroup
	got := make([]*tls.Certificate, 16)
	for i := range got {
		wg.Go(func() { got[i], _ = ca.Leaf("b.example") })
	}
	wg.Wait()
	for _, c := range got {
		if c != got[0] {
			t.Error("minted more than once")
		}
	}
	for i := range 3 * leavesKept {
		ca.keep(string(rune('a'+i%26))+strings.Repeat("x", i/26), first)
	}
	if len(ca.leaves) != leavesKept || ca.recent.Len() != leavesKept {
		t.Errorf("%d leaves kept", len(ca.leaves))
	}
}

func TestOpenCARefuses(t *testing.T) {
	fresh := func() string {
		dir := t.TempDir()
		if _, err := OpenCA(dir, "x", nil); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"readable key": {func(d string) error { return os.Chmod(filepath.Join(d, "ca.key"), 0o640) }, "chmod 600"},
		"no key":       {func(d string) error { return os.Remove(filepath.Join(d, "ca.key")) }, "restore the key"},
		"no cert":      {func(d string) error { return os.Remove(filepath.Join(d, "ca.pem")) }, "restore the certificate"},
		"another key": {func(d string) error {
			return os.Rename(filepath.Join(fresh(), "ca.key"), filepath.Join(d, "ca.key"))
		}, "private key does not match"},
		"empty key": {func(d string) error { return os.WriteFile(filepath.Join(d, "ca.key"), nil, 0o600) }, "ca.key"},
	} {
		dir := fresh()
		if err := c.spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCA(dir, "x", nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := fresh()
	if _, err := OpenCA(dir, "x", func() time.Time { return time.Now().AddDate(11, 0, 0) }); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
}

func TestLoadRoots(t *testing.T) {
	dir := t.TempDir()
	ca, err := OpenCA(dir, "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := LoadRoots(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := ca.Leaf("a.example")
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Error(err)
	}
	if _, err := LoadRoots(filepath.Join(dir, "ca.key")); err == nil {
		t.Error("a key was taken for a root")
	}
	if _, err := LoadCRLs(filepath.Join(dir, "ca.pem")); err == nil {
		t.Error("a certificate was taken for a revocation list")
	}
}
