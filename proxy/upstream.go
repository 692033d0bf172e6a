package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// LoadRoots returns the system's root certificates and those of PEM files.
// The error names a file that holds none.
func LoadRoots(files ...string) (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's root certificates: %w", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if !roots.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: no certificate in PEM form in it", name)
		}
	}
	return roots, nil
}

// LoadCRLs reads certificate revocation lists (RFC 5280, 5), in PEM or DER.
func LoadCRLs(files ...string) ([]*x509.RevocationList, error) {
	var lists []*x509.RevocationList
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		found := len(lists)
		for rest := text; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			l, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			lists = append(lists, l)
		}
		if len(lists) == found {
			l, err := x509.ParseRevocationList(text)
			if err != nil {
				return nil, fmt.Errorf("%s: neither PEM nor a revocation list: %w", name, err)
			}
			lists = append(lists, l)
		}
	}
	return lists, nil
}

// An untrusted is the error of a server that did not prove who it is.
type untrusted struct{ err error }

func (u untrusted) Error() string {
	return "the server's certificate is not accepted: " + u.err.Error()
}
func (u untrusted) Unwrap() error { return u.err }

// An upstream is a connection to the server.
type upstream struct {
	net.Conn              // TLS or plain
	tcp      *net.TCPConn // below it
	br       *bufio.Reader
	bw       *bufio.Writer
	protocol string // what ALPN settled on; "" is HTTP/1.1
	used     bool   // has carried a request
}

// dial connects to the server of c and proves that it is who c was judged to
// be for. offer are the protocols for ALPN.
func (c *intercepted) dial(ctx context.Context, offer []string) (*upstream, error) {
	tcp, err := c.in.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("could not connect: %w", err)
	}
	u := &upstream{Conn: tcp, tcp: tcp}
	if c.tls {
		t := tls.Client(tcp, &tls.Config{
			ServerName:         c.host,
			RootCAs:            c.relay.Roots,
			NextProtos:         offer,
			ClientSessionCache: c.relay.sessions,
			Time:               c.relay.now,
			VerifyConnection:   func(s tls.ConnectionState) error { return c.relay.revoked(s.VerifiedChains) },
		})
		ctx, cancel := context.WithTimeout(ctx, c.relay.limits.Handshake)
		defer cancel()
		began := time.Now()
		err := t.HandshakeContext(ctx)
		c.relay.shaken(ServerSide, time.Since(began), err)
		if err != nil {
			abort(tcp)
			return nil, c.handshakeError(err)
		}
		u.Conn, u.protocol = t, t.ConnectionState().NegotiatedProtocol
	}
	u.br, u.bw = bufio.NewReader(u.Conn), bufio.NewWriter(u.Conn)
	if !c.hold(u) {
		abort(tcp)
		return nil, errors.New("the connection was cut")
	}
	return u, nil
}

func (c *intercepted) handshakeError(err error) error {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, revoked := errors.AsType[errRevoked](err)
	switch {
	case certificate || revoked:
		return untrusted{err}
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("the TLS handshake with the server took too long")
	}
	return fmt.Errorf("the TLS handshake with the server failed: %w", err)
}

// An errRevoked is a certificate that a configured list has revoked.
type errRevoked string

func (e errRevoked) Error() string { return string(e) }

// revoked returns an error unless one of the chains is free of certificates
// that a list of their issuer revokes. A list that is past its next update
// still counts: what it revoked stays revoked.
func (r *Relay) revoked(chains [][]*x509.Certificate) error {
	if len(r.CRLs) == 0 {
		return nil
	}
	var found error
	for _, chain := range chains {
		err := r.revokedIn(chain)
		if err == nil {
			return nil
		}
		found = err
	}
	return found
}

func (r *Relay) revokedIn(chain []*x509.Certificate) error {
	for i, cert := range chain[:max(len(chain)-1, 0)] {
		for _, l := range r.byIssuer[string(cert.RawIssuer)] {
			for _, e := range l.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(cert.SerialNumber) == 0 && l.CheckSignatureFrom(chain[i+1]) == nil {
					return errRevoked(fmt.Sprintf("certificate %x of %q is revoked since %s", cert.SerialNumber, cert.Subject, e.RevocationTime.Format(time.DateOnly)))
				}
			}
		}
	}
	return nil
}

// close ends u; clean says that nothing is left under way on it.
func (u *upstream) close(clean bool) {
	if clean {
		u.Conn.Close()
	} else {
		abort(u.tcp)
	}
}

// usable says whether the server has kept a connection open since its last
// response. What it may have sent meanwhile is a farewell or a TLS message of
// no consequence; anything else is an answer that nobody asked for.
func (u *upstream) usable() bool {
	if u.br.Buffered() > 0 {
		return false
	}
	raw, err := u.tcp.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	var b [1]byte
	if cerr := raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	}); cerr != nil {
		return false
	}
	switch {
	case err == unix.EAGAIN:
		return true
	case err != nil || n == 0 || u.Conn == net.Conn(u.tcp):
		return false
	}
	u.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer u.SetReadDeadline(time.Time{})
	_, err = u.br.Peek(1)
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
