package dnsmap

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Sizes in bytes.
const (
	headerSize = 12     // RFC 1035, 4.1.1
	maxQuery   = 4096   // a question with its OPT record is far below that
	maxMessage = 65_535 // RFC 1035, 4.2.2
	minUDP     = 512    // RFC 1035, 4.2.1: what a client without EDNS takes
	maxUDP     = 4096   // the most that is sent in one datagram, whatever a client says
	ourUDP     = 1232   // what is offered, to clients and upstream: no fragments on any path
)

// Header bits of the third and fourth byte, RFC 1035, 4.1.1.
const (
	bitResponse  = 0x80
	bitTruncated = 0x02
	bitRD        = 0x01
	bitRA        = 0x80
	bitCD        = 0x10 // RFC 4035
)

// edeBlocked is the Extended DNS Error code of RFC 8914, 4.16.
const edeBlocked = 15

// query is one question as read off the wire.
type query struct {
	id       uint16
	rd, cd   bool
	question []byte // name, type and class as sent; aliases the message
	name     string // lower case, without the trailing dot; "" is the root
	qtype    uint16
	qclass   uint16
	edns     bool
	badVers  bool
	udpSize  int // what the client takes in a datagram
	// unclean: a label holds a byte that must not pass for part of a name: a
	// dot, a backslash, a control byte, a space, anything outside ASCII.
	unclean bool
}

var (
	errNotQuery  = errors.New("not a query")
	errNotImp    = errors.New("opcode is not QUERY")
	errMalformed = errors.New("malformed query")
)

// parseQuery reads a client's message. With errNotQuery nothing must be sent
// back; with any other error the id (and rd) are valid for a refusal.
func parseQuery(m []byte) (query, error) {
	var q query
	if len(m) < headerSize || m[2]&bitResponse != 0 {
		return q, errNotQuery
	}
	q.id = binary.BigEndian.Uint16(m)
	q.rd = m[2]&bitRD != 0
	q.cd = m[3]&bitCD != 0
	if m[2]>>3&15 != dns.OpcodeQuery {
		return q, errNotImp
	}
	qd, an, ns, ar := binary.BigEndian.Uint16(m[4:]), binary.BigEndian.Uint16(m[6:]), binary.BigEndian.Uint16(m[8:]), binary.BigEndian.Uint16(m[10:])
	if qd != 1 || an != 0 || ns != 0 || ar > 1 || m[2]&bitTruncated != 0 {
		return q, errMalformed
	}
	rest, err := q.readName(m[headerSize:])
	if err != nil || len(rest) < 4 {
		return q, errMalformed
	}
	q.qtype = binary.BigEndian.Uint16(rest)
	q.qclass = binary.BigEndian.Uint16(rest[2:])
	rest = rest[4:]
	q.question = m[headerSize : len(m)-len(rest)]
	q.udpSize = minUDP
	if ar == 1 {
		if rest, err = q.readOPT(rest); err != nil {
			return q, err
		}
	}
	if len(rest) != 0 {
		return q, errMalformed
	}
	return q, nil
}

// readName reads the question's name, which must not be compressed: there is
// nothing before it to point at.
func (q *query) readName(m []byte) ([]byte, error) {
	var text [256]byte
	n, used := 0, 0
	for {
		if len(m) == 0 {
			return nil, errMalformed
		}
		size := int(m[0])
		if used += size + 1; used > 255 || size > 63 || len(m) <= size {
			return nil, errMalformed
		}
		if size == 0 {
			q.name = string(text[:n])
			return m[1:], nil
		}
		if n > 0 {
			text[n] = '.'
			n++
		}
		for _, c := range m[1 : size+1] {
			if c <= ' ' || c >= 0x7f || c == '.' || c == '\\' {
				q.unclean = true
			}
			text[n] = lower(c)
			n++
		}
		m = m[size+1:]
	}
}

// readOPT reads the OPT record (RFC 6891, 6.1.2). Its options, client subnet,
// cookies and padding among them, end here.
func (q *query) readOPT(m []byte) ([]byte, error) {
	if len(m) < 11 || m[0] != 0 || binary.BigEndian.Uint16(m[1:]) != dns.TypeOPT {
		return nil, errMalformed
	}
	q.edns = true
	q.udpSize = min(max(int(binary.BigEndian.Uint16(m[3:])), minUDP), maxUDP)
	q.badVers = m[6] != 0
	size := int(binary.BigEndian.Uint16(m[9:]))
	if len(m) < 11+size {
		return nil, errMalformed
	}
	return m[11+size:], nil
}

