package container

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// Kind says what an [Event] tells.
type Kind string

const (
	// Resync: Containers is the full list of one runtime, stopped containers
	// too. It comes first on every connection to the runtime, again every
	// minute, and whenever events may have been lost.
	Resync Kind = "resync"
	// Started: Container runs, in a namespace that is new unless it shares one.
	Started Kind = "started"
	// Stopped: the main process ended. Container has ID, Name and Image only.
	Stopped Kind = "stopped"
	// Removed: the container is no more. Container as with Stopped.
	Removed Kind = "removed"
	// Renamed: Container.Name is new, OldName was the name before.
	Renamed Kind = "renamed"
	// NetworkChanged: a running container was connected to or disconnected
	// from a network; Container.Networks is what it is now. Docker tells some
	// changes twice.
	NetworkChanged Kind = "network_changed"
	// Disconnected: the runtime ended the conversation, because of Err; its
	// containers may go on running. A Resync follows when it is back.
	Disconnected Kind = "disconnected"
)

// Event is something that happened to a container or a runtime.
type Event struct {
	Kind       Kind
	Runtime    string // socket
	Container  Container
	Containers []Container // of Resync
	OldName    string      // of Renamed
	Err        error       // of Disconnected
}

const (
	// eventQueue bounds the events that wait for the handler. When it is full,
	// further ones are dropped and a Resync makes good for them.
	eventQueue  = 1024
	resyncEvery = time.Minute
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 5 * time.Second
)

// Watch calls the handler for everything that happens to the containers of all
// runtimes, one call at a time, until ctx ends; it returns ctx's error, and
// the handler is not called any more. Runtimes that are not there, end or
// start again are tried again after 100 ms to 5 s.
//
// An event carries the container as it is when the handler is called: of a
// container that started and is gone already, only Stopped or Removed is told;
// one that restarts quickly may be Started twice in the same state. The order
// of events of one container is the runtime's.
func (r *Runtimes) Watch(ctx context.Context, handler func(Event)) error {
	var mu sync.Mutex
	emit := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() == nil {
			handler(e)
		}
	}
	var wg sync.WaitGroup
	for _, rt := range r.all {
		wg.Go(func() { rt.watch(ctx, emit) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

// watch follows one runtime through its comings and goings.
func (rt *runtime) watch(ctx context.Context, emit func(Event)) {
	backoff := minBackoff
	for ctx.Err() == nil {
		if rt.isLive() {
			synced, err := rt.follow(ctx, emit)
			if synced {
				backoff = minBackoff
				emit(Event{Kind: Disconnected, Runtime: rt.socket, Err: err})
			}
		}
		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		backoff = min(2*backoff, maxBackoff)
	}
}

// isLive: the socket exists and is not another spelling of an earlier one.
func (rt *runtime) isLive() bool {
	for _, other := range rt.owner.live() {
		if other == rt {
			return true
		}
	}
	return false
}

// follow opens the event stream and stays with it until it ends. synced says
// whether it got as far as the first Resync.
func (rt *runtime) follow(ctx context.Context, emit func(Event)) (synced bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cli, err := rt.client()
	if err != nil {
		return false, err
	}
	// The runtime answers before it subscribes us; asking for the events since
	// a moment ago closes that gap.
	since := time.Now()
	filters := client.Filters{}.Add("type", "container", "network")
	connecting := time.AfterFunc(rt.owner.timeout(), cancel)
	stream := cli.Events(ctx, client.EventsListOptions{Since: fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()), Filters: filters})
	if !connecting.Stop() {
		return false, &UnreachableError{Socket: rt.socket, Timeout: rt.owner.timeout(), Err: errSlow}
	}

	queue := make(chan events.Message, eventQueue)
	lost := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go rt.read(stream.Messages, stream.Err, queue, lost, ended)
	rt.watching.Store(true)
	defer rt.watching.Store(false)
	rt.touch("")
	defer rt.touch("")

	running := map[string]bool{} // what the handler knows to run
	if err := rt.resync(ctx, emit, running); err != nil {
		rt.drop(cli)
		return false, err
	}
	tick := time.NewTicker(resyncEvery)
	defer tick.Stop()
	for {
		err := error(nil)
		select {
		case <-ctx.Done():
			return true, context.Cause(ctx)
		case m := <-queue:
			err = rt.tell(ctx, m, emit, running)
		case <-lost:
			rt.touch("")
			err = rt.resync(ctx, emit, running)
		case <-tick.C:
			err = rt.resync(ctx, emit, running)
		case err = <-ended:
			err = &UnreachableError{Socket: rt.socket, Timeout: rt.owner.timeout(), Err: fmt.Errorf("event stream ended: %w", err)}
		}
		if err != nil {
			rt.drop(cli)
			return true, err
		}
	}
}

// read moves events from the stream to the queue and never waits for the
// handler: a runtime drops subscribers' events when they are slow to read.
func (rt *runtime) read(messages <-chan events.Message, ends <-chan error, queue chan<- events.Message, lost chan<- struct{}, ended chan<- error) {
	for {
		select {
		case m := <-messages:
			id := subject(m)
			if id == "" {
				continue
			}
			rt.touch(id)
			select {
			case queue <- m:
			default:
				select {
				case lost <- struct{}{}:
				default: // a resync is asked for already
				}
			}
		case err := <-ends:
			ended <- err
			return
		}
	}
}

// subject is the id of the container that an event concerns, "" if the event
// tells nothing that matters here. Podman says died and remove.
func subject(m events.Message) string {
	switch m.Action {
	case events.ActionStart, events.ActionDie, "died", events.ActionDestroy, events.ActionRemove, events.ActionRename:
		if m.Type == events.ContainerEventType {
			return m.Actor.ID
		}
	case events.ActionConnect, events.ActionDisconnect:
		if m.Type == events.NetworkEventType {
			return m.Actor.Attributes["container"]
		}
	}
	return ""
}

func (rt *runtime) resync(ctx context.Context, emit func(Event), running map[string]bool) error {
	all, err := rt.containers(ctx)
	if err != nil {
		return err
	}
	clear(running)
	for _, c := range all {
		if c.Running {
			running[c.ID] = true
		}
	}
	emit(Event{Kind: Resync, Runtime: rt.socket, Containers: all})
	return nil
}

// tell turns one event of the runtime into ours.
func (rt *runtime) tell(ctx context.Context, m events.Message, emit func(Event), running map[string]bool) error {
	id := subject(m)
	e := Event{Runtime: rt.socket, Container: Container{
		ID: id, Runtime: rt.socket,
		Name: m.Actor.Attributes["name"], Image: m.Actor.Attributes["image"],
	}}
	switch m.Action {
	case events.ActionDie, "died":
		e.Kind = Stopped
		delete(running, id)
		emit(e)
		return nil
	case events.ActionDestroy, events.ActionRemove:
		e.Kind = Removed
		delete(running, id)
		emit(e)
		return nil
	case events.ActionStart:
		e.Kind = Started
	case events.ActionRename:
		e.Kind = Renamed
		e.OldName = strings.TrimPrefix(m.Actor.Attributes["oldName"], "/")
	default:
		// Docker connects a container's networks before it says that the
		// container started, and disconnects them after its end.
		if !running[id] {
			return nil
		}
		e.Kind = NetworkChanged
	}
	c, err := rt.inspect(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil // gone again; its end follows in the queue
	case err != nil:
		return err
	case !c.Running && e.Kind != Renamed:
		return nil // stopped again; its end follows in the queue
	}
	if c.Running {
		running[id] = true
	}
	e.Container = c
	emit(e)
	return nil
}
