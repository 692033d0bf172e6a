package audit

import (
	"cmp"
	"context"
	"slices"
)

// Subscription follows a Log from a cursor on. Nothing is held for it and
// nothing waits for it: the Log keeps its last RingSize stored events for all
// viewers together, and a viewer that has fallen further behind reads what it
// missed from the store. It needs no closing. It must not be used by two
// goroutines at once.
type Subscription struct {
	log     *Log
	filter  Filter
	lagging bool
}

// Subscribe follows the events that f selects, beginning after f.Cursor. Begin
// at Last for the future only, at an id for everything since, and at zero for
// everything. f.Limit bounds what one Next returns; f.Newest is ignored.
func (l *Log) Subscribe(f Filter) *Subscription {
	f.Newest = false
	return &Subscription{log: l, filter: f}
}

// Next returns the next events, oldest first and at least one, waiting until
// there is one. When ctx ends first it returns ctx's error and nothing is
// lost: Next may be called again. After Shutdown it returns what is left, then
// ErrShutdown. Any other error is the store's, and Next may be called again.
func (s *Subscription) Next(ctx context.Context) ([]Event, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// done is looked at before the events: once it is closed nothing is added.
		ended := false
		select {
		case <-s.log.done:
			ended = true
		default:
		}
		events, news, err := s.step(ctx)
		if err != nil || len(events) > 0 {
			return events, err
		}
		if news == nil { // more to look at right now
			continue
		}
		if ended {
			return nil, ErrShutdown
		}
		select {
		case <-news:
		case <-s.log.done:
		case <-ctx.Done():
		}
	}
}

// Lagging reports whether the last events came from the store because the
// viewer had fallen behind what is kept in memory.
func (s *Subscription) Lagging() bool { return s.lagging }

// Cursor is the id up to which everything was looked at. A new Subscription
// with this cursor continues where this one stands.
func (s *Subscription) Cursor() int64 { return s.filter.Cursor }

// step looks at the next stretch of events. A nil news says that there may be
// more right now; otherwise news is closed when there is.
func (s *Subscription) step(ctx context.Context) (events []Event, news <-chan struct{}, err error) {
	l := s.log
	l.mu.Lock()
	stored := l.stored
	if s.filter.Cursor >= l.before {
		s.lagging = false
		at, found := slices.BinarySearchFunc(l.ring, s.filter.Cursor, func(e Event, id int64) int {
			return cmp.Compare(e.ID, id)
		})
		if found {
			at++
		}
		for ; at < len(l.ring) && len(events) < s.filter.Page(); at++ {
			if s.filter.Match(&l.ring[at]) {
				events = append(events, l.ring[at])
			}
			s.filter.Cursor = l.ring[at].ID
		}
		if s.filter.Cursor >= stored {
			news = l.news
		}
		l.mu.Unlock()
		return events, news, nil
	}
	l.mu.Unlock()

	s.lagging = true
	ctx, cancel := context.WithTimeout(ctx, storeDeadline)
	defer cancel()
	events, err = l.config.Events(ctx, s.filter)
	if err != nil {
		return nil, nil, err
	}
	if n := len(events); n > 0 {
		s.filter.Cursor = events[n-1].ID
	}
	if len(events) < s.filter.Page() {
		// The page was not full, so nothing else up to stored, which was read
		// before the page, satisfies the filter.
		s.filter.Cursor = max(s.filter.Cursor, stored)
	}
	return events, nil, nil
}
