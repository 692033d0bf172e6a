package proxy

import (
	"container/list"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	caCertFile = "ca.pem"
	caKeyFile  = "ca.key"

	caYears = 10
	// leafLife is short: a leaf is worth nothing to whoever finds it, and some
	// clients refuse long ones. It is renewed when less than leafRenew is left.
	leafLife  = 7 * 24 * time.Hour
	leafRenew = 24 * time.Hour
	// backdated covers containers whose clock is behind.
	backdated = time.Hour
	// leavesKept is how many leaves are cached, about 1 KB each; the one that
	// was used longest ago goes first.
	leavesKept = 1024
)

// A CA signs the certificates that Weir shows inside containers. Its key is in
// the data directory, readable by its owner only, and never anywhere else. It
// is safe for concurrent use, and one serves all containers.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
	// leafKey is of this process: what a certificate proves here is the name
	// that was judged, so one key does for all of them.
	leafKey *ecdsa.PrivateKey

	minting singleflight.Group
	mu      sync.Mutex
	leaves  map[string]*list.Element // of *leaf
	recent  *list.List               // most recently used first
}

type leaf struct {
	host string
	cert *tls.Certificate
}

// OpenCA reads ca.pem and ca.key from a directory, or creates both when
// neither exists: an ECDSA P-256 key with mode 0600 and a certificate for ten
// years, which says that it is of that installation. now is the clock; nil is
// time.Now.
//
// A key that others may read, one file without the other, a certificate of
// another key and one that has expired are errors.
func OpenCA(dir, installation string, now func() time.Time) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	certPath, keyPath := filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile)
	certText, certErr := os.ReadFile(certPath)
	keyText, keyErr := readPrivate(keyPath)
	switch {
	case errors.Is(certErr, os.ErrNotExist) && errors.Is(keyErr, os.ErrNotExist):
		if err := createCA(certPath, keyPath, installation, now()); err != nil {
			return nil, fmt.Errorf("create the interception CA in %s: %w", dir, err)
		}
		return OpenCA(dir, installation, now)
	case errors.Is(keyErr, os.ErrNotExist):
		return nil, fmt.Errorf("%s is there and %s is not: restore the key, or remove the certificate to get a new CA, which containers have to be told about again", certPath, keyPath)
	case errors.Is(certErr, os.ErrNotExist):
		return nil, fmt.Errorf("%s is there and %s is not: restore the certificate, or remove the key to get a new CA, which containers have to be told about again", keyPath, certPath)
	case keyErr != nil:
		return nil, keyErr
	case certErr != nil:
		return nil, certErr
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certPath, keyPath, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: not an ECDSA key", keyPath)
	case !pair.Leaf.IsCA:
		return nil, fmt.Errorf("%s: not the certificate of an authority", certPath)
	case !now().Before(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("%s: expired on %s; remove it and %s to get a new CA, which containers have to be told about again",
			certPath, pair.Leaf.NotAfter.Format(time.DateOnly), keyPath)
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &CA{cert: pair.Leaf, key: key, now: now, leafKey: leafKey, leaves: map[string]*list.Element{}, recent: list.New()}, nil
}

// readPrivate reads a file that nobody else may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o and may be read by others: chmod 600 it, and think of the key as known", path, info.Mode().Perm())
	}
	text := make([]byte, info.Size())
	n, err := f.ReadAt(text, 0)
	if n < len(text) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}

// createCA writes the key first: a certificate without its key is an error
// that says so, never one that is trusted and cannot sign.
func createCA(certPath, keyPath, installation string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := serialNumber()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Weir"}, CommonName: "Weir interception CA, " + installation},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.AddDate(caYears, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeNew(keyPath, "PRIVATE KEY", private, 0o600); err != nil {
		return err
	}
	return writeNew(certPath, "CERTIFICATE", cert, 0o644)
}

// writeNew writes a file whole or not at all, and over no other.
func writeNew(path, kind string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := pem.Encode(f, &pem.Block{Type: kind, Bytes: content}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// serialNumber: 127 random bits, positive (RFC 5280, 4.1.2.2).
func serialNumber() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// Certificate returns the authority's certificate.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// PEM returns the authority's certificate as containers take it.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// Leaf returns a certificate for a canonical name or an address, from the
// cache or signed now.
func (c *CA) Leaf(host string) (*tls.Certificate, error) {
	if cert := c.cached(host); cert != nil {
		return cert, nil
	}
	v, err, _ := c.minting.Do(host, func() (any, error) {
		if cert := c.cached(host); cert != nil {
			return cert, nil
		}
		cert, err := c.mint(host)
		if err == nil {
			c.keep(host, cert)
		}
		return cert, err
	})
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", host, err)
	}
	return v.(*tls.Certificate), nil
}

func (c *CA) cached(host string) *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.leaves[host]
	if e == nil {
		return nil
	}
	cert := e.Value.(*leaf).cert
	if c.now().Add(leafRenew).After(cert.Leaf.NotAfter) && cert.Leaf.NotAfter.Before(c.cert.NotAfter) {
		return nil
	}
	c.recent.MoveToFront(e)
	return cert
}

func (c *CA) keep(host string, cert *tls.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.leaves[host]; e != nil {
		e.Value.(*leaf).cert = cert
		c.recent.MoveToFront(e)
		return
	}
	c.leaves[host] = c.recent.PushFront(&leaf{host, cert})
	if c.recent.Len() > leavesKept {
		oldest := c.recent.Remove(c.recent.Back()).(*leaf)
		delete(c.leaves, oldest.host)
	}
}

func (c *CA) mint(host string) (*tls.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := c.now()
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-backdated),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(c.cert.NotAfter) {
		template.NotAfter = c.cert.NotAfter
	}
	if len(host) <= 64 { // the upper bound of a common name; clients read the SAN
		template.Subject.CommonName = host
	}
	if a, err := netip.ParseAddr(host); err == nil {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, c.leafKey.Public(), c.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.leafKey, Leaf: parsed}, nil
}
