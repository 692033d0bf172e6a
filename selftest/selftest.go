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
	for _, one := range attacks {
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
		r := Result{Attack: one.name}
		var got bool
		tryErr := onThread(l.insideNS, func() (err error) { got, err = one.try(t); return })
		packets := watch.take(ctx)
		switch {
		case tryErr != nil:
			r.Detail = "could not be tried: " + tryErr.Error()
		case got:
			r.Detail = "an answer came back"
		case packets > 0:
			r.Detail = fmt.Sprintf("%d packets reached the outside", packets)
		default:
			r.Held, r.Detail = true, "nothing reached the outside"
		}
		results = append(results, r)
	}
	return append(results, l.events(ctx, client, a.ContainerID)...), nil
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
	err = onThread(l.insideNS, func() (err error) { r.Held, err = dial("tcp", t.canary, t.open, 0); return })
	if r.Detail = "the canary's server answered"; !r.Held {
		r.Detail = "no answer, so that the attacks below prove nothing"
	}
	return r, errors.Join(err, client.EndSession(ctx, s.ID))
}

// events looks for what must have been recorded.
func (l *lab) events(ctx context.Context, client *api.Client, id string) []Result {
	var list []Result
	for _, want := range []struct{ kind, verdict, name string }{
		{"connect", "deny", "the refusals are recorded"},
		{"tamper", "", "the flushed rules are recorded as tampering"},
	} {
		r := Result{Attack: want.name}
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil && !r.Held; {
			page, err := client.Events(ctx, api.EventQuery{Container: id, Type: want.kind, Verdict: want.verdict, Limit: 100})
			if err != nil {
				r.Detail = err.Error()
				break
			}
			if r.Held = len(page.Items) > 0; r.Held {
				r.Detail = page.Items[0].Reason
			} else {
				r.Detail = "no such event"
				<-time.After(50 * time.Millisecond)
			}
		}
		list = append(list, r)
	}
	return list
}
