package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/audit"
	"weir/rules"
)

// patience is how long a test waits for what must happen. It is never reached
// but by a failure.
const patience = 10 * time.Second

// A world is a Server on loopback with an outside: addresses that map to
// servers of the test.
type world struct {
	t      testing.TB
	srv    *Server
	policy atomic.Pointer[rules.Policy]
	dst    atomic.Pointer[netip.AddrPort] // where clients want to go next
	events chan audit.Event
	addr   string

	mu      sync.Mutex
	outside map[netip.AddrPort]string
	names   map[netip.Addr][]string
	dialled int
}

var (
	siteA = netip.MustParseAddrPort("203.0.113.7:443")
	siteB = netip.MustParseAddrPort("203.0.113.8:443")
)

// newWorld serves until the test ends. change may set fields of the Server.
func newWorld(t testing.TB, change func(*Server), rs ...rules.Rule) *world {
	t.Helper()
	w := &world{
		t: t, events: make(chan audit.Event, 4096),
		outside: make(map[netip.AddrPort]string), names: make(map[netip.Addr][]string),
	}
	w.setRules(false, rs...)
	w.goTo(siteA)
	w.srv = &Server{
		Container: rules.Container{ID: "c1", Name: "web"},
		Policy:    w.policy.Load,
		Names: func(a netip.Addr, _ time.Time) []string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.names[a]
		},
		OriginalDst: func(*net.TCPConn) (netip.AddrPort, error) { return *w.dst.Load(), nil },
		Dial: func(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
			w.mu.Lock()
			real, ok := w.outside[dst]
			w.dialled++
			w.mu.Unlock()
			if !ok {
				return nil, fmt.Errorf("no server at %s", dst)
			}
			c, err := new(net.Dialer).DialContext(ctx, "tcp", real)
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Record: func(e audit.Event) int64 { w.events <- e; return 1 },
		Limits: Limits{Silence: 20 * time.Millisecond},
	}
	if change != nil {
		change(w.srv)
	}
	l := listen(t)
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		w.srv.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-served:
		case <-time.After(patience):
			t.Error("Serve did not return")
		}
	})
	return w
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// setRules makes a global layer of rs the policy. It does not call Rejudge.
func (w *world) setRules(allowAll bool, rs ...rules.Rule) {
	w.t.Helper()
	for i := range rs {
		rs[i].ID = fmt.Sprintf("r%d", i)
		rs[i].Order = int64(i)
	}
	layer, err := rules.NewLayer(rules.Global, rs)
	if err != nil {
		w.t.Fatal(err)
	}
	w.policy.Store(rules.Compile(rules.Stack{Layers: []*rules.Layer{layer}, AllowAll: allowAll, Session: "s1"}))
}

func allow(dst string) rules.Rule  { return rules.Rule{Destination: dst, Action: rules.ActionAllow} }
func forbid(dst string) rules.Rule { return rules.Rule{Destination: dst, Action: rules.ActionDeny} }

func (w *world) goTo(dst netip.AddrPort) { w.dst.Store(&dst) }

func (w *world) resolved(a netip.Addr, names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[a] = names
}

func (w *world) dials() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dialled
}

// site puts a server at dst that hands each connection to serve.
func (w *world) site(dst netip.AddrPort, serve func(c *net.TCPConn)) {
	w.t.Helper()
	l := listen(w.t)
	w.mu.Lock()
	w.outside[dst] = l.Addr().String()
	w.mu.Unlock()
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			go serve(c)
		}
	}()
}

// echo sends back what it gets and ends when the client does.
func echo(c *net.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
	c.Close()
}

// client connects to Weir's listener, as a redirected connection does.
func (w *world) client() *net.TCPConn {
	w.t.Helper()
	c, err := w.connect()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// connect may find itself refused already: the reset can come that early.
func (w *world) connect() (*net.TCPConn, error) {
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// event returns the next recorded event.
func (w *world) event() audit.Event {
	w.t.Helper()
	select {
	case e := <-w.events:
		return e
	case <-time.After(patience):
		w.t.Fatal("no event")
		panic("unreachable")
	}
}

// live waits until n flows are connected to the outside.
func (w *world) live(n int) []Flow {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var live []Flow
		for _, f := range w.srv.Flows() {
			if f.Live {
				live = append(live, f)
			}
		}
		if len(live) == n {
			return live
		}
	}
	w.t.Fatalf("never %d live flows: %+v", n, w.srv.Flows())
	return nil
}

// talk sends text on a new connection, ends it, and returns all that comes back.
func (w *world) talk(text string) (string, error) {
	w.t.Helper()
	c, err := w.connect()
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	c.CloseWrite()
	b, err := io.ReadAll(c)
	return string(b), err
}
