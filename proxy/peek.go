package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"time"

	"weir/rules"
)

// echProblem is long because its reader has to do something about it.
const echProblem = "the ClientHello has encrypted_client_hello (ECH), which may hide another name; " +
	"switch it off in the client (Chromium: policy EncryptedClientHelloEnabled=false; Firefox: network.dns.echconfig.enabled and " +
	"security.tls.ech.grease_probability) or allow the address"

// errPeekFull: no place under Limits.Peeking.
var errPeekFull = errors.New("too many unfinished first messages")

// look reads the client's first message into p, forwarding nothing, and says
// what it is. It waits until the deadline for the first byte (zero: as long as
// it takes) and from then on at most Limits.Hello. ClaimNone with a nil error:
// not a byte came in time, and look may be called again; with io.EOF: nothing
// will come.
func (s *Server) look(p *pump, deadline time.Time, dst netip.AddrPort) (rules.Claim, error) {
	p.src.SetReadDeadline(deadline)
	defer p.src.SetReadDeadline(time.Time{})
	err := p.read()
	if errors.Is(err, os.ErrDeadlineExceeded) || err == io.EOF {
		return rules.Claim{}, ignoreDeadline(err)
	}
	if err != nil {
		return rules.Claim{}, err
	}
	claim, need := classify(p.buf, dst, s.limits.PeekBytes, false)
	if need == 0 {
		return claim, nil
	}
	if !s.gauges.peeking.enter() {
		return rules.Claim{}, errPeekFull
	}
	defer s.gauges.peeking.leave()
	p.src.SetReadDeadline(time.Now().Add(s.limits.Hello))
	for need > 0 {
		before := len(p.buf)
		err := p.read()
		end := err != nil
		if end && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
			return claim, err
		}
		if end || len(p.buf) >= need && worthReading(p.buf, before, s.limits.PeekBytes) {
			claim, need = classify(p.buf, dst, s.limits.PeekBytes, end)
		}
	}
	return claim, nil
}

// worthReading says whether the bytes after the first n of b can complete
// what the first n did not. Without it a long head that comes byte by byte
// would be read from its start for each of them.
func worthReading(b []byte, n, limit int) bool {
	return b[0] == typeHandshake || b[0] == 4 || b[0] == 5 || n <= maxMethod || len(b) >= limit || bytes.IndexByte(b[n:], '\n') >= 0
}

// firstLine is b up to its first line end.
func firstLine(b []byte) []byte {
	line, _, _ := bytes.Cut(bytes.TrimLeft(b, "\r\n\t "), []byte("\n"))
	return line
}

func ignoreDeadline(err error) error {
	if err == io.EOF {
		return io.EOF
	}
	return nil
}

// classify says what a client's first bytes are. need > 0: that many bytes
// must be there before it can say more; the claim is then ClaimNone. final
// says that no more will come.
func classify(b []byte, dst netip.AddrPort, limit int, final bool) (claim rules.Claim, need int) {
	if len(b) == 0 {
		if final {
			return rules.Claim{}, 0
		}
		return rules.Claim{}, 1
	}
	full := len(b) >= limit
	if b[0] == typeHandshake {
		h, need, err := parseClientHello(b, limit)
		switch {
		case err == errMore && full:
			return broken(errTooLong), 0
		case err == errMore && final:
			return broken(errors.New("the ClientHello was not finished in time")), 0
		case err == errMore:
			return rules.Claim{}, need
		case err != nil:
			return broken(err), 0
		case h.ech:
			return broken(errors.New(echProblem)), 0
		}
		return named(rules.ClaimTLS, h.name, dst.Addr()), 0
	}
	is, need := socks(b)
	if is || need > 0 && (final || full) {
		return broken(errors.New(socksProblem)), 0
	}
	if need > 0 {
		return rules.Claim{}, need
	}
	host, err := parseHead(b, dst.Port())
	switch {
	case err == errNotHTTP:
		return rules.Claim{Kind: rules.ClaimOther}, 0
	case err == errMore && !full && !final:
		return rules.Claim{}, len(b) + 1
	case err == errMore && !requestLike(firstLine(b)):
		return rules.Claim{Kind: rules.ClaimOther}, 0 // a word and nothing after it
	case err == errMore && full:
		return broken(errTooLong), 0
	case err == errMore:
		return broken(errors.New("the HTTP request head was not finished in time")), 0
	case err != nil:
		return broken(err), 0
	}
	return named(rules.ClaimHTTP, host, dst.Addr()), 0
}

func broken(err error) rules.Claim {
	return rules.Claim{Kind: rules.ClaimBroken, Problem: err.Error()}
}

// named makes the claim of a name. The very address that the connection goes
// to is no name, another address is no proper one.
func named(kind rules.ClaimKind, name string, dst netip.Addr) rules.Claim {
	if name == "" {
		return rules.Claim{Kind: kind}
	}
	if a, err := netip.ParseAddr(name); err == nil {
		if a.Unmap() == dst {
			return rules.Claim{Kind: kind}
		}
		return broken(errors.New("the client names an address, " + a.String() + ", that is not the one it connected to"))
	}
	canonical, err := rules.CanonicalName(name)
	if err != nil {
		return broken(err)
	}
	return rules.Claim{Kind: kind, Name: canonical}
}
