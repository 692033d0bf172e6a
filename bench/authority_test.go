package bench

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certify makes what TLS needs, each certificate with its key: the server's, the
// authority outside that signs it, and the peers' authority, RSA like those that
// they make themselves. The daemon has its own.
func (l *lab) certify(b *testing.B) {
	b.Helper()
	elliptic := func() crypto.Signer {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		return key
	}
	sign := func(file string, cert, parent *x509.Certificate, key, signer crypto.Signer) {
		cert.SerialNumber, cert.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: file}
		cert.NotBefore, cert.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), signer)
		if err != nil {
			b.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			b.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		if err := os.WriteFile(filepath.Join(l.dir, file), text, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	authority := func(file string, key crypto.Signer) *x509.Certificate {
		cert := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
		sign(file, cert, cert, key, key)
		return cert
	}
	peers, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	authority("authority.pem", peers)
	key := elliptic()
	outside := authority("outside.pem", key)
	sign("server.pem", &x509.Certificate{DNSNames: []string{serverName}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, outside, elliptic(), key)
}
