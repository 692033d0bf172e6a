package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// MaxDatagram is the most that a datagram can carry, in bytes, whatever its
// family: the length field of UDP less its header.
const MaxDatagram = 65535 - 8

// refusals is how many datagrams a second are answered as refused, with a
// burst of as many. The others are dropped: their senders wait.
const refusals = 1000

// UDP is the UDP that leaves the container, but for DNS. What it sends into
// the container seems to come from the address that the container spoke to.
// Reply and Refuse may be called from several goroutines.
type UDP struct {
	conn         *net.UDPConn
	send4, send6 *os.File // raw; send6 is nil on a kernel without IPv6
	refusals     *rate.Limiter
	oob          [256]byte // of the goroutine that reads
}

// listenUDP opens the sockets. It is called inside the namespace.
func listenUDP() (*UDP, error) {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, err
	}
	return newUDP(conn)
}

// newUDP goes on with a socket. It is called inside the namespace, and closes
// the socket when it fails.
func newUDP(conn *net.UDPConn) (*UDP, error) {
	u := &UDP{conn: conn, refusals: rate.NewLimiter(refusals, refusals)}
	err := u.prepare()
	if err == nil {
		u.send4, err = openRaw(unix.AF_INET)
	}
	if err == nil {
		u.send6, err = openRaw(unix.AF_INET6)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(err, u.close())
	}
	return u, nil
}

// prepare has the socket take datagrams for any address (ip(7),
// IP_TRANSPARENT) and say which. An IPv6 socket takes IPv4 as well, which has
// options of its own.
func (u *UDP) prepare() error {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return err
	}
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		on := func(level, option int) error { return unix.SetsockoptInt(int(fd), level, option, 1) }
		sysErr = errors.Join(on(unix.SOL_IP, unix.IP_TRANSPARENT), on(unix.SOL_IP, unix.IP_RECVORIGDSTADDR))
		if family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || family == unix.AF_INET6 {
			sysErr = errors.Join(sysErr, err, on(unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR))
		}
	})
	return errors.Join(err, sysErr)
}

// openRaw opens a socket that sends what is given to it with its IP header.
// It receives nothing: no packet has the protocol IPPROTO_RAW (raw(7)).
func openRaw(family int) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "raw")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, answerMark); err != nil {
		return nil, errors.Join(fmt.Errorf("mark a raw socket: %w", err), f.Close())
	}
	return f, nil
}

// ReadFrom waits for a datagram and says who sent it and where it was going.
// The addresses are never IPv4-mapped and have no zone. What is longer than b
// is cut; MaxDatagram is always enough. One goroutine reads at a time.
func (u *UDP) ReadFrom(b []byte) (n int, client, dst netip.AddrPort, err error) {
	for {
		n, oobn, _, from, err := u.conn.ReadMsgUDPAddrPort(b, u.oob[:])
		if err != nil {
			return 0, client, dst, err
		}
		if dst, ok := wentTo(u.oob[:oobn]); ok {
			return n, unmap(from), dst, nil
		}
	}
}

// SetReadDeadline ends a ReadFrom that waits at t; the zero Time means never.
func (u *UDP) SetReadDeadline(t time.Time) error { return u.conn.SetReadDeadline(t) }

// wentTo reads IP_ORIGDSTADDR or IPV6_ORIGDSTADDR of linux/in.h and
// linux/in6.h: a struct sockaddr_in or sockaddr_in6.
func wentTo(oob []byte) (netip.AddrPort, bool) {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return netip.AddrPort{}, false
		}
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:8])), binary.BigEndian.Uint16(data[2:])), true
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:24])).Unmap(), binary.BigEndian.Uint16(data[2:])), true
		}
		oob = rest
	}
	return netip.AddrPort{}, false
}

// Reply sends b to client as if dst had. It does not wait: what the kernel
// has no room for is lost, as datagrams are.
func (u *UDP) Reply(b []byte, client, dst netip.AddrPort) error {
	if err := sameFamily(client, dst); err != nil {
		return err
	}
	return u.send(client.Addr(), datagramHeaders(dst, client, b), b)
}

// Refuse tells client that its datagram to dst found nobody: a connected
// socket gets ECONNREFUSED at once. It does nothing when that has been said
// 1000 times in the last second.
func (u *UDP) Refuse(client, dst netip.AddrPort) error {
	if err := sameFamily(client, dst); err != nil || !u.refusals.Allow() {
		return err
	}
	return u.send(client.Addr(), unreachable(client, dst), nil)
}

func sameFamily(client, dst netip.AddrPort) error {
	if !client.IsValid() || client.Addr().Is4() != dst.Addr().Is4() {
		return fmt.Errorf("answer %s from %s: they are not of one family", client, dst)
	}
	return nil
}

func (u *UDP) send(to netip.Addr, headers, payload []byte) error {
	socket, address := u.send4, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])})
	if to.Is6() {
		socket, address = u.send6, &unix.SockaddrInet6{Addr: to.As16()}
	}
	if socket == nil {
		return fmt.Errorf("answer %s: %w", to, unix.EAFNOSUPPORT)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		_, sysErr = unix.SendmsgBuffers(int(fd), [][]byte{headers, payload}, nil, address, unix.MSG_DONTWAIT)
	})
	if err := errors.Join(err, sysErr); err != nil {
		return fmt.Errorf("answer %s: %w", to, err)
	}
	return nil
}

func (u *UDP) close() error {
	var errs []error
	if err := u.conn.Close(); !errors.Is(err, net.ErrClosed) {
		errs = append(errs, err)
	}
	for _, f := range []*os.File{u.send4, u.send6} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
