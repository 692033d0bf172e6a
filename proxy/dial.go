package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errNeverDialled is what no policy can allow: from here these addresses are
// the host's own.
var errNeverDialled = errors.New("loopback, unspecified and multicast addresses are never dialled")

// open makes a socket that is connected to the address that was judged.
func (s *Server) open(ctx context.Context, dst netip.AddrPort) (socket, error) {
	if s.Dial != nil {
		c, err := s.dial(ctx, dst)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	leave, err := s.mayDial(dst)
	if err != nil {
		return nil, err
	}
	defer leave()
	c, err := dialSocket(ctx, dst, s.limits.Dial)
	if err != nil {
		return nil, plainError(err)
	}
	return c, nil
}

// dial is the same for those that need a net.Conn.
func (s *Server) dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	leave, err := s.mayDial(dst)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, s.limits.Dial)
	defer cancel()
	c, err := s.connect(ctx, dst)
	if err != nil {
		return nil, plainError(err)
	}
	return c, nil
}

// mayDial takes a place among those that dial, if dst may be dialled at all.
func (s *Server) mayDial(dst netip.AddrPort) (leave func(), err error) {
	if err := mayDial(dst); err != nil {
		return nil, err
	}
	if !s.gauges.dialing.enter() {
		return nil, errors.New(s.gauges.dialing.full())
	}
	return s.gauges.dialing.leave, nil
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

// What keep-alive probes an outgoing connection sends. They are on because the
// container's own now end at Weir and would no longer keep a NAT on the way
// from forgetting the connection.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

// dialDirect is the default of Server.Dial. A net.Dialer that is given a local
// address, were it none, would bind to a port first: of those there are few.
func dialDirect(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	c, err := d.DialContext(ctx, "tcp", dst.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// dialSocket does in the fewest system calls, on a small stack, what
// dialDirect does with a net.Conn as result.
func dialSocket(ctx context.Context, dst netip.AddrPort, limit time.Duration) (*os.File, error) {
	family := unix.AF_INET6
	if dst.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// None of these can fail on a TCP socket, and without them it works.
	for _, option := range [...]struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count},
	} {
		unix.SetsockoptInt(fd, option.level, option.name, option.value)
	}
	err = connect(fd, dst)
	f := os.NewFile(uintptr(fd), "tcp")
	if err == unix.EINPROGRESS {
		err = connected(ctx, f, dst, limit)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// connected waits until a connection that was begun is made. Asking for it
// again is how to learn what became of it; a near server has answered by then.
func connected(ctx context.Context, f *os.File, dst netip.AddrPort, limit time.Duration) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	ask := func(fd uintptr) (done bool) {
		result = connect(int(fd), dst)
		return result != unix.EALREADY && result != unix.EINPROGRESS
	}
	done := false
	if err := raw.Control(func(fd uintptr) { done = ask(fd) }); err != nil {
		return err
	}
	if !done {
		f.SetWriteDeadline(time.Now().Add(limit))
		stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
		err := raw.Write(ask)
		if !stop() { // the deadline may be set at any moment from now on
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		f.SetWriteDeadline(time.Time{})
	}
	return os.NewSyscallError("connect", result)
}

func connect(fd int, dst netip.AddrPort) error {
	var port [2]byte
	binary.BigEndian.PutUint16(port[:], dst.Port())
	var err error
	if a := dst.Addr(); a.Is4() {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: binary.NativeEndian.Uint16(port[:]), Addr: a.As4()}
		_, err = quickCall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4, 0, 0, 0)
	} else {
		sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: binary.NativeEndian.Uint16(port[:]), Addr: a.As16()}
		_, err = quickCall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet6, 0, 0, 0)
	}
	return err
}

// plainError drops the addresses, which the event has already.
func plainError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}
