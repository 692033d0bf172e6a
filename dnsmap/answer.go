package dnsmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// Limits on what is taken over from an upstream answer.
const (
	maxRecords   = 64 // records of the type asked for; also the addresses of a name
	maxChain     = 16 // CNAME records from the name asked for to the one that answers
	maxCacheTTL  = time.Hour
	maxNegative  = 5 * time.Minute // RFC 2308, 5, allows more; a name that appears should be seen soon
	failureTTL   = time.Second     // RFC 9520, 3.2: at least 1 s
	maxClientTTL = 300             // seconds; see the package comment
)

var errBadAnswer = errors.New("bad answer from upstream")

// answer is what upstream said to one question, cleaned and packed: ready to
// be sent again with another id, age and spelling of the name.
type answer struct {
	packed  []byte // header, question in lower case, records; no OPT
	rcode   int
	ttls    []int // offsets of the TTL fields in packed
	addrs   []Answer
	stored  time.Time
	expires time.Time // of the cache entry
}

// appendTo answers q, which must ask what a answers. ok is false when the
// answer does not fit into limit bytes.
func (a *answer) appendTo(out []byte, q *query, now time.Time, limit int) (_ []byte, ok bool) {
	size := len(a.packed)
	if q.edns {
		size += 11
	}
	if size > limit {
		return out, false
	}
	counts := [4]uint16{1, binary.BigEndian.Uint16(a.packed[6:]), binary.BigEndian.Uint16(a.packed[8:]), 0}
	if q.edns {
		counts[3] = 1
	}
	start := len(out)
	out = q.appendHeader(out, a.rcode, counts)
	out = append(out, q.question...) // the same length, spelled as the client spells it
	out = append(out, a.packed[headerSize+len(q.question):]...)
	age := uint32(max(0, now.Sub(a.stored)) / time.Second)
	for _, off := range a.ttls {
		field := out[start+off : start+off+4]
		ttl := binary.BigEndian.Uint32(field)
		ttl -= min(ttl, age)
		binary.BigEndian.PutUint32(field, min(ttl, maxClientTTL))
	}
	if q.edns {
		out = appendOPT(out, a.rcode, "")
	}
	return out, true
}

// learned are the addresses of a with what is left of their TTL.
func (a *answer) learned(now time.Time) []Answer {
	age := max(0, now.Sub(a.stored))
	if age < time.Second {
		return a.addrs
	}
	out := make([]Answer, len(a.addrs))
	for i, x := range a.addrs {
		out[i] = Answer{x.Addr, max(0, x.TTL-age)}
	}
	return out
}

