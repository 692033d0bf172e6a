package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// revoke signs a list that revokes certificates and returns its file.
func (a *Authority) revoke(revoked ...*x509.Certificate) string {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, cert := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return writeFile(a.t, "revoked.crl", string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
}

// intermediate is an authority that a signs.
func (a *Authority) intermediate(name string) *Authority {
	a.t.Helper()
	c := a.certify(func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.DNSNames = true, true, x509.KeyUsageCertSign, nil
	}, name)
	return &Authority{t: a.t, key: c.PrivateKey.(*ecdsa.PrivateKey), cert: leafOf(a.t, c)}
}

// chained is a certificate with that of the intermediate which signs it.
func (a *Authority) chained(names ...string) tls.Certificate {
	a.t.Helper()
	c := a.certificate(names...)
	c.Certificate = append(c.Certificate, a.cert.Raw)
	return c
}

func leafOf(t testing.TB, c tls.Certificate) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Row 70: a server that does not prove who it is gets nothing, and the client
// learns why.
func TestServersThatAreNotWhoTheySayGetNoRequest(t *testing.T) {
	o := newOutside(t)
	outside, stranger := newAuthority(t), newAuthority(t)
	revoked := outside.certificate("revoked.example")
	self := newAuthority(t)
	kept, withdrawn := outside.intermediate("intermediate"), outside.intermediate("withdrawn intermediate")
	servers := []struct {
		name, reason string
		cert         tls.Certificate
		recorder     *Recorder
	}{
		{name: "good.example", cert: outside.certificate("good.example")},
		{name: "expired.example", reason: "expired", cert: outside.certify(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-10*time.Hour), time.Now().Add(-time.Hour)
		}, "expired.example")},
		{name: "early.example", reason: "not yet valid", cert: outside.certify(func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(5 * time.Hour)
		}, "early.example")},
		{name: "wrong.example", reason: "other.example", cert: outside.certificate("other.example")},
		{name: "client.example", reason: "usage", cert: outside.certify(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, "client.example")},
		{name: "stranger.example", reason: "unknown authority", cert: stranger.certificate("stranger.example")},
		{name: "self.example", reason: "certificate", cert: tls.Certificate{Certificate: [][]byte{self.cert.Raw}, PrivateKey: self.key}},
		{name: "revoked.example", reason: "revoked", cert: revoked},
		{name: "chained.example", cert: kept.chained("chained.example")},
		{name: "withdrawn.example", reason: "revoked", cert: withdrawn.chained("withdrawn.example")},
	}
	policy := "version: 1\nnetwork_policies:\n  all:\n    endpoints:\n"
	for i := range servers {
		s := &servers[i]
		address := fmt.Sprintf("198.51.100.%d", 60+i)
		o.addName(s.name, address)
		s.recorder = o.record(address+":443", tlsOf(s.cert), nil)
		policy += "      - {host: " + s.name + ", port: 443, path: /, protocol: rest, access: full}\n"
		policy += "      - {host: " + s.name + ", port: 443, path: /graphql, protocol: graphql, access: full}\n"
	}
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n  crls: ["+outside.revoke(leafOf(t, revoked), withdrawn.cert)+"]\n")
	box := w.trustedBox(policy)
	box.addClient()
	for _, s := range servers {
		for _, version := range []string{"--http1.1", "--http2"} {
			out, ok := box.curl(version, "-H", "Authorization: Bearer "+token, "-d", "secret="+token, "-w", "\n%{http_code}", "https://"+s.name+"/")
			text, code, _ := strings.Cut(out, "\n")
			requests, raw := s.recorder.take()
			if s.reason == "" {
				if !ok || len(requests) != 1 {
					t.Errorf("%s %s: %s", version, s.name, out)
				}
				continue
			}
			if !strings.Contains(code, "502") || len(requests) > 0 || raw != "" {
				t.Errorf("%s %s: %s; the server saw %+v and got %q", version, s.name, out, requests, raw)
				continue
			}
			said := refusal(t, text)
			if said.Error != "upstream_failed" || !strings.Contains(said.Reason, s.reason) {
				t.Errorf("%s: the client was told %+v", s.name, said)
			}
			e := w.waitEvent(box.Name, s.name, func(e Event) bool { return e.ID == said.Event })
			if e.Verdict != "deny" || e.Host != s.name || e.Method != "POST" || !strings.Contains(e.Reason, "certificate is not accepted") {
				t.Errorf("event %+v", e)
			}
		}
		if s.reason == "" {
			continue
		}
		r := box.client(`{"query":"{ me }"}`, "request", "-H", "Content-Type: application/json", "https://"+s.name+"/graphql")
		if r.Status != 502 || refusal(t, r.Body).Code != "UPSTREAM_FAILED" {
			t.Errorf("%s: %+v", s.name, r)
		}
		if requests, raw := s.recorder.take(); len(requests) > 0 || raw != "" {
			t.Errorf("%s: the server saw %+v and got %q", s.name, requests, raw)
		}
	}
	w.holdsNone(box.Name, token)
}

