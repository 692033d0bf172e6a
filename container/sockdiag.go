package container

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// sockets asks the kernel about the sockets of one network namespace,
// sock_diag(7).
type sockets struct {
	mu   sync.Mutex
	conn *netlink.Conn
}

// socket is one answer. Cookie tells two sockets of the same inode apart.
type socket struct {
	inode         uint32
	cookie        uint64
	local, remote netip.AddrPort
}

// Sizes of inet_diag_req_v2 and inet_diag_msg, linux/inet_diag.h.
const (
	diagRequest = 56
	diagMessage = 72
)

func openSockets(ns *os.File) (*sockets, error) {
	// The library enters the namespace on a thread of its own and leaves the
	// socket behind; calls need no switching.
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("open sock_diag in namespace %s: %w", ns.Name(), err)
	}
	return &sockets{conn: conn}, nil
}

func (s *sockets) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.Close()
}

// find returns the socket of a TCP connection, or the UDP sockets that send
// from local to remote. None is an error.
func (s *sockets) find(ctx context.Context, transport string, local, remote netip.AddrPort) ([]socket, error) {
	local = netip.AddrPortFrom(local.Addr().Unmap().WithZone(""), local.Port())
	remote = netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port())
	if !local.IsValid() || !remote.IsValid() || local.Addr().Is4() != remote.Addr().Is4() {
		return nil, fmt.Errorf("not a connection: %s to %s", local, remote)
	}
	families := []uint8{unix.AF_INET6}
	if local.Addr().Is4() {
		families = []uint8{unix.AF_INET, unix.AF_INET6}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Second)
	}
	if err := s.conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	var msgs []netlink.Message
	var err error
	switch transport {
	case "tcp":
		// An exact lookup in the kernel's hash table, which holds IPv4-mapped
		// sockets of IPv6 among the IPv4 ones.
		msgs, err = s.ask(families[0], unix.IPPROTO_TCP, 0, local, remote)
	case "udp":
		// Sockets need not be connected and several may share the port: take
		// all of that port, of each family that can carry the address.
		for _, family := range families {
			some, errSome := s.ask(family, unix.IPPROTO_UDP, netlink.Dump, local, netip.AddrPort{})
			msgs, err = append(msgs, some...), errors.Join(err, errSome)
		}
	default:
		return nil, fmt.Errorf("no sockets of transport %q; want tcp or udp", transport)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	var found []socket
	for _, m := range msgs {
		k, err := parseSocket(m.Data)
		if err != nil {
			return nil, err
		}
		if !k.carries(transport, local, remote) {
			continue // of TCP: the listener that the kernel falls back to
		}
		if k.inode == 0 {
			return nil, fmt.Errorf("%s socket from %s to %s has been closed by its program: %w", transport, local, remote, ErrGone)
		}
		found = append(found, k)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no %s socket from %s to %s: %w", transport, local, remote, ErrGone)
	}
	return found, nil
}

// ask sends one inet_diag_req_v2.
func (s *sockets) ask(family, protocol uint8, flags netlink.HeaderFlags, local, remote netip.AddrPort) ([]netlink.Message, error) {
	req := make([]byte, diagRequest)
	req[0], req[1] = family, protocol
	binary.NativeEndian.PutUint32(req[4:], 0xffffffff) // all states
	binary.BigEndian.PutUint16(req[8:], local.Port())
	binary.BigEndian.PutUint16(req[10:], remote.Port())
	copy(req[12:28], local.Addr().AsSlice())
	copy(req[28:44], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint64(req[48:], ^uint64(0)) // no cookie
	return s.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: netlink.Request | flags},
		Data:   req,
	})
}

func (k socket) carries(transport string, local, remote netip.AddrPort) bool {
	if transport == "tcp" {
		return k.local == local && k.remote == remote
	}
	return k.local.Port() == local.Port() &&
		(k.local.Addr().IsUnspecified() || k.local.Addr() == local.Addr()) &&
		(k.remote.Port() == 0 || k.remote == remote)
}

func parseSocket(b []byte) (socket, error) {
	if len(b) < diagMessage {
		return socket{}, fmt.Errorf("sock_diag: short answer of %d bytes", len(b))
	}
	addr := func(raw []byte) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(raw))
		}
		return netip.AddrFrom16([16]byte(raw)).Unmap()
	}
	return socket{
		local:  netip.AddrPortFrom(addr(b[8:24]), binary.BigEndian.Uint16(b[4:])),
		remote: netip.AddrPortFrom(addr(b[24:40]), binary.BigEndian.Uint16(b[6:])),
		cookie: binary.NativeEndian.Uint64(b[44:]),
		inode:  binary.NativeEndian.Uint32(b[68:]),
	}, nil
}
