package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"weir/ask"
	"weir/rules"
)

// ask holds f, which nothing but the default refuses, until a person has
// answered, the policy has changed its mind, the client has gone or the Server
// stops. It returns the decision that came of it.
func (s *Server) ask(ctx context.Context, f *flow) rules.Decision {
	d := f.verdict()
	if s.Ask == nil {
		return d
	}
	if r := f.facts(s.now()); r.Program == nil && !r.ProgramFailed {
		s.findProgram(ctx, &f.record) // whoever answers wants to know
	}
	gone, release := s.watchClient(ctx, f)
	defer release()
	var w *ask.Waiting
	asks := "" // the session that asked
	defer func() {
		if w != nil {
			w.Leave()
		}
	}()
	for {
		changed := s.whenChanged() // before judging, so that no change is missed
		if d = s.judge(ctx, &f.record); !d.Askable {
			return d
		}
		if s.stopping() {
			return unanswered(d, "Weir stopped before anybody answered")
		}
		if session := f.judgedFor(); w == nil || session != asks {
			if w != nil {
				w.Leave()
			}
			var err error
			if w, err = s.Ask(f.question(s.now(), d, session)); err != nil {
				w = nil
				return unanswered(d, "nobody is asked: "+err.Error())
			}
			asks = session
		}
		select {
		case r := <-w.Reply:
			return s.answered(ctx, f, d, r)
		case <-changed:
		case <-gone:
			return unanswered(d, "the client has gone before anybody answered")
		case <-ctx.Done():
			return unanswered(d, "Weir stopped before anybody answered")
		}
	}
}

// unanswered is d for a flow that is not held any longer.
func unanswered(d rules.Decision, why string) rules.Decision {
	d.Askable = false
	d.Reason += "; " + why
	return d
}

// question is f as it is put to people.
func (f *flow) question(now time.Time, d rules.Decision, session string) ask.Question {
	r := f.facts(now)
	q := ask.Question{
		Container: r.Container, Session: session, Host: d.Host, Addr: r.Addr, Port: r.Port, Transport: r.Transport, Reason: d.Reason,
	}
	if r.Program != nil {
		q.Binary = r.Program.Path
	}
	return q
}

// answered makes an answer count for f.
func (s *Server) answered(ctx context.Context, f *flow, d rules.Decision, r ask.Reply) rules.Decision {
	switch {
	case r.Rule: // it is in the policy by now
		if d = s.judge(ctx, &f.record); d.Askable {
			d = unanswered(d, r.Reason+", which does not change it")
		}
		return d
	case r.Expired:
		return unanswered(d, r.Reason)
	case !r.Allow:
		return deny(rules.Asked, "%s", r.Reason)
	}
	facts := f.facts(s.now())
	once, err := rules.OnceLayer(d.Host, facts.Addr, facts.Port, r.Reason)
	if err != nil {
		return deny(rules.Default, "%s, but %v", r.Reason, err)
	}
	f.mu.Lock()
	f.once = once
	f.mu.Unlock()
	return s.judge(ctx, &f.record)
}

// find gives f, whose address only stands for a name that it may reach, one of
// that name's own.
func (s *Server) find(ctx context.Context, f *flow) (netip.AddrPort, error) {
	r := f.facts(s.now())
	ctx, cancel := context.WithTimeout(ctx, s.limits.Lookup)
	defer cancel()
	addrs, err := s.Lookup(ctx, r.Names[0])
	if err != nil {
		return netip.AddrPort{}, err
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("%s has no address", r.Names[0])
	}
	addr := addrs[0]
	for _, a := range addrs {
		if a.Is4() { // the client asked for one of these
			addr = a
			break
		}
	}
	f.learn(func(r *rules.Request) { r.Addr, r.Captured = addr, true })
	return netip.AddrPortFrom(addr, r.Port), nil
}

// whenChanged returns what is closed when Rejudge is called next, or the Server
// begins to stop.
func (s *Server) whenChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// wakeHeld has the flows that are held looked at again.
func (s *Server) wakeHeld() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// watchClient returns what is closed when the client has gone. A client that
// has only closed its sending side, and still has a program, may wait for an
// answer yet. release ends the watch.
func (s *Server) watchClient(ctx context.Context, f *flow) (gone <-chan struct{}, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for f.hungUp() && s.stillOpen(ctx, f) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(hangUpEvery):
			}
		}
	}()
	return ended, func() {
		cancel()
		f.c.SetReadDeadline(time.Unix(1, 0))
		<-ended
		f.c.SetReadDeadline(time.Time{})
	}
}

// hangUpEvery is how often a client that closed its sending side is looked for.
const hangUpEvery = time.Second

// hungUp waits until the client has closed its sending side, and reports whether
// that is all that it has done.
func (f *flow) hungUp() (half bool) {
	err := f.out.src.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		half = err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) == 0
		return err == nil && n > 0
	})
	return err == nil && half // an error is that of a closed connection, or of release
}

// stillOpen reports whether a program has the client's socket open.
func (s *Server) stillOpen(ctx context.Context, f *flow) bool {
	if s.Program == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.Lookup)
	defer cancel()
	select {
	case s.lookups <- struct{}{}:
		defer func() { <-s.lookups }()
	case <-ctx.Done():
		return false
	}
	p, err := s.Program(ctx, f.transport, f.client, f.towards)
	return err == nil && p != nil
}
