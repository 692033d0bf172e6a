package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/audit"
	"weir/rules"
)

// packet is a datagram on its way between a client and a destination.
type packet struct {
	client, dst netip.AddrPort
	text        string
	refused     bool
}

// tunnel is a Capture in memory.
type tunnel struct {
	in, out chan packet
	mu      sync.Mutex
	stop    chan struct{}
}

func newTunnel() *tunnel {
	return &tunnel{in: make(chan packet), out: make(chan packet, 1024), stop: make(chan struct{})}
}

func (c *tunnel) ReadFrom(b []byte) (int, netip.AddrPort, netip.AddrPort, error) {
	c.mu.Lock()
	stop := c.stop
	c.mu.Unlock()
	select {
	case p := <-c.in:
		return copy(b, p.text), p.client, p.dst, nil
	case <-stop:
		return 0, netip.AddrPort{}, netip.AddrPort{}, os.ErrDeadlineExceeded
	}
}

func (c *tunnel) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.stop:
		c.stop = make(chan struct{})
	default:
	}
	if !t.IsZero() {
		close(c.stop)
	}
	return nil
}

func (c *tunnel) Reply(b []byte, client, dst netip.AddrPort) error {
	c.out <- packet{client, dst, string(b), false}
	return nil
}

func (c *tunnel) Refuse(client, dst netip.AddrPort) error {
	c.out <- packet{client, dst, "", true}
	return nil
}

// udpWorld is a world with a tunnel, and an outside that echoes.
type udpWorld struct {
	*world
	tunnel *tunnel
	dials  map[netip.AddrPort]int // guarded by world.mu
	served chan error
}

var (
	peerA = netip.MustParseAddrPort("172.30.0.2:5000")
	peerB = netip.MustParseAddrPort("172.30.0.2:5001")
	site6 = netip.MustParseAddrPort("[2001:db8::7]:443")
)

func newUDPWorld(t testing.TB, change func(*Server), rs ...rules.Rule) *udpWorld {
	t.Helper()
	w := &udpWorld{tunnel: newTunnel(), dials: map[netip.AddrPort]int{}, served: make(chan error, 1)}
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			server.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	w.world = newWorld(t, func(s *Server) {
		s.DialUDP = func(_ context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
			w.mu.Lock()
			w.dials[dst]++
			w.mu.Unlock()
			if dst.Port() == 9 {
				return nil, fmt.Errorf("no way to %s", dst)
			}
			to := server.LocalAddr().(*net.UDPAddr)
			if dst.Port() == 10 {
				to = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} // nobody listens there
			}
			return net.DialUDP("udp", nil, to)
		}
		if change != nil {
			change(s)
		}
	}, rs...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.served <- w.srv.ServeUDP(ctx, w.tunnel)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("ServeUDP did not return")
		}
	})
	return w
}

func allowUDP(dst string) rules.Rule {
	return rules.Rule{Destination: dst, Transport: rules.UDP, Action: rules.ActionAllow}
}

func (w *udpWorld) send(client, dst netip.AddrPort, text string) {
	w.t.Helper()
	select {
	case w.tunnel.in <- packet{client, dst, text, false}:
	case <-time.After(patience):
		w.t.Fatal("nobody reads the datagram")
	}
}

func (w *udpWorld) receive() packet {
	w.t.Helper()
	select {
	case p := <-w.tunnel.out:
		return p
	case <-time.After(patience):
		w.t.Fatal("no datagram came")
		panic("unreachable")
	}
}

// ask sends a datagram and expects it back, or, with refused, a refusal.
func (w *udpWorld) ask(client, dst netip.AddrPort, text string, refused bool) {
	w.t.Helper()
	w.send(client, dst, text)
	want := packet{client, dst, text, refused}
	if refused {
		want.text = ""
	}
	if got := w.receive(); got != want {
		w.t.Fatalf("got %.80v, want %.80v", got, want)
	}
}

// event waits for the next one, and until whatever has ended is out of the way:
// its event comes first.
func (w *udpWorld) event() audit.Event {
	w.t.Helper()
	e := w.world.event()
	ended := func(f party) bool {
		r := f.base()
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.final
	}
	for end := time.Now().Add(patience); slices.ContainsFunc(w.srv.all(), ended); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("what has ended is still there")
		}
	}
	return e
}

