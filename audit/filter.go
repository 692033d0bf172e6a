package audit

import (
	"strings"
	"time"
)

// Limits on how many events one query returns.
const (
	DefaultLimit = 100
	MaxLimit     = 10_000
)

// Filter selects events. The zero Filter selects all of them, oldest first.
// Conditions are combined with and; an empty one holds for every event.
type Filter struct {
	Container string    // id or name, literally
	Verdict   string    // allow or deny
	Type      Type      //
	Host      string    // name or address, literally, case ignored
	SessionID string    //
	Since     time.Time // events with Time at or after it
	// Cursor is the id of the last event seen: the answer begins with the one
	// after it, in the order asked for. Zero begins at the beginning.
	Cursor int64
	// Newest asks for the newest first.
	Newest bool
	// Limit bounds the number of events of one answer. Zero is DefaultLimit,
	// above MaxLimit is MaxLimit.
	Limit int
}

// Page is the number of events that one answer to f holds at most.
func (f Filter) Page() int {
	switch {
	case f.Limit <= 0:
		return DefaultLimit
	case f.Limit > MaxLimit:
		return MaxLimit
	}
	return f.Limit
}

// Match reports whether e satisfies f's conditions. The cursor counts as one,
// the limit does not.
func (f Filter) Match(e *Event) bool {
	switch {
	case f.Cursor != 0 && !f.Newest && e.ID <= f.Cursor,
		f.Cursor != 0 && f.Newest && e.ID >= f.Cursor,
		f.Container != "" && f.Container != e.ContainerID && f.Container != e.ContainerName,
		f.Verdict != "" && f.Verdict != e.Verdict,
		f.Type != "" && f.Type != e.Type,
		f.Host != "" && !asciiEqualFold(f.Host, e.Host) && !asciiEqualFold(f.Host, e.Address),
		f.SessionID != "" && f.SessionID != e.SessionID,
		!f.Since.IsZero() && e.Time.Before(f.Since):
		return false
	}
	return true
}

// asciiEqualFold ignores the case of ASCII letters only, which is what SQLite's
// NOCASE does: a live stream and a stored page must select the same events.
func asciiEqualFold(a, b string) bool {
	return len(a) == len(b) && asciiLower(a) == asciiLower(b)
}

func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
