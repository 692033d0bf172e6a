package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Bounds of what the daemon does without saying how far it is: opening the
// database, which may be brought up to date first, and ending, from the first
// connection that is given time to the last event that is stored.
const (
	openingLimit = 2 * time.Minute
	endingLimit  = time.Minute
)

// phase is a part of the daemon's life.
type phase struct {
	// well says whether the daemon gets on.
	well func() error
	// brief phases have a limit with systemd (TimeoutStartSec, TimeoutStopSec),
	// which is put off as long as the daemon is well.
	brief bool
}

// within is well until a limit from now has passed.
func within(limit time.Duration, what string) func() error {
	end := time.Now().Add(limit)
	return func() error {
		if time.Now().After(end) {
			return fmt.Errorf("%s takes longer than %s", what, limit)
		}
		return nil
	}
}

// both is well as long as a and b are.
func both(a, b func() error) func() error {
	return func() error { return errors.Join(a(), b()) }
}

// pulse tells systemd that the daemon is well, three times as often as it
// wants to hear, from the daemon's start to its end and over an upgrade: see
// WATCHDOG= and EXTEND_TIMEOUT_USEC= in sd_notify(3).
type pulse struct {
	keeper   *keeper
	interval time.Duration // that systemd gives the daemon to be heard again
	phase    atomic.Pointer[phase]
	now      chan struct{} // capacity 1: the phase has changed
}

// startPulse begins with a phase and goes on until ctx ends. Without systemd it
// says nothing.
func startPulse(ctx context.Context, k *keeper, first phase) (*pulse, error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return nil, err
	}
	p := &pulse{keeper: k, interval: cmp.Or(interval, 30*time.Second), now: make(chan struct{}, 1)}
	p.enter(first)
	if k.address != "" {
		go p.run(ctx)
	}
	return p, nil
}

// enter begins another phase.
func (p *pulse) enter(next phase) {
	p.phase.Store(&next)
	select {
	case p.now <- struct{}{}:
	default: // about to look at it
	}
}

func (p *pulse) run(ctx context.Context) {
	tick := time.NewTicker(p.interval / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.now:
		case <-tick.C:
		}
		at := p.phase.Load()
		if err := at.well(); err != nil {
			p.keeper.logger.Error("systemd is not told that the daemon is well", "error", err)
			continue
		}
		state := daemon.SdNotifyWatchdog
		if at.brief {
			state += fmt.Sprintf("\nEXTEND_TIMEOUT_USEC=%d", p.interval.Microseconds())
		}
		p.keeper.send(state, nil)
	}
}
