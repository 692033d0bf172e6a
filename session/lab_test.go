package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"weir/e2e/netlab"

	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/rules"
	"weir/store"
)

// patience bounds every wait of the tests.
const patience = netlab.Patience

func TestMain(m *testing.M) { netlab.Main(m.Run, nil) }

// daemon is a Conductor with everything it needs, as the daemon has it.
type daemon struct {
	*Conductor
	clock *netlab.Clock
	stop  func()
}

// start runs a Conductor over the database in dir. It is stopped with the
// test, or before by stop.
func start(t testing.TB, dir string, clk *netlab.Clock) *daemon {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	st, err := store.Open(t.Context(), filepath.Join(dir, "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	trail := audit.NewLog(audit.Config{Append: st.AppendEvents, Events: st.Events, Now: clk.Now})
	served := make(chan error, 1)
	go func() { served <- trail.Serve() }()
	upstream := &dnsmap.Upstream{}
	c, err := New(t.Context(), Config{
		Store: st, Log: trail, Runtimes: container.Connect(filepath.Join(dir, "no-runtime.sock")),
		Upstream: upstream, Logger: logger, Now: clk.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("the conductor is not ready")
	}
	stop := sync.OnceFunc(func() {
		cancel()
		drain, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		upstream.Close()
		if err := errors.Join(<-ended, trail.Shutdown(drain), <-served, st.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &daemon{Conductor: c, clock: clk, stop: stop}
}

// attach attaches the lab's container.
func (d *daemon) attach(l *netlab.Lab) Status {
	l.T.Helper()
	s, _, err := d.Attach(l.T.Context(), l.Ref())
	if err != nil {
		l.T.Fatal(err)
	}
	return s
}

// session creates one that allows the lab's server.
func (d *daemon) session(t testing.TB, id, ref string, ttl time.Duration) Session {
	t.Helper()
	s, err := d.CreateSession(t.Context(), Spec{ID: id, Container: ref, TTL: ttl, Rules: []rules.Rule{{Destination: netlab.ServerAddr}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pass moves the clock and has what has expired expire.
func (d *daemon) pass(by time.Duration) {
	d.clock.Advance(by)
	d.expire(context.Background())
}

// reasons are the lifecycle events so far.
func (d *daemon) reasons(t testing.TB) string {
	t.Helper()
	for deadline := time.Now().Add(patience); d.log.Waiting() > 0 && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	events, err := d.store.Events(t.Context(), audit.Filter{Type: audit.Lifecycle, Limit: audit.MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, e := range events {
		fmt.Fprintf(&all, "%s|%s|%s\n", e.ContainerName, e.SessionID, e.Reason)
	}
	return all.String()
}

// kind is the kind of an error, 0 when it has none.
func kind(err error) Kind {
	var known *Error
	if errors.As(err, &known) {
		return known.Kind
	}
	return 0
}
