package selftest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netns"

	"weir/api"
)

// Result is how one attack fared.
type Result struct {
	Attack string `json:"attack"`
	Held   bool   `json:"held"`
	Detail string `json:"detail"`
	// Event is the id of the event that records it; 0 for an attack that leaves
	// none, and when it is missing.
	Event int64 `json:"event,omitempty"`
}

// port is where the canary's server and the host's listen.
const port = 4242

// Run attacks the daemon behind client. An error means that the attacks could
// not be carried out, or that something was left behind.
func Run(ctx context.Context, client *api.Client) (results []Result, err error) {
	if err := requireRoot(ctx); err != nil {
		return nil, err
	}
	if _, err := client.Health(ctx); err != nil {
		return nil, err
	}
	l, err := newLab()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	inOutside := func(f func() error) error { return onThread(l.outsideNS, f) }
	onHost := func(f func() error) error { return onThread(netns.None(), f) }
	t := target{lab: l, canary: address(l.run, 3), canary6: address6(l.run, 3), host: address(l.run, 1), open: port}
	if err := errors.Join(
		l.serve(inOutside, netip.AddrPortFrom(t.canary, port)),
		l.serve(inOutside, netip.AddrPortFrom(t.canary6, port)),
		l.serve(onHost, netip.AddrPortFrom(t.host, port)),
	); err != nil {
		return nil, err
	}
	watch, err := l.watch()
	if err != nil {
		return nil, err
	}
	a, err := client.Attach(ctx, "netns:"+l.inside)
	if err != nil {
		return nil, fmt.Errorf("attaching the test's namespace: %w", err)
	}
	defer func() {
		// Also when ctx has ended.
		clear, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, client.Detach(clear, a.ContainerID))
	}()

	control, err := l.control(ctx, client, a.ContainerID, t)
	if err != nil {
		return nil, err
	}
	results = append(results, control)
	watch.take(ctx)
	trail := trail{client: client, container: a.ContainerID}
	for _, one := range attacks(t) {
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
		r := Result{Attack: one.name}
		if err := trail.skip(ctx); err != nil {
			return results, err
		}
		var got bool
		tryErr := onThread(l.insideNS, func() (err error) { got, err = one.try(); return })
		packets := watch.take(ctx)
		switch {
		case tryErr != nil:
			r.Detail = "could not be tried: " + tryErr.Error()
		case got:
			r.Detail = "an answer came back"
		case packets > 0:
			r.Detail = fmt.Sprintf("%d packets reached the outside", packets)
		default:
			r.Event, r.Detail, r.Held = trail.record(ctx, one.event)
		}
		results = append(results, r)
	}
	return results, nil
}

// control makes sure that the canary can be reached at all: through a rule.
func (l *lab) control(ctx context.Context, client *api.Client, id string, t target) (Result, error) {
	r := Result{Attack: "control: what a rule allows gets through"}
	s, err := client.CreateSession(ctx, api.SessionRequest{
		Container: id, TTLSeconds: 60,
		NetworkRules: []api.SessionRule{{Destination: t.canary.String(), Ports: fmt.Sprint(t.open), Transport: "tcp"}},
	})
	if err != nil {
		return r, err
	}
	err = onThread(l.insideNS, func() (err error) { r.Held, err = dial("tcp", t.canary, t.open, 0, words); return })
	if r.Detail = "the canary's server answered"; !r.Held {
		r.Detail = "no answer, so that the attacks below prove nothing"
	}
	return r, errors.Join(err, client.EndSession(ctx, s.ID))
}
