package dnsmap

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"

	"weir/rules"
)

// packets is a UDP socket as the workers use it.
//
// A redirected query arrives at an address that the client did not choose; the
// reply must leave from that very address, or connection tracking does not
// recognise it. So the destination of each query is asked for (IP_PKTINFO,
// IPV6_RECVPKTINFO) and given back as the source of its reply.
type packets struct {
	net.PacketConn
	udp *net.UDPConn // nil: not a UDP socket of the kernel's
}

// origin is where a query came from and arrived at.
type origin struct {
	peer   netip.AddrPort // of udp
	addr   net.Addr       // of other connections
	source []byte         // control message for the reply
}

// worker reads queries; its buffers are used again and again.
type worker struct {
	packets
	buf, out []byte
	oob      []byte
	lastOOB  []byte // the control message read last,
	source   []byte // and what it means for replies
}

func (s *Server) serveUDP(ctx context.Context, g *errgroup.Group, pc net.PacketConn) error {
	p := packets{PacketConn: pc}
	if udp, ok := pc.(*net.UDPConn); ok {
		// One of the two fails, depending on the socket's family.
		err4 := ipv4.NewPacketConn(udp).SetControlMessage(ipv4.FlagDst, true)
		err6 := ipv6.NewPacketConn(udp).SetControlMessage(ipv6.FlagDst, true)
		if err4 != nil && err6 != nil {
			return errors.Join(err4, err6)
		}
		p.udp = udp
	}
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error { return s.workUDP(ctx, p) })
	}
	return nil
}

func (s *Server) workUDP(ctx context.Context, p packets) error {
	w := worker{packets: p, buf: make([]byte, maxQuery), out: make([]byte, 0, maxUDP), oob: make([]byte, 128)}
	for {
		m, from, err := w.read()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		reply, q := s.respond(ctx, m, rules.UDP, w.out[:0])
		if q != nil {
			from.source = bytes.Clone(from.source)
			s.forward(q, rules.UDP, func(reply []byte) { p.send(reply, from) })
			continue
		}
		if len(reply) > 0 {
			p.send(reply, from)
		}
	}
}

func (w *worker) read() ([]byte, origin, error) {
	if w.udp == nil {
		n, addr, err := w.ReadFrom(w.buf)
		return w.buf[:n], origin{addr: addr}, err
	}
	n, oobn, _, peer, err := w.udp.ReadMsgUDPAddrPort(w.buf, w.oob)
	if err != nil {
		return nil, origin{}, err
	}
	if oob := w.oob[:oobn]; !bytes.Equal(oob, w.lastOOB) {
		w.lastOOB = bytes.Clone(oob)
		w.source = replySource(oob)
	}
	return w.buf[:n], origin{peer: peer, source: w.source}, nil
}

// send gives up on errors: the client asks again, as for any lost datagram.
func (p packets) send(reply []byte, to origin) {
	if p.udp == nil {
		_, _ = p.WriteTo(reply, to.addr)
		return
	}
	_, _, _ = p.udp.WriteMsgUDPAddrPort(reply, to.source, to.peer)
}

// replySource turns the control message of a query into that of its reply.
func replySource(oob []byte) []byte {
	var dst net.IP
	var m6 ipv6.ControlMessage
	if m6.Parse(oob) == nil && m6.Dst != nil {
		dst = m6.Dst
	}
	var m4 ipv4.ControlMessage
	if dst == nil && m4.Parse(oob) == nil {
		dst = m4.Dst
	}
	switch {
	case dst == nil:
		return nil
	case dst.To4() != nil:
		return (&ipv4.ControlMessage{Src: dst}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: dst}).Marshal()
}