// What is not inspected passes end to end: the client sees the server's own
// certificate and can show its own.
func TestUninspectedTLSIsRelayedEndToEnd(t *testing.T) {
	o := newOutside(t)
	o.addName("mutual.example", "198.51.100.80")
	o.addName("pinned.example", "198.51.100.81")
	o.addName("looked.example", "198.51.100.82")
	outside := newAuthority(t)
	clients := x509.NewCertPool()
	clients.AddCert(outside.cert)
	config := serverConfig(outside, "mutual.example")
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, clients
	mutual := o.record("198.51.100.80:443", config, nil)
	pinned := outside.certificate("pinned.example", "looked.example")
	o.record("198.51.100.81:443", tlsOf(pinned), nil)
	looked := o.record("198.51.100.82:443", tlsOf(pinned), nil)
	key := pinned.PrivateKey.(crypto.Signer).Public()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(spki)
	pin := "sha256//" + base64.StdEncoding.EncodeToString(hash[:])

	// The daemon does not even know this authority.
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--session", box.Name, "--policy", writeFile(t, "policy.yaml", `
version: 1
rules:
  - {allow: pinned.example, ports: "443"}
network_policies:
  banks:
    endpoints:
      - {host: mutual.example, port: 443, tls: skip}
      - {host: looked.example, port: 443, protocol: rest, access: full}
`))
	root := outside.install(box)
	cert, certKey := pair(t, outside.certificate("client of mutual"))
	run(t, "docker", "cp", cert, box.Name+":/client.pem")
	run(t, "docker", "cp", certKey, box.Name+":/client.key")
	for _, version := range []string{"--http1.1", "--http2"} {
		if out, ok := box.curl(version, "--cacert", root, "--cert", "/client.pem", "--key", "/client.key", "https://mutual.example/"); !ok || !strings.Contains(out, `"ok":true`) {
			t.Errorf("a client certificate, %s: %s", version, out)
		}
		if out, ok := box.curl(version, "--cacert", root, "--pinnedpubkey", pin, "https://pinned.example/"); !ok || !strings.Contains(out, `"ok":true`) {
			t.Errorf("a pinned key, %s: %s", version, out)
		}
	}
	if got, _ := mutual.take(); len(got) != 2 {
		t.Errorf("the server saw %+v", got)
	}
	if out, ok := box.curl("--cacert", root, "https://mutual.example/"); ok {
		t.Errorf("without a client certificate: %s", out)
	}
	w.waitEvent(box.Name, "a relayed connection", func(e Event) bool {
		return e.Type == "connect" && e.Verdict == "allow" && e.Host == "mutual.example" && e.BytesIn > 0
	})
	// Inspected, the pin does not match and the client refuses: nothing is sent.
	if out, ok := box.curl("--cacert", root, "--pinnedpubkey", pin, "https://looked.example/"); ok {
		t.Errorf("a pinned key through interception: %s", out)
	}
	if requests, _ := looked.take(); len(requests) > 0 {
		t.Errorf("the server saw %+v", requests)
	}
}
