package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir/rules"
)

// An association is what one client exchanges with one destination over UDP.
// It is decided on once and has an upstream socket of its own. After it was
// refused it is remembered for a while.
type association struct {
	record
	dst     netip.AddrPort
	server  *Server
	capture Capture

	repeats atomic.Int64 // datagrams refused after the event

	// Guarded by record.mu.
	held [][]byte // waiting for the decision
	up   *net.UDPConn
	raw  syscall.RawConn // of up

	// Of what has ended; written before ended is closed.
	ended      chan struct{}
	at         time.Time // when; of the real clock
	generation uint64    // of the Server, then
	lasting    bool      // not to be tried again at once
	remembered bool      // counted by the gauge
}

func (a *association) pair() pair { return pair{a.client, a.dst} }

// over says that an association has ended, and that enough time has passed for
// its pair to be judged again. A change of the policy is as good.
func (a *association) over(now time.Time, keep time.Duration) bool {
	select {
	case <-a.ended:
		return !a.lasting || now.Sub(a.at) >= keep || a.generation != a.server.generation.Load()
	default:
		return false
	}
}

// handleUDP is one association, from top to bottom.
func (s *Server) handleUDP(ctx context.Context, a *association) {
	defer s.doneUDP(ctx, a)
	defer s.caught(a)
	if s.Names != nil {
		names := s.Names(a.dst.Addr(), a.started)
		a.learn(func(r *rules.Request) { r.Names = names })
	}
	if !a.rejudge(ctx, s) {
		return
	}
	found := s.learnProgram(ctx, a)
	up, err := s.dialUDP(ctx, a.dst)
	found()
	if err != nil {
		a.fail("could not connect: " + err.Error())
		return
	}
	// The policy may change while this is dialled, and while it becomes live.
	if a.stale() && !a.rejudge(ctx, s) {
		up.Close()
		return
	}
	if !a.goLive(up) {
		return
	}
	defer s.hold(&a.record, a.dst)()
	if a.stale() && !a.rejudge(ctx, s) {
		return
	}
	a.passBack()
}

// doneUDP ends a: its socket closed, one event, its place given back.
func (s *Server) doneUDP(ctx context.Context, a *association) {
	a.passing.Wait()
	if w := a.verdict().Would; w != nil && w.NeedProgram {
		s.learnWould(ctx, &a.record)
	}
	a.mu.Lock()
	a.final = true
	a.drop()
	lived := a.live
	if lived {
		a.close()
		if a.note != "" {
			a.note += "; "
		}
		a.note += fmt.Sprintf("%d datagrams out, %d in", a.datagrams.out.Load(), a.datagrams.in.Load())
	}
	a.at, a.generation = time.Now(), a.judged
	a.lasting = a.lasting || a.decision.Verdict == rules.Deny
	a.mu.Unlock()
	if a.lasting {
		a.capture.Refuse(a.client, a.dst)
		a.remembered = s.gauges.remembered.enter()
	}
	// A refusal that cannot be remembered would have an event for each
	// datagram; it is counted instead, as what is over a limit.
	if a.remembered || !a.lasting || lived {
		s.Record(a.event(s.now()))
	}
	s.mu.Lock()
	delete(s.flows, a.id)
	if !a.remembered {
		delete(s.udp.associations, a.pair())
	}
	close(a.ended)
	s.mu.Unlock()
	s.gauges.associations.leave()
	s.udp.handlers.Done()
}

// send passes a datagram of the container on, keeps it until that is decided,
// or refuses it.
func (a *association) send(b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.final && a.decision.Verdict == rules.Allow && !a.lasting:
		// It was closed a moment ago, not refused: lost, as datagrams may be.
	case a.final:
		a.repeats.Add(1)
		a.capture.Refuse(a.client, a.dst)
	case a.live:
		a.pass(b)
	case a.server.gauges.datagrams.enter():
		a.held = append(a.held, append([]byte(nil), b...))
	}
}

// pass sends a datagram on, without waiting: what there is no room for is
// lost. mu is held.
func (a *association) pass(b []byte) {
	a.datagrams.out.Add(1)
	a.moved.out.Add(int64(len(b)))
	var err error
	for range 2 { // an error may belong to an earlier datagram
		if failed := a.raw.Write(func(fd uintptr) bool {
			_, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return true
		}); failed != nil || err == nil {
			return
		}
		a.passError(err)
	}
}

// passError tells the client what the outside said of a datagram.
func (a *association) passError(err error) {
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		a.capture.Refuse(a.client, a.dst)
	}
}

// datagramBuffers are of maxDatagram bytes. An association has one only while
// it reads.
var datagramBuffers = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// passBack moves datagrams to the container until the socket is closed.
func (a *association) passBack() {
	for {
		var n int
		var err error
		var buf *[maxDatagram]byte
		failed := a.raw.Read(func(fd uintptr) bool {
			buf = datagramBuffers.Get().(*[maxDatagram]byte)
			if n, _, err = unix.Recvfrom(int(fd), buf[:], unix.MSG_DONTWAIT); err == unix.EAGAIN || err == unix.EINTR {
				datagramBuffers.Put(buf)
				return false
			}
			return true
		})
		if failed != nil {
			return
		}
		if err != nil {
			a.passError(err)
		} else if !a.isLive() {
			err = net.ErrClosed
		} else {
			a.datagrams.in.Add(1)
			a.moved.in.Add(int64(n))
			a.capture.Reply(buf[:n], a.client, a.dst)
		}
		datagramBuffers.Put(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

// stale says that the policy has changed since a was judged.
func (a *association) stale() bool { return a.judgedAt() != a.server.generation.Load() }

// goLive says that datagrams may move from now on, and passes those on that
// waited; false if a was cut meanwhile.
func (a *association) goLive(up *net.UDPConn) bool {
	raw, err := up.SyscallConn()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.final || err != nil {
		up.Close()
		return false
	}
	a.up, a.raw, a.live = up, raw, true
	for _, b := range a.held {
		a.pass(b)
	}
	a.drop()
	return true
}

// drop gives up what waits. mu is held.
func (a *association) drop() {
	for range a.held {
		a.server.gauges.datagrams.leave()
	}
	a.held = nil
}

// close ends the upstream socket, and with it passBack. mu is held.
func (a *association) close() {
	if a.up != nil {
		a.up.Close()
	}
}

func (a *association) snapshot() Flow {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.record.snapshot()
}

func (a *association) cut(d rules.Decision) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.final {
		return false
	}
	a.final, a.decision = true, d
	a.close()
	return true
}

func (a *association) stop(note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.final {
		return
	}
	a.final, a.note = true, note
	if a.decision.Verdict == rules.Inspect {
		a.decision.Verdict = rules.Deny
	}
	a.close()
}

// fail ends an association that could not begin, which is no verdict.
func (a *association) fail(note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.final {
		a.final, a.note, a.lasting = true, note, true
	}
}

func (a *association) hangUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.close()
}

// rejudge judges an association and cuts it unless it may go on. The first
// time is no other than the later ones.
func (a *association) rejudge(ctx context.Context, s *Server) (goesOn bool) {
	d := s.judge(ctx, &a.record)
	if d.Verdict == rules.Allow {
		return true
	}
	d.Verdict = rules.Deny
	a.cut(d)
	return false
}
