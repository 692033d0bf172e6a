package redirect

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rule is one nftables rule and the text that nft(8) prints for it. A bare
// "reject" is port unreachable; "@ll,96,16" is 16 bits at bit 96 of the link
// layer's header, likewise @nh and @th, which nft prints for matches that do
// not let it assume the protocol.
type rule struct {
	text  string
	exprs []expr.Any
}

// match joins the parts of a rule.
func match(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// chain is a base chain and its rules.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	policy   nftables.ChainPolicy
	device   string // of netdev chains
	rules    []rule
}

// queue adds the chain to the batch in c, replacing the rules of one that is
// there already.
func (ch chain) queue(c *nftables.Conn, t *nftables.Table) {
	added := c.AddChain(&nftables.Chain{
		Name: ch.name, Table: t, Type: ch.kind, Hooknum: ch.hook,
		Priority: &ch.priority, Policy: &ch.policy, Device: ch.device,
	})
	c.FlushChain(added)
	for _, r := range ch.rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: added, Exprs: r.exprs})
	}
}

const reg = 1 // every expression here loads into and reads from NFT_REG_1

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func differs(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func payload(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
}

func l4proto(number byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), equal([]byte{number})}
}

func l4protoNot(number byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), differs([]byte{number})}
}

// dport matches the destination port of TCP and UDP alike (offset 2).
func dport(proto byte, port uint16) []expr.Any {
	return match(l4proto(proto), []expr.Any{
		payload(expr.PayloadBaseTransportHeader, 2, 2), equal(binaryutil.BigEndian.PutUint16(port)),
	})
}

// ip4Dst matches the IPv4 destination (RFC 791: offset 16).
func ip4Dst(a netip.Addr) []expr.Any {
	return []expr.Any{
		meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV4}),
		payload(expr.PayloadBaseNetworkHeader, 16, 4), equal(a.AsSlice()),
	}
}

// toLinkLocal6 matches the IPv6 destinations fe80::/10.
func toLinkLocal6() []expr.Any { return ip6Dst([16]byte{0xff, 0xc0}, [16]byte{0xfe, 0x80}) }

// toNeighbours6 matches the IPv6 destinations ff02::/16: everybody on the link,
// and no router hands it on (RFC 4291 section 2.7).
func toNeighbours6() []expr.Any { return ip6Dst([16]byte{0xff, 0xff}, [16]byte{0xff, 0x02}) }

// ip6Dst matches the IPv6 destinations of a network (RFC 8200: offset 24).
func ip6Dst(mask, prefix [16]byte) []expr.Any {
	return []expr.Any{
		meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV6}),
		payload(expr.PayloadBaseNetworkHeader, 24, 16),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 16, Mask: mask[:], Xor: make([]byte, 16)},
		equal(prefix[:]),
	}
}

// length matches packets of so many bytes from the network header on.
func length(n uint32) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyLEN), equal(binaryutil.NativeEndian.PutUint32(n))}
}

// icmp6Type matches the ICMPv6 type (RFC 4443: offset 0).
func icmp6Type(kind byte) []expr.Any {
	return match(l4proto(unix.IPPROTO_ICMPV6), []expr.Any{
		payload(expr.PayloadBaseTransportHeader, 0, 1), equal([]byte{kind}),
	})
}

const (
	ndSolicit = 135 // RFC 4861 section 4.3
	ndAdvert  = 136 // RFC 4861 section 4.4
)

// toLocal matches packets to an address of this namespace.
func toLocal() []expr.Any { return toType(unix.RTN_LOCAL, true) }

// toType matches packets to addresses that are, or are not, of one of the
// types of linux/rtnetlink.h.
func toType(kind uint32, is bool) []expr.Any {
	compare := differs
	if is {
		compare = equal
	}
	return []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		compare(binaryutil.NativeEndian.PutUint32(kind)),
	}
}

// fromLocal matches packets from an address of this namespace.
func fromLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, FlagSADDR: true, ResultADDRTYPE: true},
		equal(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

func iifIs(index uint32) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIF), equal(binaryutil.NativeEndian.PutUint32(index))}
}

func oifIs(index uint32) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIF), equal(binaryutil.NativeEndian.PutUint32(index))}
}

// iifIn matches packets that came in by an interface of the set.
func iifIn(s *nftables.Set) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIF), &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}}
}

// oifNotIn matches packets that leave by an interface outside the set.
func oifNotIn(s *nftables.Set) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIF), &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: true}}
}

// routeNotIn matches packets whose destination is not reached by an interface
// of the set.
func routeNotIn(s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultOIF: true},
		&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: true},
	}
}

// replying matches the answering direction of a connection that is known, the
// errors about it included.
func replying() []expr.Any { return answering(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

// answering matches the answering direction in any of the states. "Not the
// original direction" would be another thing: packets without a connection
// tracking entry have no direction at all.
func answering(states uint32) []expr.Any {
	known := binaryutil.NativeEndian.PutUint32(states)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equal([]byte{1}), // IP_CT_DIR_REPLY
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: known, Xor: make([]byte, 4)},
		differs(make([]byte, 4)),
	}
}

// notRedirected matches packets whose destination was not translated:
// IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h is not set.
func notRedirected() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(1 << 5), Xor: make([]byte, 4)},
		equal(make([]byte, 4)),
	}
}

func redirectTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: reg, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

// tproxyTo hands packets of either family to the socket on a port of lo.
func tproxyTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.TProxy{Family: unix.NFPROTO_UNSPEC, TableFamily: unix.NFPROTO_INET, RegPort: reg},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func rejectReset() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
}

// rejectUnreachable answers with an ICMP or ICMPv6 error of the given
// NFT_REJECT_ICMPX code.
func rejectUnreachable(code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: code}}
}

// etherType matches the type field of the Ethernet frame itself, so that a
// VLAN tag is not looked through.
func etherType(t uint16) []expr.Any {
	return []expr.Any{payload(expr.PayloadBaseLLHeader, 12, 2), equal(binaryutil.BigEndian.PutUint16(t))}
}

func etherSourceNot(mac net.HardwareAddr) []expr.Any {
	return []expr.Any{payload(expr.PayloadBaseLLHeader, 6, 6), differs(mac)}
}

// field matches bytes of the network header.
func field(offset uint32, data []byte) []expr.Any {
	return []expr.Any{payload(expr.PayloadBaseNetworkHeader, offset, uint32(len(data))), equal(data)}
}

// markBits matches packets whose mark has (set) or has not got the bits.
func markBits(bits uint32, set bool) []expr.Any {
	e := []expr.Any{
		meta(expr.MetaKeyMARK),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
	}
	if set {
		return append(e, differs(make([]byte, 4)))
	}
	return append(e, equal(make([]byte, 4)))
}

func markIs(mark uint32) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyMARK), equal(binaryutil.NativeEndian.PutUint32(mark))}
}

// putMark replaces the whole mark.
func putMark(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	}
}

// setMark sets or clears bits of the mark and leaves the others alone.
func setMark(bits uint32, on bool) []expr.Any {
	xor := make([]byte, 4)
	if on {
		xor = binaryutil.NativeEndian.PutUint32(bits)
	}
	return []expr.Any{
		meta(expr.MetaKeyMARK),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(^bits), Xor: xor},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
	}
}
