package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// errNeverDialled is what no policy can allow: from here these addresses are
// the host's own.
var errNeverDialled = errors.New("loopback, unspecified and multicast addresses are never dialled")

// dial connects to the address that was judged, from this process's own
// network namespace.
func (s *Server) dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	if err := mayDial(dst); err != nil {
		return nil, err
	}
	if !s.gauges.dialing.enter() {
		return nil, errors.New(s.gauges.dialing.full())
	}
	defer s.gauges.dialing.leave()
	ctx, cancel := context.WithTimeout(ctx, s.limits.Dial)
	defer cancel()
	c, err := s.connect(ctx, dst)
	if err != nil {
		return nil, plainError(err)
	}
	return c, nil
}

func mayDial(dst netip.AddrPort) error {
	if a := dst.Addr(); !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
		return fmt.Errorf("%s: %w", dst, errNeverDialled)
	}
	return nil
}

// dialUDP makes a socket that is connected to the address that was judged: the
// kernel drops what others send to it.
func (s *Server) dialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
	if err := mayDial(dst); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Dial)
	defer cancel()
	dial := s.DialUDP
	if dial == nil {
		dial = func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
			return new(net.Dialer).DialUDP(ctx, "udp", netip.AddrPort{}, dst)
		}
	}
	c, err := dial(ctx, dst)
	if err != nil {
		return nil, plainError(err)
	}
	return c, nil
}

// dialDirect is the default of Server.Dial. Keep-alive probes are on because
// the container's own now end at Weir and would no longer keep a NAT on the
// way from forgetting the connection.
func dialDirect(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}}
	return d.DialTCP(ctx, "tcp", netip.AddrPort{}, dst)
}

// plainError drops the addresses, which the event has already.
func plainError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}
