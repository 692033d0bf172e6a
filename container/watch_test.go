package container

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/events"
)

// A relay stands between us and the real runtime, so that it can go away.
type relay struct {
	mu    sync.Mutex
	l     net.Listener
	conns []net.Conn
}

func (r *relay) start(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r.l = l
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", "/var/run/docker.sock")
			if err != nil {
				in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					io.Copy(pair[0], pair[1])
					pair[0].Close()
				}()
			}
		}
	}()
}

// stop ends every conversation and removes the socket.
func (r *relay) stop() {
	r.l.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

// watched collects the events of a Watch.
type watched struct {
	t      *testing.T
	ctx    context.Context
	events chan Event
}

func watch(t *testing.T, r *Runtimes) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	w := &watched{t: t, ctx: ctx, events: make(chan Event, 4096)}
	done := make(chan error, 1)
	go func() { done <- r.Watch(ctx, func(e Event) { w.events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch returned %v", err)
		}
	})
	return w
}

// next waits for an event of these kinds that concerns the container; "" is any.
func (w *watched) next(id string, kinds ...Kind) Event {
	w.t.Helper()
	for {
		select {
		case e := <-w.events:
			if slices.Contains(kinds, e.Kind) && (id == "" || e.Container.ID == id) {
				return e
			}
		case <-w.ctx.Done():
			w.t.Fatalf("no %v of %.12s", kinds, id)
		}
	}
}

var everything = []Kind{Started, Stopped, Removed, Renamed, NetworkChanged}

func TestWatch(t *testing.T) {
	r := Connect()
	name, net := prefix()+"-watch", prefix()+"-watchnet"
	newNetwork(t, net)
	already := docker(t, prefix()+"-already")
	w := watch(t, r)
	first := w.next("", Resync)
	if !slices.ContainsFunc(first.Containers, func(c Container) bool { return c.ID == already && c.Running && c.NetNS != "" }) {
		t.Errorf("first list lacks %s", already)
	}

	id := docker(t, name, "--label", "weir.attach=true")
	e := w.next(id, everything...)
	if e.Kind != Started || e.Container.Name != name || e.Container.NetNSID == (NetNSID{}) || e.Container.Labels["weir.attach"] != "true" {
		t.Fatalf("%+v", e)
	}
	for _, step := range []struct {
		verb string
		want int
	}{{"connect", 2}, {"disconnect", 1}} {
		run(t, "docker", "network", step.verb, net, name)
		// Docker may still repeat the change before.
		for e = w.next(id, everything...); len(e.Container.Networks) != step.want; e = w.next(id, everything...) {
			if e.Kind != NetworkChanged {
				t.Fatalf("%s: %+v", step.verb, e)
			}
		}
	}
	run(t, "docker", "rename", name, name+"2")
	t.Cleanup(func() { exec.Command("docker", "rm", "-f", name+"2").Run() })
	e = w.next(id, Started, Stopped, Removed, Renamed)
	if e.Kind != Renamed || e.Container.Name != name+"2" || e.OldName != name {
		t.Fatalf("%+v", e)
	}
	run(t, "docker", "restart", "-t", "0", name+"2")
	if e = w.next(id, everything...); e.Kind != Stopped || e.Container.Name != name+"2" {
		t.Fatalf("%+v", e)
	}
	if e = w.next(id, everything...); e.Kind != Started {
		t.Fatalf("%+v", e)
	}
	run(t, "docker", "rm", "-f", name+"2")
	if e = w.next(id, everything...); e.Kind != Stopped {
		t.Fatalf("%+v", e)
	}
	if e = w.next(id, everything...); e.Kind != Removed {
		t.Fatalf("%+v", e)
	}
}

func TestWatchSurvivesRestart(t *testing.T) {
	path := tempSocket(t, "docker.sock")
	var middle relay
	r := Connect(path)
	w := watch(t, r) // before there is a socket
	middle.start(t, path)
	w.next("", Resync)
	name := prefix() + "-survive"
	id := docker(t, name)
	w.next(id, Started)

	middle.stop()
	if e := w.next("", Disconnected); !errors.Is(e.Err, ErrUnreachable) {
		t.Errorf("disconnected: %v", e.Err)
	}
	// What happens while nobody listens is in the next list.
	run(t, "docker", "rm", "-f", name)
	other := docker(t, prefix()+"-meanwhile")
	middle.start(t, path)
	defer middle.stop()
	list := w.next("", Resync).Containers
	if slices.ContainsFunc(list, func(c Container) bool { return c.ID == id }) {
		t.Error("the removed container is still listed")
	}
	if !slices.ContainsFunc(list, func(c Container) bool { return c.ID == other && c.Running }) {
		t.Error("the new container is not listed")
	}
	run(t, "docker", "kill", other)
	w.next(other, Stopped)
}

func TestWatchOneRuntimeOnce(t *testing.T) {
	// Two spellings of one socket are one runtime.
	link := tempSocket(t, "link.sock")
	if err := os.Symlink("/var/run/docker.sock", link); err != nil {
		t.Fatal(err)
	}
	w := watch(t, Connect("/var/run/docker.sock", link, "/run/docker.sock"))
	w.next("", Resync)
	id := docker(t, prefix()+"-once")
	w.next(id, Started)
	run(t, "docker", "rm", "-f", id)
	for _, want := range []Kind{Stopped, Removed} {
		if e := w.next(id, everything...); e.Kind != want {
			t.Errorf("%s, want %s", e.Kind, want)
		}
	}
}

func TestReadNeverWaits(t *testing.T) {
	rt := Connect("/nowhere").all[0]
	messages, ends := make(chan events.Message), make(chan error)
	queue, lost, ended := make(chan events.Message, 2), make(chan struct{}, 1), make(chan error, 1)
	go rt.read(messages, ends, queue, lost, ended)
	for range 10 { // five times what the queue holds, and nobody takes any
		messages <- events.Message{Type: events.ContainerEventType, Action: events.ActionDie, Actor: events.Actor{ID: "x"}}
	}
	ends <- io.EOF
	if err := <-ended; err != io.EOF {
		t.Errorf("ended with %v", err)
	}
	if len(queue) != 2 || len(lost) != 1 {
		t.Errorf("%d queued, %d resyncs asked for", len(queue), len(lost))
	}
}

func TestSubject(t *testing.T) {
	tests := []struct {
		m    events.Message
		want string
	}{
		{events.Message{Type: "container", Action: "start", Actor: events.Actor{ID: "a"}}, "a"},
		{events.Message{Type: "container", Action: "died", Actor: events.Actor{ID: "a"}}, "a"},
		{events.Message{Type: "container", Action: "exec_start: sh", Actor: events.Actor{ID: "a"}}, ""},
		{events.Message{Type: "network", Action: "connect", Actor: events.Actor{ID: "n", Attributes: map[string]string{"container": "a"}}}, "a"},
		{events.Message{Type: "network", Action: "destroy", Actor: events.Actor{ID: "n"}}, ""},
		{events.Message{Type: "network", Action: "connect", Actor: events.Actor{ID: "n"}}, ""},
	}
	for _, tt := range tests {
		if got := subject(tt.m); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.m, got, tt.want)
		}
	}
}