func (w *udpWorld) noEvent() {
	w.t.Helper()
	select {
	case e := <-w.events:
		w.t.Errorf("an event too many: %+v", e)
	default:
	}
}

func TestUDPAllowed(t *testing.T) {
	w := newUDPWorld(t, nil, allowUDP("203.0.113.7"), allowUDP("2001:db8::7"))
	big := strings.Repeat("x", 8192)
	w.ask(peerA, siteA, "one", false)
	w.ask(peerA, siteA, big, false)
	w.ask(peerA, siteA, "", false)
	w.ask(peerB, siteA, "three", false)
	w.ask(peerA, site6, "six", false)
	fs := w.srv.Flows()
	if len(fs) != 3 {
		t.Fatalf("flows %+v", fs)
	}
	f := fs[0]
	if f.Transport != rules.UDP || f.Client != peerA || f.Destination != siteA || !f.Live ||
		f.BytesIn != 8195 || f.BytesOut != 8195 || f.DatagramsIn != 3 || f.DatagramsOut != 3 || f.Rule == nil || f.Rule.ID != "r0" {
		t.Errorf("flow %+v", f)
	}
	if w.dials[siteA] != 2 || w.dials[site6] != 1 {
		t.Errorf("dialled %v", w.dials)
	}
	now := time.Now()
	w.srv.sweepIdle(rules.UDP, 2*time.Minute, now)
	w.srv.sweepIdle(rules.UDP, 2*time.Minute, now.Add(119*time.Second))
	w.noEvent()
	w.srv.sweepIdle(rules.UDP, 2*time.Minute, now.Add(2*time.Minute))
	got := map[string]audit.Event{}
	for range 3 {
		e := w.event()
		got[fmt.Sprint(e.Address, e.BytesOut)] = e
	}
	e := got["203.0.113.78195"]
	if e.Type != audit.Connect || e.Transport != "udp" || e.Verdict != "allow" || e.RuleID != "r0" || e.Port != 443 || e.BytesIn != 8195 ||
		!strings.Contains(e.Reason, "3 datagrams out, 3 in") || !strings.Contains(e.Reason, "closed after 2m0s without traffic") {
		t.Errorf("event %+v", e)
	}
	// What was closed for being idle goes on when it is needed again.
	w.ask(peerA, siteA, "again", false)
}

func TestUDPDenied(t *testing.T) {
	w := newUDPWorld(t, nil, allow("203.0.113.7"), allowUDP("203.0.113.8"), forbid("203.0.113.8"))
	for range 4 {
		w.ask(peerA, siteA, "x", true) // only rules that name udp let it out
	}
	if e := w.event(); e.Verdict != "deny" || e.Transport != "udp" || e.Address != "203.0.113.7" || e.Layer != "default" {
		t.Errorf("event %+v", e)
	}
	w.noEvent()
	if len(w.srv.Flows()) != 0 || len(w.dials) != 0 {
		t.Errorf("flows %+v, dials %v", w.srv.Flows(), w.dials)
	}
	// Another client is another association.
	w.ask(peerB, siteA, "x", true)
	if e := w.event(); e.Verdict != "deny" {
		t.Errorf("event %+v", e)
	}
	// After a while it is judged again, and the event says what came meanwhile.
	w.srv.mu.Lock()
	w.srv.udp.associations[pair{peerA, siteA}].at = time.Now().Add(-quiet)
	w.srv.mu.Unlock()
	w.srv.sweepRefused(time.Now())
	w.ask(peerA, siteA, "x", true)
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "3 more datagrams") {
		t.Errorf("event %+v", e)
	}
	// A policy that allows it counts at once.
	w.setRules(false, allowUDP("203.0.113.7"))
	w.srv.Rejudge()
	w.ask(peerA, siteA, "x", false)
	w.noEvent()
	w.setRules(false, allow("*"))
	w.srv.Rejudge()
	if p := w.receive(); !p.refused || p.dst != siteA {
		t.Errorf("cut: %+v", p)
	}
	if e := w.event(); e.Verdict != "deny" || e.BytesOut != 1 || e.BytesIn != 1 {
		t.Errorf("event %+v", e)
	}
	w.ask(peerA, siteA, "x", true)
	w.noEvent()
}

