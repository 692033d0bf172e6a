package proxy

import (
	"encoding/binary"
	"errors"
)

// Sizes and numbers of RFC 8446 (TLS 1.3) and RFC 6066 (server_name).
const (
	recordHeader     = 5
	maxRecord        = 1 << 14 // of a plaintext record
	maxRecords       = 4096    // of one hello; a bound on the work of reading it again and again
	typeHandshake    = 22
	typeClientHello  = 1
	handshakeHeader  = 4
	extServerName    = 0
	extECH           = 0xfe0d // RFC 9849
	extESNI          = 0xffce // its draft predecessor
	nameTypeHostName = 0
)

// hello is what a ClientHello says that matters here.
type hello struct {
	name string // the server_name as sent, "" without the extension
	ech  bool   // carries encrypted_client_hello, real or GREASE
}

var (
	// errMore: the bytes so far are a proper beginning.
	errMore = errors.New("incomplete")

	errRecord = errors.New("malformed TLS record before the end of the ClientHello")
	errHello  = errors.New("malformed ClientHello")
	errSNI    = errors.New("malformed server_name in ClientHello")
)

// parseClientHello reads the ClientHello at the start of b, which may be
// spread over any number of records (RFC 8446, 5.1), if it needs no more than
// limit bytes. With errMore, need is a lower bound of how many bytes have to
// be there before another call can tell more.
func parseClientHello(b []byte, limit int) (h hello, need int, err error) {
	var msg []byte // the handshake message without record headers
	for at, records := 0, 0; ; records++ {
		if records == maxRecords {
			return hello{}, 0, errRecord
		}
		if err := recordStart(b[at:]); err != nil {
			return hello{}, 0, err
		}
		if len(b)-at < recordHeader {
			return hello{}, at + recordHeader, errMore
		}
		n := int(binary.BigEndian.Uint16(b[at+3:]))
		if n == 0 || n > maxRecord {
			return hello{}, 0, errRecord
		}
		end := at + recordHeader + n
		body := b[at+recordHeader : min(end, len(b))]
		switch records {
		case 0:
			msg = body // the usual case, one record: no copy
		case 1:
			msg = append(make([]byte, 0, len(b)), msg...)
			fallthrough
		default:
			msg = append(msg, body...)
		}
		if len(msg) > 0 && msg[0] != typeClientHello {
			return hello{}, 0, errHello
		}
		if len(msg) >= handshakeHeader {
			want := handshakeHeader + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
			if want > limit {
				return hello{}, 0, errTooLong
			}
			if len(msg) >= want {
				h, err := parseHelloBody(msg[handshakeHeader:want])
				return h, 0, err
			}
		}
		if end > len(b) {
			if end > limit {
				end = limit // the caller's cap ends the wait
			}
			return hello{}, end, errMore
		}
		at = end
	}
}

// recordStart checks as much of a record header as there is.
func recordStart(b []byte) error {
	if len(b) > 0 && b[0] != typeHandshake || len(b) > 1 && b[1] != 3 {
		return errRecord
	}
	return nil
}

// parseHelloBody reads the fields of RFC 8446, 4.1.2.
func parseHelloBody(b cursor) (hello, error) {
	var h hello
	if !b.skip(2+32) || !b.skipVector8(0, 32) { // version, random, session id
		return h, errHello
	}
	suites, ok := b.vector16()
	if !ok || len(suites) < 2 || len(suites)%2 != 0 {
		return h, errHello
	}
	if !b.skipVector8(1, 255) { // compression methods
		return h, errHello
	}
	if len(b) == 0 {
		return h, nil // TLS 1.2 and before: extensions may be absent
	}
	exts, ok := b.vector16()
	if !ok || len(b) != 0 {
		return h, errHello
	}
	seen := make(map[uint16]struct{}, 24)
	for len(exts) > 0 {
		kind, ok := exts.uint16()
		if !ok {
			return h, errHello
		}
		body, ok := exts.vector16()
		if !ok {
			return h, errHello
		}
		if _, twice := seen[kind]; twice {
			return h, errHello
		}
		seen[kind] = struct{}{}
		switch kind {
		case extServerName:
			name, err := parseServerName(body)
			if err != nil {
				return h, err
			}
			h.name = name
		case extECH, extESNI:
			h.ech = true
		}
	}
	return h, nil
}

// parseServerName reads RFC 6066, section 3: exactly one host_name. Two would
// leave open which one the server takes.
func parseServerName(b cursor) (string, error) {
	list, ok := b.vector16()
	if !ok || len(b) != 0 {
		return "", errSNI
	}
	kind, ok := list.uint8()
	if !ok || kind != nameTypeHostName {
		return "", errSNI
	}
	name, ok := list.vector16()
	if !ok || len(name) == 0 || len(list) != 0 {
		return "", errSNI
	}
	return string(name), nil
}

// A cursor reads TLS presentation language from the front of its bytes.
type cursor []byte

func (c *cursor) skip(n int) bool {
	if len(*c) < n {
		return false
	}
	*c = (*c)[n:]
	return true
}

func (c *cursor) uint8() (uint8, bool) {
	if len(*c) < 1 {
		return 0, false
	}
	v := (*c)[0]
	*c = (*c)[1:]
	return v, true
}

func (c *cursor) uint16() (uint16, bool) {
	if len(*c) < 2 {
		return 0, false
	}
	v := binary.BigEndian.Uint16(*c)
	*c = (*c)[2:]
	return v, true
}

func (c *cursor) vector16() (cursor, bool) {
	n, ok := c.uint16()
	if !ok || len(*c) < int(n) {
		return nil, false
	}
	v := (*c)[:n]
	*c = (*c)[n:]
	return v, true
}

func (c *cursor) skipVector8(least, most int) bool {
	n, ok := c.uint8()
	return ok && int(n) >= least && int(n) <= most && c.skip(int(n))
}
