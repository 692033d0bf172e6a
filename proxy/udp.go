package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"weir/rules"
)

// A Capture is where the datagrams of a container come in and answers go out.
type Capture interface {
	// ReadFrom waits for a datagram and says who sent it and where it was
	// going. The addresses are plain: not IPv4-mapped and without a zone.
	ReadFrom(b []byte) (n int, client, dst netip.AddrPort, err error)
	// SetReadDeadline ends a ReadFrom that waits at t; the zero Time: never.
	SetReadDeadline(t time.Time) error
	// Reply sends b to client as if dst had, without waiting.
	Reply(b []byte, client, dst netip.AddrPort) error
	// Refuse tells client, without waiting, that dst takes no datagrams.
	Refuse(client, dst netip.AddrPort) error
}

// quiet is how long a refused association is remembered: its further datagrams
// are refused without being judged, and without an event of their own.
const quiet = 5 * time.Second

// memory is how long one is remembered that went on sending, so that its next
// event can say how much.
const memory = time.Minute

// maxDatagram is the most that a datagram can carry: what the length field of
// UDP can say, less its header.
const maxDatagram = 65535 - 8

// pair is what an association is known by.
type pair struct{ client, dst netip.AddrPort }

// udpSide is what a Server has for UDP; guarded by the Server's mu.
type udpSide struct {
	capture      Capture
	associations map[pair]*association // the refused ones as well
	handlers     sync.WaitGroup
	served       chan struct{} // closed when ServeUDP has ended; nil before
}

// ServeUDP relays the datagrams of c until Shutdown is called or ctx is done.
// Then it ends the associations, waits for their events to be recorded, and
// returns nil after Shutdown, ctx's error otherwise. It does not close c, which
// belongs to the attachment; if someone else does, it says so.
func (s *Server) ServeUDP(ctx context.Context, c Capture) error {
	s.init()
	s.mu.Lock()
	if s.closing || s.udp.served != nil {
		s.mu.Unlock()
		return ErrClosed
	}
	s.udp.capture, s.udp.served = c, make(chan struct{})
	s.udp.associations = map[pair]*association{}
	s.mu.Unlock()
	defer close(s.udp.served)

	c.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	house, closeHouse := context.WithCancel(ctx)
	var housekeeping sync.WaitGroup
	housekeeping.Go(func() { s.keepUDP(house) })

	err := s.readUDP(ctx, c)
	s.cutAll(rules.UDP, "Weir stopped")
	s.udp.handlers.Wait()
	closeHouse()
	housekeeping.Wait()
	s.reportLimits(rules.UDP, "datagrams", s.gauges.udp())
	return err
}

// stopUDP has ServeUDP end and waits for it. closing is set.
func (s *Server) stopUDP() {
	s.mu.Lock()
	c, served := s.udp.capture, s.udp.served
	s.mu.Unlock()
	if served != nil {
		c.SetReadDeadline(time.Unix(1, 0))
		<-served
	}
}

// readUDP takes datagrams until it is told to stop.
func (s *Server) readUDP(ctx context.Context, c Capture) error {
	buf := make([]byte, maxDatagram)
	for failing := backoff(0); ; {
		n, client, dst, err := c.ReadFrom(buf)
		switch {
		case s.stopping():
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("read datagrams: %w", err)
		case err != nil:
			s.log.Warn("reading a datagram failed", "container", s.Container.Name, "error", err)
			failing.wait(ctx)
			continue
		}
		failing = 0
		a, fresh := s.associate(c, pair{client, dst})
		if a == nil {
			c.Refuse(client, dst)
			continue
		}
		a.send(buf[:n])
		if fresh { // and not before: it would answer for a datagram that it has not got
			go s.handleUDP(ctx, a)
		}
	}
}

// associate finds the association of a datagram or makes a fresh one, which is
// still to be handled; nil when there is no place for another.
func (s *Server) associate(c Capture, p pair) (a *association, fresh bool) {
	s.mu.Lock()
	old := s.udp.associations[p]
	s.mu.Unlock()
	repeats := int64(0)
	if old != nil {
		if !old.over(time.Now(), quiet) {
			return old, false
		}
		repeats = s.forget(old)
	}
	if !s.gauges.admitUDP() {
		return nil, false
	}
	a = &association{dst: p.dst, server: s, capture: c, ended: make(chan struct{})}
	s.start(&a.record, rules.UDP, p.client)
	a.towards = p.dst
	a.request.Addr, a.request.Port = p.dst.Addr(), p.dst.Port()
	if repeats > 0 {
		a.note = fmt.Sprintf("%d more datagrams were refused after the event before this", repeats)
	}
	s.mu.Lock()
	s.lastID++
	a.id = s.lastID
	s.flows[a.id] = a
	s.udp.associations[p] = a
	s.udp.handlers.Add(1)
	s.mu.Unlock()
	return a, true
}

// forget removes an association that has ended and says how many datagrams it
// refused after its event.
func (s *Server) forget(a *association) (repeats int64) {
	s.mu.Lock()
	there := s.udp.associations[a.pair()] == a
	if there {
		delete(s.udp.associations, a.pair())
	}
	s.mu.Unlock()
	if there && a.remembered {
		s.gauges.remembered.leave()
	}
	return a.repeats.Load()
}

// keepUDP reports limits every second, closes idle associations and forgets
// refused ones.
func (s *Server) keepUDP(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	idle := time.NewTicker(max(s.limits.UDPIdle/8, time.Millisecond))
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-second.C:
			s.reportLimits(rules.UDP, "datagrams", s.gauges.udp())
			s.sweepRefused(now)
		case <-idle.C:
			s.sweepIdle(rules.UDP, s.limits.UDPIdle, time.Now())
		}
	}
}

// sweepRefused forgets what was refused long enough ago.
func (s *Server) sweepRefused(now time.Time) {
	s.mu.Lock()
	var over []*association
	for _, a := range s.udp.associations {
		keep := quiet
		if a.repeats.Load() > 0 {
			keep = memory
		}
		if a.over(now, keep) {
			over = append(over, a)
		}
	}
	s.mu.Unlock()
	for _, a := range over {
		s.forget(a)
	}
}
