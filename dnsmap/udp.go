package dnsmap

import (
	"context"
	"net"
	"runtime"

	"golang.org/x/sync/errgroup"

	"weir/rules"
)

// serveUDP starts as many workers as there are processors. Each answers what
// it can at once and leaves to Upstream what has to be asked for.
func (s *Server) serveUDP(ctx context.Context, g *errgroup.Group, pc net.PacketConn) {
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error { return s.workUDP(ctx, pc) })
	}
}

func (s *Server) workUDP(ctx context.Context, pc net.PacketConn) error {
	// A longer datagram is cut here, and then malformed.
	buf, out := make([]byte, maxQuery), make([]byte, 0, maxUDP)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case passing(err):
			pause(ctx)
			continue
		case err != nil:
			return err
		}
		// An answer that cannot be sent is lost like any other datagram: the
		// client asks again.
		reply, q := s.respond(ctx, buf[:n], rules.UDP, out)
		if q != nil {
			s.forward(q, rules.UDP, func(reply []byte) { _, _ = pc.WriteTo(reply, from) })
			continue
		}
		if len(reply) > 0 {
			_, _ = pc.WriteTo(reply, from)
		}
	}
}
