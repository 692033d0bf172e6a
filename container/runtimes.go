package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// Runtimes are the container runtimes of this host, each behind a unix socket
// that may come, go and come back. Safe for concurrent use; make with
// [Connect].
type Runtimes struct {
	// Timeout bounds every single call to a runtime. Zero: 5 seconds. Set it
	// before the first use.
	Timeout time.Duration

	all []*runtime
}

// DefaultSockets are where Docker and rootful Podman listen.
func DefaultSockets() []string {
	return []string{"/var/run/docker.sock", "/run/podman/podman.sock"}
}

// Connect returns the runtimes behind the given sockets, [DefaultSockets] when
// none is given. It opens nothing: a socket that does not exist yet is used
// from the moment it does, and one that is the same file as an earlier one is
// left out.
func Connect(sockets ...string) *Runtimes {
	if len(sockets) == 0 {
		sockets = DefaultSockets()
	}
	r := &Runtimes{}
	for _, s := range sockets {
		rt := &runtime{owner: r, socket: s, refresh: make(chan struct{}, 1)}
		r.all = append(r.all, rt)
	}
	return r
}

// Status is the state of one runtime, for a person.
type Status struct {
	Socket     string
	Present    bool   // the socket exists
	Version    string // of the engine; "" when it did not answer
	APIVersion string // negotiated
	Err        error  // why it did not answer
}

// Status asks every runtime who it is.
func (r *Runtimes) Status(ctx context.Context) []Status {
	var all []Status
	for _, rt := range r.all {
		s := Status{Socket: rt.socket, Present: rt.present()}
		if s.Present {
			v, err := call(ctx, rt, func(ctx context.Context, cli *client.Client) (client.ServerVersionResult, error) {
				return cli.ServerVersion(ctx, client.ServerVersionOptions{})
			})
			s.Version, s.APIVersion, s.Err = v.Version, v.APIVersion, err
		}
		all = append(all, s)
	}
	return all
}

func (r *Runtimes) timeout() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return 5 * time.Second
}

// live are the runtimes whose sockets exist now, each once.
func (r *Runtimes) live() []*runtime {
	var live []*runtime
	var seen []os.FileInfo
	for _, rt := range r.all {
		info, err := os.Stat(rt.socket)
		// A socket that cannot be looked at is there for all we know.
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		double := false
		for _, s := range seen {
			double = double || err == nil && os.SameFile(s, info)
		}
		if double {
			continue
		}
		if err == nil {
			seen = append(seen, info)
		}
		live = append(live, rt)
	}
	return live
}

// runtime is one socket.
type runtime struct {
	owner  *Runtimes
	socket string

	mu       sync.Mutex
	cli      *client.Client
	networks map[string]networkFacts // by id; what never changes about them
	dirty    map[string]bool         // containers that changed since the last snapshot
	expire   bool                    // all of them did

	refresh  chan struct{} // held while a snapshot is made
	snapshot atomic.Pointer[snapshot]
	changes  atomic.Uint64 // counts what made snapshots old
	watching atomic.Bool   // an event stream is open
}

func (rt *runtime) present() bool {
	_, err := os.Stat(rt.socket)
	return !errors.Is(err, fs.ErrNotExist)
}

// client returns the connection, made anew after every failure, so that the
// API version is negotiated with the engine that is there now.
func (rt *runtime) client() (*client.Client, error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.cli == nil {
		cli, err := client.New(client.WithHost("unix://" + rt.socket))
		if err != nil {
			return nil, fmt.Errorf("socket %q: %w", rt.socket, err)
		}
		rt.cli = cli
	}
	return rt.cli, nil
}

func (rt *runtime) drop(cli *client.Client) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.cli == cli {
		rt.cli = nil
	}
	cli.Close()
}

// call makes one call with a deadline. An error that does not say "not found"
// is an [UnreachableError].
func call[T any](ctx context.Context, rt *runtime, do func(context.Context, *client.Client) (T, error)) (T, error) {
	var zero T
	cli, err := rt.client()
	if err != nil {
		return zero, err
	}
	bound, cancel := context.WithTimeoutCause(ctx, rt.owner.timeout(), errSlow)
	defer cancel()
	v, err := do(bound, cli)
	switch {
	case err == nil:
		return v, nil
	case errdefs.IsNotFound(err):
		return zero, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	rt.drop(cli)
	if ctx.Err() != nil {
		return zero, fmt.Errorf("ask %s: %w", rt.socket, context.Cause(ctx))
	}
	if bound.Err() != nil {
		err = errSlow
	}
	return zero, &UnreachableError{Socket: rt.socket, Timeout: rt.owner.timeout(), Err: err}
}

var errSlow = errors.New("no answer in time")

// UnreachableError says that a runtime could not be asked. It is
// [ErrUnreachable].
type UnreachableError struct {
	Socket  string
	Timeout time.Duration
	Err     error
}

// Error names the socket and the next step.
func (e *UnreachableError) Error() string {
	service := runtimeCommand(e.Socket)
	switch {
	case errors.Is(e.Err, errSlow):
		return fmt.Sprintf("container runtime at %s did not answer within %s; look at \"systemctl status %s\"", e.Socket, e.Timeout, service)
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("container runtime at %s: permission denied; run as root or as a member of the socket's group", e.Socket)
	case errors.Is(e.Err, fs.ErrNotExist):
		return fmt.Sprintf("no container runtime at %s; start one, or name its socket in the configuration", e.Socket)
	case client.IsErrConnectionFailed(e.Err):
		return fmt.Sprintf("container runtime at %s is not running (%v); start it: systemctl start %s", e.Socket, e.Err, service)
	}
	return fmt.Sprintf("container runtime at %s: %v", e.Socket, e.Err)
}

// Unwrap gives [ErrUnreachable] and the cause.
func (e *UnreachableError) Unwrap() []error { return []error{ErrUnreachable, e.Err} }

// runtimeCommand is the command a user would type for the runtime at socket.
func runtimeCommand(socket string) string {
	if real, err := filepath.EvalSymlinks(socket); err == nil {
		socket = real
	}
	if strings.Contains(filepath.Base(socket), "podman") {
		return "podman"
	}
	return "docker"
}