// Nothing that waits goes out when the policy changes while it is dialled.
func TestUDPPolicyChangesWhileDialled(t *testing.T) {
	var w *udpWorld
	ready := make(chan struct{})
	w = newUDPWorld(t, func(s *Server) {
		dial := s.DialUDP
		s.DialUDP = func(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error) {
			<-ready
			w.setRules(false)
			w.srv.Rejudge()
			return dial(ctx, dst)
		}
	}, allowUDP("203.0.113.7"))
	close(ready)
	w.ask(peerA, siteA, "x", true)
	if e := w.event(); e.Verdict != "deny" || e.BytesOut != 0 {
		t.Errorf("event %+v", e)
	}
}

func TestUDPKill(t *testing.T) {
	w := newUDPWorld(t, nil, allowUDP("*"))
	w.ask(peerA, siteA, "x", false)
	if !w.srv.Kill(w.srv.Flows()[0].ID) {
		t.Fatal("not found")
	}
	if p := w.receive(); !p.refused {
		t.Errorf("got %+v", p)
	}
	if e := w.event(); e.Verdict != "deny" || !strings.Contains(e.Reason, "cut on request") {
		t.Errorf("event %+v", e)
	}
	w.ask(peerA, siteA, "x", true)
}

// What the guard refuses and what can never be dialled stay so in learning mode.
func TestUDPLearning(t *testing.T) {
	w := newUDPWorld(t, nil)
	w.setRules(true)
	w.ask(peerA, siteA, "x", false)
	if l := w.srv.Live(); len(l) != 1 || l[0].Transport != "udp" || l[0].Layer != "allow_all" || l[0].Would == nil || l[0].Would.Verdict != "deny" {
		t.Errorf("live %+v", l)
	}
	for _, dst := range []string{"127.0.0.1:53", "169.254.169.254:80", "224.0.0.251:5353", "0.0.0.0:1", "[::1]:9"} {
		w.ask(peerA, netip.MustParseAddrPort(dst), "x", true)
		if e := w.event(); e.Verdict != "deny" || e.Layer != "guard" {
			t.Errorf("%s: %+v", dst, e)
		}
	}
}

func TestUDPNames(t *testing.T) {
	held, released := make(chan string, 8), make(chan string, 8)
	w := newUDPWorld(t, func(s *Server) {
		s.Hold = func(name string, _ netip.Addr) (func(), bool) {
			held <- name
			return func() { released <- name }, true
		}
	}, allowUDP("a.example"), allow("b.example"))
	w.resolved(siteA.Addr(), "a.example")
	w.resolved(siteB.Addr(), "b.example")
	w.resolved(site6.Addr(), "a.example", "c.example")
	w.ask(peerA, siteA, "x", false)
	w.ask(peerA, siteB, "x", true)
	w.ask(peerA, site6, "x", true) // nothing says which of the two it is
	if f := w.srv.Flows()[0]; f.Host != "a.example" || <-held != "a.example" {
		t.Errorf("flow %+v", f)
	}
	w.srv.Kill(w.srv.Flows()[0].ID)
	if <-released != "a.example" {
		t.Error("the name is held for ever")
	}
}

// The program is looked for where a rule lists programs; what the client sends
// meanwhile waits, to a limit.
func TestUDPProgram(t *testing.T) {
	look := make(chan string)
	w := newUDPWorld(t, func(s *Server) {
		s.Limits.Datagrams = 2
		s.Program = func(_ context.Context, transport rules.Transport, client, dst netip.AddrPort) (*rules.Program, error) {
			if transport != rules.UDP || client.Port() != peerA.Port() && client.Port() != peerB.Port() || dst != siteA {
				return nil, fmt.Errorf("asked for %s %s → %s", transport, client, dst)
			}
			return &rules.Program{Path: <-look}, nil
		}
	}, rules.Rule{Destination: "203.0.113.7", Transport: rules.UDP, Action: rules.ActionAllow, Binaries: []string{"/usr/bin/ntp"}})
	for _, text := range []string{"1", "2", "3"} {
		w.send(peerA, siteA, text)
	}
	w.send(peerB, siteB, "x") // lost as well, and refused
	if p := w.receive(); !p.refused || p.dst != siteB {
		t.Errorf("got %+v", p)
	}
	look <- "/usr/bin/ntp"
	for _, text := range []string{"1", "2"} {
		if p := w.receive(); p.text != text {
			t.Errorf("got %+v, want %s", p, text)
		}
	}
	w.send(peerB, siteA, "x")
	look <- "/usr/bin/other"
	if p := w.receive(); !p.refused || p.client != peerB {
		t.Errorf("got %+v", p)
	}
	w.srv.reportLimits(rules.UDP, "datagrams", w.srv.gauges.udp())
	said := ""
	for range 3 {
		e := w.event()
		said += e.Reason + "\n"
	}
	if !strings.Contains(said, "limit of 2 waiting datagrams reached: 2 datagrams refused") {
		t.Errorf("events:\n%s", said)
	}
}

