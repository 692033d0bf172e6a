package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Bounds of a Log. They are not settings: what they trade is memory against
// the number of writes, and both are small.
const (
	// QueueSize is how many recorded events may wait to be stored. When so
	// many wait, Record waits.
	QueueSize = 4096
	// BatchSize is the largest number of events of one append.
	BatchSize = 256
	// BatchDelay is how long an event waits for others to share its append.
	BatchDelay = 50 * time.Millisecond
	// RingSize is how many stored events are kept in memory for viewers.
	RingSize = 1024

	// A failed append is tried again after this long, doubled each time.
	retryFirst = 50 * time.Millisecond
	retryLast  = 5 * time.Second
	// One append or one page must be done within this time.
	storeDeadline = 30 * time.Second
)

// ErrShutdown says that a Log takes no more events, or has no more to give.
var ErrShutdown = errors.New("the audit log is shut down")

// Config is what a Log needs.
type Config struct {
	// Append stores a batch, all of it or nothing, in order. Required. A batch
	// is at most BatchSize events and is not kept after Append returns.
	Append func(ctx context.Context, batch []Event) error
	// Events returns stored events, at most f.Page() of them. Required for
	// Subscribe. Given f.Newest false it must return the oldest first.
	Events func(ctx context.Context, f Filter) ([]Event, error)
	// Last is the largest id in the store.
	Last int64
	// Now is the clock. Nil is time.Now.
	Now func() time.Time
	// Failed is told of every append that failed; the batch is tried again.
	// Nil: not told. It must not record events.
	Failed func(error)
}

// Log is the one way into the audit trail. It is safe for concurrent use.
type Log struct {
	config Config
	wake   chan struct{} // capacity 1: the queue has work for the writer
	closed chan struct{} // closed by Shutdown
	done   chan struct{} // closed when Serve has returned
	abort  context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	room    *sync.Cond // the queue got shorter, or the log was shut down
	queue   []Event
	last    int64 // last id given out
	lost    int   // events left unwritten by an aborted shutdown
	serving bool
	closing bool

	// What viewers read: the last stored events, oldest first, and the id
	// before the first of them. news is closed and replaced at every append.
	ring   []Event
	before int64
	stored int64
	news   chan struct{}
}

// NewLog returns a Log. It stores nothing until Serve runs.
func NewLog(c Config) *Log {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Failed == nil {
		c.Failed = func(error) {}
	}
	l := &Log{
		config: c,
		wake:   make(chan struct{}, 1),
		closed: make(chan struct{}),
		done:   make(chan struct{}),
		last:   c.Last,
		before: c.Last,
		stored: c.Last,
		news:   make(chan struct{}),
	}
	l.room = sync.NewCond(&l.mu)
	l.abort, l.cancel = context.WithCancel(context.Background())
	return l
}

// Record gives e its id, and a time if it has none, and queues it to be
// stored. It returns the id at once unless QueueSize events wait already: then
// it waits until the store has caught up, because a flow that waits is better
// than one that nobody will know of. It waits no longer than until Shutdown.
//
// After Shutdown, Record returns 0: the event is not recorded, and what it is
// about must not go ahead.
func (l *Log) Record(e Event) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) >= QueueSize && !l.closing {
		l.room.Wait()
	}
	if l.closing {
		return 0
	}
	now := l.config.Now()
	// Nothing is recorded before it happened; the store relies on it to find
	// events by time through their ids.
	if e.Time.IsZero() || e.Time.After(now) {
		e.Time = now
	}
	// Microseconds and UTC are what the store keeps; a viewer sees the same
	// event whether it comes from memory or from the store.
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	// The id is given under the lock that also orders the queue, so that ids
	// are stored in increasing order.
	l.last = max(l.last+1, now.UnixMicro())
	e.ID = l.last
	l.queue = append(l.queue, e)
	if n := len(l.queue); n == 1 || n == BatchSize {
		select {
		case l.wake <- struct{}{}:
		default: // awake already
		}
	}
	return e.ID
}

// Last is the id of the newest event that is stored and visible to viewers.
func (l *Log) Last() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stored
}

// Waiting is the number of recorded events that are not stored yet.
func (l *Log) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// Serve stores what is recorded. It returns nil when Shutdown was called and
// everything is stored, and an error with the number of lost events when
// Shutdown gave up first. It must be called once.
func (l *Log) Serve() error {
	l.mu.Lock()
	if l.serving {
		l.mu.Unlock()
		return errors.New("the audit log is being served already")
	}
	l.serving = true
	l.mu.Unlock()
	defer close(l.done)
	for l.wait() {
		if err := l.write(); err != nil {
			return err
		}
	}
	return nil
}

// wait returns when a batch is due: it is full, its first event has waited
// BatchDelay, or the log is being shut down. False: shut down and empty.
func (l *Log) wait() bool {
	for l.Waiting() == 0 {
		select {
		case <-l.wake:
		case <-l.closed:
			// Nothing is queued after closing is set, so this is final.
			return l.Waiting() > 0
		}
	}
	due := time.NewTimer(BatchDelay)
	defer due.Stop()
	for l.Waiting() < BatchSize {
		select {
		case <-l.wake:
		case <-due.C:
			return true
		case <-l.closed:
			return true
		}
	}
	return true
}

// write stores the batch at the head of the queue, trying until it is stored
// or the shutdown is aborted, and shows it to the viewers. The batch stays in
// the queue until it is stored: the queue bounds everything that is in memory.
func (l *Log) write() error {
	l.mu.Lock()
	batch := l.queue[:min(len(l.queue), BatchSize):min(len(l.queue), BatchSize)]
	l.mu.Unlock()

	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		ctx, cancel := context.WithTimeout(l.abort, storeDeadline)
		err := l.config.Append(ctx, batch)
		cancel()
		if err == nil {
			break
		}
		l.config.Failed(err)
		select {
		case <-time.After(pause):
		case <-l.abort.Done():
			return l.giveUp(err)
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring = append(l.ring, batch...)
	if over := len(l.ring) - RingSize; over > 0 {
		l.before = l.ring[over-1].ID
		l.ring = append(l.ring[:0], l.ring[over:]...)
	}
	l.stored = batch[len(batch)-1].ID
	// Copied down rather than sliced off, so that the queue's memory is bounded.
	l.queue = append(l.queue[:0], l.queue[len(batch):]...)
	l.room.Broadcast()
	close(l.news)
	l.news = make(chan struct{})
	return nil
}

func (l *Log) giveUp(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = len(l.queue)
	l.queue = nil
	return fmt.Errorf("%d audit events were not stored before the shutdown had to end: %w", l.lost, err)
}

// Shutdown refuses further events and returns when everything recorded is
// stored. When ctx ends first, what is left is given up, and the error says
// how many events that is. Call it after the flows have ended.
func (l *Log) Shutdown(ctx context.Context) error {
	l.mu.Lock()
	if !l.closing {
		l.closing = true
		close(l.closed)
		l.room.Broadcast()
	}
	idle := !l.serving && len(l.queue) == 0
	l.mu.Unlock()
	if idle {
		return nil
	}

	select {
	case <-l.done:
	case <-ctx.Done():
		l.mu.Lock()
		serving, waiting := l.serving, len(l.queue)
		l.mu.Unlock()
		if !serving {
			return fmt.Errorf("%d audit events were not stored: the log was never served: %w", waiting, ctx.Err())
		}
		l.cancel()
		<-l.done // Append got a cancelled context; storeDeadline bounds it in any case
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost > 0 {
		return fmt.Errorf("%d audit events were not stored: %w", l.lost, ctx.Err())
	}
	return nil
}