// clean turns an upstream message into an answer. Only the CNAME chain that
// starts at the name asked for, and the records of the type asked for at its
// end, are kept: whatever else a server adds names no address. A negative
// answer keeps its SOA. Other sections are dropped; who wants an address asks
// for its name.
func clean(raw []byte, name string, qtype uint16, now time.Time) (*answer, error) {
	in := new(dns.Msg)
	if err := in.Unpack(raw); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadAnswer, err)
	}
	rcode := in.Rcode
	if rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
		return failure(name, qtype, now), nil
	}
	out := &dns.Msg{Compress: true}
	out.Question = []dns.Question{{Name: dns.Fqdn(name), Qtype: qtype, Qclass: dns.ClassINET}}
	owner, chain, err := follow(in.Answer, dns.Fqdn(name), qtype)
	if err != nil {
		return nil, err
	}
	out.Answer = chain
	a := &answer{rcode: rcode, stored: now}
	found := 0
	for _, rr := range in.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != owner || h.Rrtype != qtype && qtype != dns.TypeANY {
			continue
		}
		if found == maxRecords || !keep(rr) {
			continue
		}
		found++
		h.Name = owner
		out.Answer = append(out.Answer, rr)
		if addr, ok := address(rr); ok {
			a.addrs = append(a.addrs, Answer{addr, time.Duration(h.Ttl) * time.Second})
		}
	}
	lifetime := maxCacheTTL
	for _, rr := range out.Answer {
		lifetime = min(lifetime, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if found == 0 {
		soa := negative(in.Ns, owner)
		lifetime = min(lifetime, soaTTL(soa))
		if soa != nil {
			out.Ns = []dns.RR{soa}
		}
	}
	a.expires = now.Add(lifetime)
	if a.packed, err = out.Pack(); err != nil || len(a.packed) > maxMessage-11 {
		return nil, fmt.Errorf("%w: cannot be packed: %w", errBadAnswer, err)
	}
	a.ttls, err = ttlOffsets(a.packed)
	return a, err
}

// follow walks the CNAME records from name on and returns where they end.
func follow(rrs []dns.RR, name string, qtype uint16) (owner string, chain []dns.RR, err error) {
	owner = name
	if qtype == dns.TypeCNAME || qtype == dns.TypeANY {
		return owner, nil, nil
	}
	for range maxChain + 1 {
		i := slices.IndexFunc(rrs, func(rr dns.RR) bool {
			h := rr.Header()
			return h.Rrtype == dns.TypeCNAME && h.Class == dns.ClassINET && dns.CanonicalName(h.Name) == owner
		})
		if i < 0 {
			return owner, chain, nil
		}
		c := rrs[i].(*dns.CNAME)
		c.Hdr.Name = owner
		chain = append(chain, c)
		owner = dns.CanonicalName(c.Target)
	}
	return "", nil, fmt.Errorf("%w: the CNAME chain of %s loops or is longer than %d", errBadAnswer, name, maxChain)
}

// keep cleans one record of an answer and says whether it may stay.
func keep(rr dns.RR) bool {
	switch rr := rr.(type) {
	case *dns.A, *dns.AAAA:
		addr, ok := address(rr)
		return ok && !addr.IsLoopback() && !addr.IsUnspecified()
	case *dns.SVCB:
		return stripService(rr)
	case *dns.HTTPS:
		return stripService(&rr.SVCB)
	case *dns.OPT, *dns.TSIG, *dns.RRSIG:
		return false // of the message, or over a set that was changed
	}
	return true
}

// stripService takes the ECH configuration and the address hints out of an
// SVCB or HTTPS record (RFC 9460, 7.3; RFC 9848). A record that cannot be used
// without them is dropped.
func stripService(rr *dns.SVCB) bool {
	gone := func(k dns.SVCBKey) bool {
		return k == dns.SVCB_ECHCONFIG || k == dns.SVCB_IPV4HINT || k == dns.SVCB_IPV6HINT
	}
	for _, v := range rr.Value {
		if m, ok := v.(*dns.SVCBMandatory); ok && slices.ContainsFunc(m.Code, gone) {
			return false
		}
	}
	rr.Value = slices.DeleteFunc(rr.Value, func(v dns.SVCBKeyValue) bool { return gone(v.Key()) })
	return true
}

func address(rr dns.RR) (netip.Addr, bool) {
	var addr netip.Addr
	var ok bool
	switch rr := rr.(type) {
	case *dns.A:
		addr, ok = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		addr, ok = netip.AddrFromSlice(rr.AAAA)
	}
	return addr.Unmap(), ok
}

// negative finds the SOA of a negative answer: that of the zone owner is in.
func negative(rrs []dns.RR, owner string) *dns.SOA {
	for _, rr := range rrs {
		if soa, ok := rr.(*dns.SOA); ok && soa.Hdr.Class == dns.ClassINET && dns.IsSubDomain(soa.Hdr.Name, owner) {
			return soa
		}
	}
	return nil
}

// soaTTL is how long a negative answer may be kept (RFC 2308, 5): not at all
// without an SOA.
func soaTTL(soa *dns.SOA) time.Duration {
	if soa == nil {
		return 0
	}
	return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, maxNegative)
}

// failure is the answer when upstream has none.
func failure(name string, qtype uint16, now time.Time) *answer {
	packed := make([]byte, headerSize, headerSize+len(name)+6)
	binary.BigEndian.PutUint16(packed[4:], 1)
	packed = appendName(packed, name)
	packed = binary.BigEndian.AppendUint16(packed, qtype)
	packed = binary.BigEndian.AppendUint16(packed, dns.ClassINET)
	return &answer{packed: packed, rcode: dns.RcodeServerFailure, stored: now, expires: now.Add(failureTTL)}
}

// ttlOffsets finds the TTL fields of a message that we packed ourselves.
func ttlOffsets(m []byte) ([]int, error) {
	records := int(binary.BigEndian.Uint16(m[6:])) + int(binary.BigEndian.Uint16(m[8:]))
	offsets := make([]int, 0, records)
	off := skipName(m, headerSize) + 4
	for range records {
		off = skipName(m, off) + 4
		if off+6 > len(m) {
			return nil, fmt.Errorf("%w: records end at byte %d", errBadAnswer, len(m))
		}
		offsets = append(offsets, off)
		off += 6 + int(binary.BigEndian.Uint16(m[off+4:]))
	}
	return offsets, nil
}

// skipName returns the offset behind the name at off.
func skipName(m []byte, off int) int {
	for off < len(m) {
		switch size := int(m[off]); {
		case size == 0:
			return off + 1
		case size >= 0xc0:
			return off + 2
		default:
			off += size + 1
		}
	}
	return len(m)
}
