package proxy

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Limits keep one container from using up the daemon or the host. A zero
// field means its default. Who hits one is refused at once, or has to wait where
// it says so; one event of type limit a second and limit says how often.
type Limits struct {
	// Connections is how many may be open at once. Each takes two file
	// descriptors, and while the receiving side is slow up to 32 KB of
	// buffers. Default 8192.
	Connections int
	// PerSecond is how many new connections a second are taken, with a burst
	// of a fiftieth. The others wait in the kernel: what takes the daemon's time
	// takes it from other containers, and to be refused takes as much as to be
	// served. When as many wait as the listener's backlog has room for
	// (net.core.somaxconn), the kernel answers no more of them. Default 500 for
	// each processor that the daemon may use.
	PerSecond int
	// Dialing is how many may wait for the outside to answer. Default 1024.
	Dialing int
	// Peeking is how many may have sent some, not all, of a ClientHello or
	// HTTP head. Each holds at most PeekBytes. Default 512.
	Peeking int
	// PeekBytes is how long a ClientHello or HTTP head may be. Default 65536.
	PeekBytes int
	// Associations is how many pairs of a client and a destination may exchange
	// datagrams at once. Each takes a file descriptor. As many again that were
	// refused are remembered for some seconds. As many are new in a second as
	// there may be connections, beside those; more are refused. Default 4096.
	Associations int
	// Datagrams is how many may wait until their association is decided on and
	// connected, at most 64 KB each; the others are lost. Default 256.
	Datagrams int
	// Pipes is how many may be moved by splice(2) at this moment, two file
	// descriptors and at most 1 MB of kernel memory each, while the receiving
	// side is slow; the others are copied. Default 128.
	Pipes int

	// Silence is how long a client is waited for before it is judged as one
	// that says nothing. Default 200 ms.
	Silence time.Duration
	// Hello is how long a client may take for its whole first message, and
	// how long one that may not stay silent is waited for. Default 5 s.
	Hello time.Duration
	// Dial is how long the outside may take to answer. Default 10 s.
	Dial time.Duration
	// Lookup is how long finding the program or proving a name may take.
	// Default 5 s.
	Lookup time.Duration
	// Idle is how long a connection may move nothing at all. Default 2 h
	// 4 min, the least that RFC 5382 (REQ-5) grants an established
	// connection. Found at most an eighth later.
	Idle time.Duration
	// UDPIdle is how long an association may move nothing. Default 2 min, the
	// least that RFC 4787 (REQ-5) allows. Found at most an eighth later.
	UDPIdle time.Duration
}

func (l Limits) withDefaults() Limits {
	fill := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	fill(&l.Connections, 8192)
	fill(&l.PerSecond, 500*runtime.GOMAXPROCS(0))
	fill(&l.Dialing, 1024)
	fill(&l.Peeking, 512)
	fill(&l.PeekBytes, 64<<10)
	fill(&l.Associations, 4096)
	fill(&l.Datagrams, 256)
	fill(&l.Pipes, 128)
	wait(&l.Silence, 200*time.Millisecond)
	wait(&l.Hello, 5*time.Second)
	wait(&l.Dial, 10*time.Second)
	wait(&l.Lookup, 5*time.Second)
	wait(&l.Idle, 2*time.Hour+4*time.Minute)
	wait(&l.UDPIdle, 2*time.Minute)
	return l
}

// A backoff is for what fails again and again: each wait is twice as long as the
// one before, from 1 ms to 1 s. Zero is before the first.
type backoff time.Duration

func (b *backoff) wait(ctx context.Context) {
	*b = min(max(2**b, backoff(time.Millisecond)), backoff(time.Second))
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(*b)):
	}
}

// A gauge counts what is under way against a limit, and who hit it.
type gauge struct {
	what  string // "open connections"
	most  int64
	now   atomic.Int64
	hits  atomic.Int64
	waits bool // who hits it is not refused, but has to wait
}

// enter takes a place; who gets true has to leave.
func (g *gauge) enter() bool {
	if g.now.Add(1) > g.most {
		g.now.Add(-1)
		g.hits.Add(1)
		return false
	}
	return true
}

func (g *gauge) leave() { g.now.Add(-1) }

// full is the reason given to whoever hit it.
func (g *gauge) full() string {
	if g.most == 0 {
		return "out of " + g.what
	}
	return fmt.Sprintf("limit of %d %s reached", g.most, g.what)
}

// gauges are the limits that count.
type gauges struct {
	connections, dialing, peeking gauge
	// Of these only the hits count; the limiter and the kernel say when.
	fresh, accepting gauge
	limiter          *rate.Limiter

	// Over UDP. remembered are the refused ones.
	associations, remembered, datagrams, freshUDP gauge
	limiterUDP                                    *rate.Limiter
}

func (g *gauges) init(l Limits) {
	g.connections.what, g.connections.most = "open connections", int64(l.Connections)
	g.dialing.what, g.dialing.most = "connections waiting for the outside", int64(l.Dialing)
	g.peeking.what, g.peeking.most = "unfinished first messages", int64(l.Peeking)
	g.fresh.what, g.fresh.most, g.fresh.waits = "new connections a second", int64(l.PerSecond), true
	g.accepting.what = "file descriptors or memory of the daemon"
	g.limiter = rate.NewLimiter(rate.Limit(l.PerSecond), max(1, l.PerSecond/50))

	g.associations.what, g.associations.most = "open UDP associations", int64(l.Associations)
	g.remembered.what, g.remembered.most = "refused UDP associations", int64(l.Associations)
	g.datagrams.what, g.datagrams.most = "waiting datagrams", int64(l.Datagrams)
	g.freshUDP.what, g.freshUDP.most = "new UDP associations a second", int64(l.PerSecond)
	g.limiterUDP = rate.NewLimiter(rate.Limit(l.PerSecond), l.PerSecond)
}

// tcp and udp are the gauges that refuse connections and datagrams.
func (g *gauges) tcp() []*gauge {
	return []*gauge{&g.connections, &g.dialing, &g.peeking, &g.fresh, &g.accepting}
}

func (g *gauges) udp() []*gauge {
	return []*gauge{&g.associations, &g.remembered, &g.datagrams, &g.freshUDP}
}

// admitUDP decides whether another association is taken on.
func (g *gauges) admitUDP() bool {
	if !g.limiterUDP.Allow() {
		g.freshUDP.hits.Add(1)
		return false
	}
	return g.associations.enter()
}

// inspectedCost is for how many new connections more one that is inspected
// counts: two TLS handshakes take the daemon as much time.
const inspectedCost = 9

// charge counts for n new connections.
func (g *gauges) charge(n int) { g.limiter.ReserveN(time.Now(), min(n, g.limiter.Burst())) }

// admit waits until another connection may be taken on, and decides whether it
// is.
func (g *gauges) admit(ctx context.Context) bool {
	if !g.limiter.Allow() {
		g.fresh.hits.Add(1)
		g.limiter.Wait(ctx) // fails with ctx only, which whoever accepts looks at
	}
	return g.connections.enter()
}
