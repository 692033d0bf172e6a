package redirect

import (
	"context"
	"errors"
	"fmt"
	"time"

	events "github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// recheck is how often everything is compared although no event came.
	recheck = 5 * time.Second
	// restorePause bounds how often a container that changes its network in a
	// loop makes us work: 50 times a second. A look that took longer, at
	// thousands of chains or interfaces, is followed by a rest as long.
	restorePause = 20 * time.Millisecond
	// maxFailures is how many looks in a row may fail, a pause apart, before
	// Watch gives up: a container can make some fail by changing things while
	// they are listed.
	maxFailures = 50
)

// Watch keeps the capture whole until ctx ends or the attachment is closed: it
// restores our ruleset and routing when they were changed, locks new interfaces, and compares
// everything every five seconds. report is called for each change, one call at
// a time and at most about fifty times a second; it must return soon, because
// nothing is restored meanwhile. Changes that others make outside of our
// tables are left alone. It returns nil when ctx ends, else what failed.
func (a *Attachment) Watch(ctx context.Context, report func(Tamper)) error {
	g, ctx := errgroup.WithContext(ctx)
	rules, changed := make(chan struct{}, 1), make(chan struct{}, 1)
	g.Go(func() error {
		return follow(ctx, a.ns, unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}, rules, a.news.take)
	})
	g.Go(func() error {
		groups := []uint32{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		}
		return follow(ctx, a.ns, unix.NETLINK_ROUTE, groups, changed, nil)
	})
	g.Go(func() error { return a.watch(ctx, rules, changed, report) })
	if err := g.Wait(); err != nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("watch namespace %s: %w", a.ns.ID(), err)
	}
	return nil
}

func (a *Attachment) watch(ctx context.Context, rules, changed <-chan struct{}, report func(Tamper)) error {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	all := []func() ([]Tamper, error){a.checkInterfaces, a.checkRuleset, a.checkSteering, a.checkHostLock, a.checkListeners}
	checks := all // what happened before the events were subscribed to
	failures := 0
	for {
		began, failed := time.Now(), error(nil)
		for _, check := range checks {
			found, err := check()
			if ctx.Err() != nil {
				return nil // servers that end close their listeners
			}
			for _, t := range found {
				report(t)
			}
			failed = errors.Join(failed, err)
		}
		if failures++; failed == nil {
			failures = 0
		}
		if failures > maxFailures || errors.Is(failed, ErrClosed) {
			return failed
		}
		if !rest(ctx, max(restorePause, time.Since(began))) {
			return nil
		}
		if failed != nil {
			checks = all
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-rules:
			checks = []func() ([]Tamper, error){a.checkRuleset}
		case <-changed:
			checks = []func() ([]Tamper, error){a.checkInterfaces, a.checkSteering}
		case <-tick.C:
			checks = all
		}
	}
}

// rest waits; false when ctx ended meanwhile.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// follow turns the messages of netlink groups into wake-ups until ctx ends,
// with a rest after each. The channel holds one; more say nothing new. Messages
// that were lost for want of buffer (ENOBUFS, netlink(7)) are a wake-up too.
// heard, if it is there, is called before: with nothing when the messages begin
// to come, then with each lot and the loss of some; true says that a wake-up
// would come too early, because the rest is on its way.
func follow(ctx context.Context, ns *NetNS, family int, groups []uint32, wake chan<- struct{}, heard func([]events.Message, error) bool) error {
	conn, err := events.Dial(family, &events.Config{NetNS: ns.fd()})
	if err != nil {
		return fmt.Errorf("open netlink events: %w", err)
	}
	defer conn.Close()
	for _, group := range groups {
		if err := conn.JoinGroup(group); err != nil {
			return fmt.Errorf("join netlink group %d: %w", group, err)
		}
	}
	if heard == nil {
		heard = func([]events.Message, error) bool { return false }
	}
	heard(nil, nil)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		select {
		case wake <- struct{}{}:
		default:
		}
		if !rest(ctx, restorePause) {
			return nil
		}
		for more := true; more; {
			messages, err := conn.Receive()
			if ctx.Err() != nil {
				return nil
			} else if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return fmt.Errorf("receive netlink events: %w", err)
			}
			more = heard(messages, err)
		}
	}
}
