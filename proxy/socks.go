package proxy

import "bytes"

// socksProblem is why a proxy's client is refused although the proxy's host is
// allowed: whom it would reach through it cannot be judged.
const socksProblem = "a SOCKS request asks the server to be a proxy, and what would go through it cannot be judged; a rule for the address would open it"

// socks says whether b begins as the client of a SOCKS proxy does: version 5
// (RFC 1928 section 3), with the next message behind it or not, or version 4
// or 4a. need > 0: it does so far, and that many bytes must be there to know.
func socks(b []byte) (is bool, need int) {
	if b[0] != 4 && b[0] != 5 {
		return false, 0
	}
	if len(b) < 2 {
		return false, 2
	}
	if b[0] == 4 {
		// CONNECT or BIND, port, address, and a user name that ends with NUL.
		const fixed = 8
		switch {
		case b[1] != 1 && b[1] != 2:
			return false, 0
		case len(b) <= fixed || bytes.IndexByte(b[fixed:], 0) < 0:
			return false, max(len(b), fixed) + 1
		}
		return true, 0
	}
	methods := int(b[1])
	if methods == 0 {
		return false, 0
	}
	for i, m := range b[2:] {
		switch {
		case i == methods: // a request, or a password (RFC 1929)
			return m == 5 || m == 1, 0
		case m > 9 && m < 0x80 || m == 0xff: // not assigned, not private
			return false, 0
		}
	}
	if len(b) < 2+methods {
		return false, 2 + methods
	}
	return true, 0
}
