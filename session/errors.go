package session

import "fmt"

// Kind says what sort of answer an error deserves.
type Kind int

const (
	// Invalid: the request itself is wrong and has to be changed.
	Invalid Kind = iota + 1
	// NotFound: what it names is not there.
	NotFound
	// Conflict: it contradicts what is there.
	Conflict
	// Unavailable: something that is needed does not answer; try again later.
	Unavailable
)

// Error is an error that says whose turn it is. Its text names what was wrong
// and what to do.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func invalid(format string, args ...any) error {
	return &Error{Invalid, fmt.Errorf(format, args...)}
}
