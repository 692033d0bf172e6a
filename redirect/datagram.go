package redirect

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packets that are sent by raw sockets with their headers. A socket of the
// container may be bound to the port that a datagram seems to come from, so no
// ordinary socket could be.

const hopLimit = 64

// datagramHeaders are the IP and UDP headers of a datagram with the payload.
// Both ends are of one family.
func datagramHeaders(from, to netip.AddrPort, payload []byte) []byte {
	h := append(ipHeader(from.Addr(), to.Addr(), unix.IPPROTO_UDP, 8+len(payload)), udpHeader(from, to, 8+len(payload))...)
	udp := h[len(h)-8:]
	sum := checksum(pseudoHeader(from.Addr(), to.Addr(), unix.IPPROTO_UDP, 8+len(payload)), udp, payload)
	if sum == 0 {
		sum = 0xffff // RFC 768: zero means that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return h
}

// unreachable is an ICMP or ICMPv6 message from dst which says that a datagram
// client → dst found no port (RFC 792; RFC 4443 section 3.1).
func unreachable(client, dst netip.AddrPort) []byte {
	kind, code, protocol := byte(3), byte(3), byte(unix.IPPROTO_ICMP)
	if dst.Addr().Is6() {
		kind, code, protocol = 1, 4, unix.IPPROTO_ICMPV6
	}
	message := []byte{kind, code, 0, 0, 0, 0, 0, 0}
	message = append(message, ipHeader(client.Addr(), dst.Addr(), unix.IPPROTO_UDP, 8)...)
	message = append(message, udpHeader(client, dst, 8)...)
	var pseudo []byte
	if dst.Addr().Is6() {
		pseudo = pseudoHeader(dst.Addr(), client.Addr(), protocol, len(message))
	}
	binary.BigEndian.PutUint16(message[2:], checksum(pseudo, message))
	return append(ipHeader(dst.Addr(), client.Addr(), protocol, len(message)), message...)
}

// ipHeader is one without options or extensions (RFC 791, RFC 8200).
func ipHeader(src, dst netip.Addr, protocol byte, payload int) []byte {
	if src.Is4() {
		h := make([]byte, 20, 64)
		h[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(h[2:], uint16(20+payload))
		h[8], h[9] = hopLimit, protocol
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		return h
	}
	h := make([]byte, 40, 96)
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(payload))
	h[6], h[7] = protocol, hopLimit
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return h
}

func udpHeader(from, to netip.AddrPort, length int) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, from.Port())
	binary.BigEndian.PutUint16(h[2:], to.Port())
	binary.BigEndian.PutUint16(h[4:], uint16(length))
	return h
}

// pseudoHeader is what checksums of upper layers cover beside their own bytes:
// RFC 768 for IPv4, RFC 8200 section 8.1 for IPv6.
func pseudoHeader(src, dst netip.Addr, protocol byte, length int) []byte {
	h := append(src.AsSlice(), dst.AsSlice()...)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(h, uint32(length)), uint32(protocol))
}

// checksum is that of RFC 1071 over the parts in a row. All but the last have
// an even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint64
	for _, p := range parts {
		for ; len(p) >= 4; p = p[4:] {
			sum += uint64(binary.BigEndian.Uint32(p))
		}
		if len(p) >= 2 {
			sum += uint64(binary.BigEndian.Uint16(p))
			p = p[2:]
		}
		if len(p) == 1 {
			sum += uint64(p[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
