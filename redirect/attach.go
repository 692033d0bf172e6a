package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Spec describes the capture wanted in one namespace.
type Spec struct {
	// Name tells the attachment's lock on the host from others': 1 to 64
	// letters, digits and dashes, for example the start of the container's
	// id. It must stay the same across restarts. Required.
	Name string
	// Host is the namespace in which the other ends of the container's
	// interfaces lie. Nil means the one that this process runs in.
	Host *NetNS
	// Sockets are another process's listeners in this namespace, to go on with
	// instead of opening new ones: who connected to them meanwhile is waiting
	// in their queues. Install closes the files. Nil: none.
	Sockets *Sockets
	// Evict has Watch remove interfaces that come after Install and stand on
	// an interface or a socket of another namespace, or may: what they send
	// passes both locks. It is meant for containers that can make some on the
	// host's, which takes CAP_NET_ADMIN in its user namespace.
	Evict bool
}

// Connection is one that was cut because it was there before the attach.
type Connection struct {
	Protocol      string // "tcp" or "udp"
	Local, Remote netip.AddrPort
}

// Attachment is an installed Spec. Its methods may be called from several
// goroutines.
type Attachment struct {
	ns        *NetNS
	host      *NetNS
	ownHost   bool // host was opened here
	evict     bool
	listeners *listeners
	closedOld []Connection
	rules     ruleset
	lock      lock
	links     *links
	conn      *nftables.Conn // in the container's namespace
	news      news           // of changes to our table

	mu         sync.Mutex
	done       bool
	loWasDown  bool
	interfaces []Interface
	print      fingerprint
	foreign    map[string]bool
}

var validName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// Install captures everything that leaves the namespace: first the lock on the
// host's side of its interfaces, then listeners inside, then the ruleset in one
// batch; then it cuts the connections that were there before. It takes over
// what a dead daemon left under the same name. All or nothing: after an error
// the namespace and the host are as they were; when something was to be taken
// over, that means closed: rules and lock stay, so that the container does not
// come free by an accident. ns must stay open until Close or Release. It gives
// ErrHostNetwork for the host's own namespace and a *FeatureError when the
// kernel lacks something.
func Install(ctx context.Context, ns *NetNS, s Spec) (*Attachment, error) {
	if !validName.MatchString(s.Name) {
		return nil, fmt.Errorf("attachment name %q: use 1 to 64 letters, digits and dashes", s.Name)
	}
	host := s.Host
	if host == nil {
		var err error
		if host, err = own(); err != nil {
			return nil, err
		}
	}
	a := &Attachment{ns: ns, host: host, ownHost: s.Host == nil, evict: s.Evict, foreign: map[string]bool{}}
	undo := &undoList{}
	undo.add(a.closeHost)
	if err := a.install(ctx, s, undo); err != nil {
		return nil, errors.Join(explain(err), undo.run())
	}
	return a, nil
}

