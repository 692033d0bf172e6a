package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listeners are the sockets opened inside the namespace, on ports that the
// kernel chose. SO_REUSEPORT is not set: with it any program of the same
// user in the container could share the port and take part of the traffic.
type listeners struct {
	tcp    *net.TCPListener
	dnsTCP *net.TCPListener
	dnsUDP *dnsConn
	udp    *UDP
}

func listen(ns *NetNS) (*listeners, error) {
	l := &listeners{}
	err := ns.do(func() error {
		var err error
		if l.tcp, err = listenTCP(); err != nil {
			return err
		}
		if l.dnsTCP, err = listenTCP(); err != nil {
			return err
		}
		udp, err := net.ListenUDP("udp", nil)
		if err != nil {
			return err
		}
		if l.dnsUDP, err = newDNSConn(udp); err != nil {
			return err
		}
		l.udp, err = listenUDP()
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen in network namespace %s: %w", ns.ID(), err), l.close())
	}
	return l, nil
}

// listenTCP opens a listener that speaks TCP only. Go's own default is
// Multipath TCP (RFC 8684), whose sockets do not tell the original destination;
// without it a client that tries falls back to TCP by itself.
//
// The options of keep-alive are those of Go. What is set on the listener, each
// connection inherits: four system calls less than if Go sets it.
func listenTCP() (*net.TCPListener, error) {
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var errs []error
		err := c.Control(func(fd uintptr) {
			for _, option := range [...]struct{ level, name, value int }{
				{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
				{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
				{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
			} {
				errs = append(errs, unix.SetsockoptInt(int(fd), option.level, option.name, option.value))
			}
		})
		return errors.Join(append(errs, err)...)
	}}
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", ":0")
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.Join(errors.New("not a TCP listener"), l.Close())
	}
	return tcp, nil
}

// Sockets are the four listeners of an attachment on their way from one
// process to another.
type Sockets struct {
	TCP, DNSTCP, DNSUDP, UDP *os.File
}

// Close closes the files; the listeners live on wherever else they are open.
func (s *Sockets) Close() error {
	return errors.Join(s.TCP.Close(), s.DNSTCP.Close(), s.DNSUDP.Close(), s.UDP.Close())
}

// inherit goes on with another process's listeners in ns.
func inherit(ns *NetNS, s *Sockets) (*listeners, error) {
	defer s.Close()
	l := &listeners{}
	err := func() error {
		tcp, err := net.FileListener(s.TCP)
		if err != nil {
			return err
		}
		l.tcp, _ = tcp.(*net.TCPListener)
		if tcp, err = net.FileListener(s.DNSTCP); err != nil {
			return err
		}
		l.dnsTCP, _ = tcp.(*net.TCPListener)
		if l.tcp == nil || l.dnsTCP == nil {
			return errors.New("not two TCP listeners")
		}
		dns, err := inheritUDP(s.DNSUDP)
		if err != nil {
			return err
		}
		if l.dnsUDP, err = newDNSConn(dns); err != nil {
			return err
		}
		udp, err := inheritUDP(s.UDP)
		if err != nil {
			return err
		}
		return ns.do(func() error {
			l.udp, err = newUDP(udp)
			return err
		})
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inherited listeners: %w", err), l.close())
	}
	return l, nil
}

func inheritUDP(f *os.File) (*net.UDPConn, error) {
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("not a UDP socket"), c.Close())
	}
	return udp, nil
}

func (l *listeners) duplicate() (*Sockets, error) {
	s := &Sockets{}
	var errs [4]error
	s.TCP, errs[0] = l.tcp.File()
	s.DNSTCP, errs[1] = l.dnsTCP.File()
	s.DNSUDP, errs[2] = l.dnsUDP.File()
	s.UDP, errs[3] = l.udp.conn.File()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, errors.Join(fmt.Errorf("duplicate the listeners: %w", err), s.Close())
	}
	return s, nil
}

func (l *listeners) ports() ports {
	return ports{
		tcp:    uint16(l.tcp.Addr().(*net.TCPAddr).Port),
		dnsTCP: uint16(l.dnsTCP.Addr().(*net.TCPAddr).Port),
		dnsUDP: uint16(l.dnsUDP.LocalAddr().(*net.UDPAddr).Port),
		udp:    uint16(l.udp.conn.LocalAddr().(*net.UDPAddr).Port),
	}
}