func TestUDPLimits(t *testing.T) {
	w := newUDPWorld(t, func(s *Server) { s.Limits.Associations = 2 }, allowUDP("203.0.113.7"))
	client := func(n int) netip.AddrPort { return netip.AddrPortFrom(peerA.Addr(), uint16(6000+n)) }
	w.ask(client(1), siteA, "x", false)
	w.ask(client(2), siteA, "x", false)
	w.ask(client(3), siteA, "x", true)
	w.ask(client(1), siteA, "x", false)
	w.srv.reportLimits(rules.UDP, "datagrams", w.srv.gauges.udp())
	if e := w.event(); e.Type != audit.Limit || e.Transport != "udp" || !strings.Contains(e.Reason, "limit of 2 open UDP associations reached: 1 datagrams refused") {
		t.Errorf("event %+v", e)
	}
	w.srv.Kill(1)
	w.receive()
	w.event()
	// Refused ones are remembered up to the same limit, and counted beyond it.
	w.ask(client(4), siteB, "x", true)
	w.event()
	w.ask(client(5), siteB, "x", true)
	for end := time.Now().Add(patience); w.srv.gauges.associations.now.Load() != 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	w.noEvent()
	w.srv.reportLimits(rules.UDP, "datagrams", w.srv.gauges.udp())
	if e := w.event(); !strings.Contains(e.Reason, "limit of 2 refused UDP associations reached: 1 datagrams refused") {
		t.Errorf("event %+v", e)
	}
}

// A destination that cannot be reached says so, and is not tried without end.
func TestUDPUnreachable(t *testing.T) {
	w := newUDPWorld(t, nil, allowUDP("*"))
	nowhere, nobody := netip.AddrPortFrom(siteA.Addr(), 9), netip.AddrPortFrom(siteA.Addr(), 10)
	for range 3 {
		w.ask(peerA, nowhere, "x", true)
	}
	if e := w.event(); e.Verdict != "allow" || !strings.Contains(e.Reason, "could not connect: no way") {
		t.Errorf("event %+v", e)
	}
	w.noEvent()
	if w.dials[nowhere] != 1 {
		t.Errorf("dialled %d times", w.dials[nowhere])
	}
	for range 2 {
		w.ask(peerA, nobody, "x", true)
	}
	if fs := w.srv.Flows(); len(fs) != 1 {
		t.Errorf("flows %+v", fs)
	}
}

func TestUDPShutdown(t *testing.T) {
	w := newUDPWorld(t, nil, allowUDP("*"))
	w.ask(peerA, siteA, "x", false)
	if err := w.srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-w.served; err != nil {
		t.Errorf("ServeUDP: %v", err)
	}
	if e := w.event(); !strings.Contains(e.Reason, "Weir stopped") || e.Verdict != "allow" {
		t.Errorf("event %+v", e)
	}
	if err := w.srv.ServeUDP(context.Background(), newTunnel()); err != ErrClosed {
		t.Errorf("after Shutdown: %v", err)
	}
}

// Many clients at once, with changes of the policy between.
func TestUDPMany(t *testing.T) {
	w := newUDPWorld(t, nil, allowUDP("*"))
	const clients, rounds, atOnce = 300, 3, 30 // the echo's socket holds few datagrams
	for r := range rounds {
		seen := map[string]bool{}
		for first := 0; first < clients; first += atOnce {
			for n := first; n < first+atOnce; n++ {
				w.send(netip.AddrPortFrom(peerA.Addr(), uint16(10000+n)), siteA, fmt.Sprint(r, n))
			}
			w.srv.Rejudge()
			for range atOnce {
				seen[w.receive().text] = true
			}
		}
		if len(seen) != clients {
			t.Errorf("round %d: %d answers", r, len(seen))
		}
	}
	if n := len(w.srv.Flows()); n != clients {
		t.Errorf("%d associations", n)
	}
}