func (a *Attachment) install(ctx context.Context, s Spec, undo *undoList) error {
	if a.ns.ID() == a.host.ID() {
		return fmt.Errorf("attach %s: %w", s.Name, ErrHostNetwork)
	}
	var err error
	if a.links, err = openLinks(a.ns, a.host); err != nil {
		return err
	}
	undo.add(func() error { a.links.close(); return nil })
	if a.conn, a.news.port, err = openNFT(a.ns); err != nil {
		return err
	}
	undo.add(a.conn.CloseLasting)
	a.lock = lock{name: s.Name}
	if a.lock.conn, _, err = openNFT(a.host); err != nil {
		return err
	}
	undo.add(a.lock.conn.CloseLasting)

	takeover, err := a.leftovers()
	if err != nil {
		return err
	}
	opens := func(step func() error) {
		if !takeover {
			undo.add(step)
		}
	}
	opens(a.lock.remove)
	if err := a.lockInterfaces(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.Sockets != nil {
		a.listeners, err = inherit(a.ns, s.Sockets)
	} else {
		a.listeners, err = listen(a.ns)
	}
	if err != nil {
		return err
	}
	undo.add(a.listeners.close)
	var before []socket
	if !takeover {
		// The ruleset itself resets whatever sends at this moment.
		if before, err = a.connectedBefore(); err != nil {
			return err
		}
	}
	a.rules = newRuleset(a.listeners.ports())
	opens(func() error { return removeTable(a.conn, a.rules.table) })
	if err := a.rules.install(a.conn, a.links.uplinkIndexes(a.interfaces)); err != nil {
		return err
	}
	opens(a.takeLoopbackDown)
	opens(a.links.takeRoutes)
	if a.loWasDown, err = a.links.giveRoutes(); err != nil {
		return err
	}
	opens(a.links.unsteer)
	if err := a.links.steer(); err != nil {
		return err
	}
	if a.closedOld, err = a.cut(before); err != nil {
		return err
	}
	if a.print, err = takeFingerprint(a.conn, a.rules.table); err != nil {
		return err
	}
	return ctx.Err()
}

// leftovers says whether a dead daemon's lock or ruleset is there.
func (a *Attachment) leftovers() (bool, error) {
	names, err := lockNames(a.lock.conn)
	if err != nil || slices.Contains(names, a.lock.name) {
		return err == nil, err
	}
	table, err := findTable(a.conn, newRuleset(ports{}).table)
	return table != nil, err
}

func (a *Attachment) takeLoopbackDown() error {
	if !a.loWasDown {
		return nil
	}
	return a.links.takeLoopback()
}

// openNFT also returns the number that netlink gave to the connection, which
// nobody else in the namespace can have as long as it is open (netlink(7),
// nl_pid).
func openNFT(ns *NetNS) (c *nftables.Conn, port uint32, err error) {
	number := func(c *netlink.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var name unix.Sockaddr
		var nameErr error
		err = raw.Control(func(fd uintptr) { name, nameErr = unix.Getsockname(int(fd)) })
		if own, ok := name.(*unix.SockaddrNetlink); ok {
			port = own.Pid
		}
		return errors.Join(err, nameErr)
	}
	c, err = nftables.New(nftables.WithNetNSFd(ns.fd()), nftables.AsLasting(), nftables.WithSockOptions(number))
	if err != nil {
		return nil, 0, fmt.Errorf("open nftables in namespace %s: %w", ns.ID(), err)
	}
	return c, port, nil
}

// undoList is what to do when a later step fails, last first.
type undoList struct{ steps []func() error }

func (u *undoList) add(f func() error) { u.steps = append(u.steps, f) }

func (u *undoList) run() error {
	var errs []error
	for _, step := range slices.Backward(u.steps) {
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

// TCP accepts every TCP connection that leaves the container, but DNS; see
// OriginalDst.
func (a *Attachment) TCP() *net.TCPListener { return a.listeners.tcp }

// DNS receives every query to port 53 of any address, by UDP and by TCP. An
// answer by UDP must be sent to the very address that ReadFrom returned.
func (a *Attachment) DNS() (net.PacketConn, net.Listener) {
	return a.listeners.dnsUDP, a.listeners.dnsTCP
}

// UDP receives every other datagram that leaves the container for one address:
// multicast and broadcast are refused in the kernel.
func (a *Attachment) UDP() *UDP { return a.listeners.udp }

// Sockets are duplicates of the listeners, for a process that goes on with
// them; see Spec.Sockets. The caller closes them.
func (a *Attachment) Sockets() (*Sockets, error) { return a.listeners.duplicate() }

// Interfaces are the container's interfaces now, lo excepted.
func (a *Attachment) Interfaces() []Interface {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.interfaces)
}

// Closed are the connections that Install cut.
func (a *Attachment) Closed() []Connection { return slices.Clone(a.closedOld) }

// Close gives the namespace back as it was and closes the listeners. A second
// call does nothing.
func (a *Attachment) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil
	}
	a.done = true
	return errors.Join(
		removeTable(a.conn, a.rules.table),
		a.links.unsteer(), a.links.takeRoutes(), a.takeLoopbackDown(),
		a.lock.remove(),
		a.closeHandles(),
	)
}

// Release closes the listeners and leaves ruleset and lock where they are: the
// container has no way out until a later Install takes over, or Remove.
func (a *Attachment) Release() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil
	}
	a.done = true
	return a.closeHandles()
}

func (a *Attachment) closeHandles() error {
	a.links.close()
	return errors.Join(a.listeners.close(), a.conn.CloseLasting(), a.lock.conn.CloseLasting(), a.closeHost())
}

func (a *Attachment) closeHost() error {
	if !a.ownHost {
		return nil
	}
	return a.host.Close()
}