// checkListeners reports those that a program with CAP_NET_ADMIN in the namespace
// destroyed. They stay open, and nothing comes any more.
func (a *Attachment) checkListeners() ([]Tamper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil, ErrClosed
	}
	ports := a.listeners.ports()
	var found []Tamper
	for _, l := range []struct {
		what string
		port uint16
		conn syscall.Conn
	}{
		{"TCP", ports.tcp, a.listeners.tcp}, {"DNS over TCP", ports.dnsTCP, a.listeners.dnsTCP},
		{"DNS", ports.dnsUDP, a.listeners.dnsUDP}, {"UDP", ports.udp, a.listeners.udp.conn},
	} {
		hears := false // if its server has given up and closed it
		raw, err := l.conn.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { hears = listens(int(fd), l.port) })
		}
		if err != nil || !hears {
			found = append(found, Tamper{
				Time: time.Now(), Kind: Deaf, What: "the listener for " + l.what + " was destroyed",
				Err: errors.New("it has to be opened anew; until then the container has no egress"),
			})
		}
	}
	return found, nil
}

// listens reports whether a socket still has its port, and a TCP socket still
// accepts connections.
func listens(fd int, port uint16) bool {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && kind == unix.SOCK_STREAM {
		accepts, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		return err != nil || accepts != 0
	}
	switch name, _ := unix.Getsockname(fd); name := name.(type) {
	case *unix.SockaddrInet4:
		return name.Port == int(port)
	case *unix.SockaddrInet6:
		return name.Port == int(port)
	}
	return true
}

// close closes what its servers have not closed already.
func (l *listeners) close() error {
	var errs []error
	shut := func(c io.Closer) {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if l.tcp != nil {
		shut(l.tcp)
	}
	if l.dnsTCP != nil {
		shut(l.dnsTCP)
	}
	if l.dnsUDP != nil {
		shut(l.dnsUDP)
	}
	if l.udp != nil {
		errs = append(errs, l.udp.close())
	}
	return errors.Join(errs...)
}

// dnsConn is the UDP listener. A redirected datagram arrives at an address
// that the kernel chose (127.0.0.1, ::1, or an inner bridge's); the reply has
// to leave from that very address, or connection tracking does not translate
// it back to the address that was asked. So ReadFrom remembers it in the
// peer's address, and WriteTo sends from it.
type dnsConn struct {
	*net.UDPConn
}

// peer is a client's address together with the address it reached us at.
type peer struct {
	net.UDPAddr
	at netip.Addr
}

func newDNSConn(c *net.UDPConn) (*dnsConn, error) {
	d := &dnsConn{c}
	raw, err := c.SyscallConn()
	if err != nil {
		return d, err
	}
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		sysErr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		if sysErr != nil { // a kernel without IPv6
			sysErr = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
	})
	return d, errors.Join(err, sysErr)
}

// ReadFrom reads one query. The address it returns must be given to WriteTo
// unchanged.
func (d *dnsConn) ReadFrom(p []byte) (int, net.Addr, error) {
	var oob [64]byte
	n, oobn, _, from, err := d.ReadMsgUDPAddrPort(p, oob[:])
	if err != nil {
		return n, nil, err
	}
	return n, &peer{*net.UDPAddrFromAddrPort(from), arrivedAt(oob[:oobn])}, nil
}

// WriteTo sends one answer to an address that ReadFrom returned.
func (d *dnsConn) WriteTo(p []byte, to net.Addr) (int, error) {
	client, ok := to.(*peer)
	if !ok {
		return 0, fmt.Errorf("write dns answer to %v: the address is not one that a query came from", to)
	}
	n, _, err := d.WriteMsgUDPAddrPort(p, sendFrom(client.at), client.AddrPort())
	return n, err
}

// arrivedAt reads the local address out of IPV6_PKTINFO or IP_PKTINFO
// (RFC 3542 section 6.2, ip(7)); the zero Addr when there is none.
func arrivedAt(oob []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			return netip.AddrFrom16([16]byte(m.Data[:16]))
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			return netip.AddrFrom4([4]byte(m.Data[8:12]))
		}
	}
	return netip.Addr{}
}

// sendFrom is the control message that makes at the source address. The
// interface stays open, the route decides it.
func sendFrom(at netip.Addr) []byte {
	switch {
	case at.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: at.As4()})
	case at.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: at.As16()})
	}
	return nil
}