// printable is the question's name for an event: bytes that are not clean are
// escaped as \DDD, and so are dots and backslashes inside labels.
func (q *query) printable() string {
	if !q.unclean {
		return q.name
	}
	text, _, err := dns.UnpackDomainName(q.question, 0)
	if err != nil {
		return "?"
	}
	return strings.ToLower(strings.TrimSuffix(text, "."))
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// appendHeader starts the answer to q. counts are those of question, answer,
// authority and additional records.
func (q *query) appendHeader(out []byte, rcode int, counts [4]uint16) []byte {
	out = binary.BigEndian.AppendUint16(out, q.id)
	b2, b3 := byte(bitResponse), byte(bitRA)|byte(rcode&15)
	if q.rd {
		b2 |= bitRD
	}
	if q.cd {
		b3 |= bitCD
	}
	out = append(out, b2, b3)
	for _, c := range counts {
		out = binary.BigEndian.AppendUint16(out, c)
	}
	return out
}

// appendError answers q without records. A reason makes it a blocked answer:
// Extended DNS Error 15 with that text, for clients that know EDNS.
func (q *query) appendError(out []byte, rcode int, reason string) []byte {
	counts := [4]uint16{}
	if q.question != nil {
		counts[0] = 1
	}
	if q.edns {
		counts[3] = 1
	}
	out = q.appendHeader(out, rcode, counts)
	out = append(out, q.question...)
	if q.edns {
		out = appendOPT(out, rcode, reason)
	}
	return out
}

// appendTruncated tells the client to come back over TCP.
func (q *query) appendTruncated(out []byte) []byte {
	start := len(out)
	out = q.appendError(out, dns.RcodeSuccess, "")
	out[start+2] |= bitTruncated
	return out
}

// appendAddresses answers q with what is known without asking anyone. Those
// of the other family are left out, so the answer may be empty.
func (q *query) appendAddresses(out []byte, addrs []netip.Addr, ttl uint32) []byte {
	var fitting []netip.Addr
	for _, a := range addrs {
		if a = plain(a); q.qtype == dns.TypeA && a.Is4() || q.qtype == dns.TypeAAAA && a.Is6() {
			fitting = append(fitting, a)
		}
	}
	fitting = fitting[:min(len(fitting), maxRecords)]
	out = q.appendStart(out, len(fitting))
	for _, a := range fitting {
		out = q.appendRecord(out, ttl, a.AsSlice())
	}
	return q.appendEnd(out)
}

// appendPointer answers a reverse lookup: with name, or with nothing when
// another type was asked for.
func (q *query) appendPointer(out []byte, name string, ttl uint32) []byte {
	if q.qtype != dns.TypePTR {
		return q.appendEnd(q.appendStart(out, 0))
	}
	out = q.appendStart(out, 1)
	out = q.appendRecord(out, ttl, appendName(nil, name))
	return q.appendEnd(out)
}

func (q *query) appendStart(out []byte, records int) []byte {
	counts := [4]uint16{1, uint16(records), 0, 0}
	if q.edns {
		counts[3] = 1
	}
	return append(q.appendHeader(out, dns.RcodeSuccess, counts), q.question...)
}

func (q *query) appendRecord(out []byte, ttl uint32, data []byte) []byte {
	out = append(out, 0xc0, headerSize) // the owner is the question's name
	out = binary.BigEndian.AppendUint16(out, q.qtype)
	out = binary.BigEndian.AppendUint16(out, dns.ClassINET)
	out = binary.BigEndian.AppendUint32(out, ttl)
	out = binary.BigEndian.AppendUint16(out, uint16(len(data)))
	return append(out, data...)
}

func (q *query) appendEnd(out []byte) []byte {
	if q.edns {
		out = appendOPT(out, dns.RcodeSuccess, "")
	}
	return out
}

// appendOPT adds our OPT record; its upper rcode bits are those of rcode.
func appendOPT(out []byte, rcode int, reason string) []byte {
	out = append(out, 0)
	out = binary.BigEndian.AppendUint16(out, dns.TypeOPT)
	out = binary.BigEndian.AppendUint16(out, ourUDP)
	out = append(out, byte(rcode>>4), 0, 0, 0)
	if reason == "" {
		return append(out, 0, 0)
	}
	reason = reason[:min(len(reason), 200)]
	out = binary.BigEndian.AppendUint16(out, uint16(6+len(reason)))
	out = binary.BigEndian.AppendUint16(out, dns.EDNS0EDE)
	out = binary.BigEndian.AppendUint16(out, uint16(2+len(reason)))
	out = binary.BigEndian.AppendUint16(out, edeBlocked)
	return append(out, reason...)
}

// appendName adds a canonical name in wire form.
func appendName(out []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			continue
		}
		label = label[:min(len(label), 63)]
		out = append(out, byte(len(label)))
		out = append(out, label...)
	}
	return append(out, 0)
}
