package web

import (
	"sync"
	"time"

	"weir/audit"
)

// window is how many seconds Activity remembers.
const window = 60

// Activity counts decisions by the second, for the last minute. The zero
// Activity is ready, and safe for concurrent use.
type Activity struct {
	mu      sync.Mutex
	seconds [window + 1]second // one more: the second that is not over
}

// A second is what happened in one.
type second struct {
	at      int64 // since 1970
	allowed int
	denied  int
	flows   int // connections that ended or were refused
}

// Count counts a batch of stored events. It does not keep the batch.
func (a *Activity) Count(batch []audit.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range batch {
		e := &batch[i]
		at := e.Time.Unix()
		s := &a.seconds[at%int64(len(a.seconds))]
		if s.at > at {
			continue // an event that is older than the window
		}
		if s.at < at {
			*s = second{at: at}
		}
		switch e.Verdict {
		case "allow":
			s.allowed++
		case "deny":
			s.denied++
		}
		if e.Type == audit.Connect {
			s.flows++
		}
	}
}

// last returns the seconds before now that are over, oldest first.
func (a *Activity) last(now time.Time) []second {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]second, window)
	for i := range list {
		at := now.Unix() - window + int64(i)
		list[i].at = at
		if s := a.seconds[at%int64(len(a.seconds))]; s.at == at {
			list[i] = s
		}
	}
	return list
}
