package rules

import "time"

// Live reports whether the session still has a say at now: it was not ended
// and its expiry lies in the future. An expiry equal to now has passed.
func (s *SessionState) Live(now time.Time) bool {
	return !s.Ended && s.Expires.After(now)
}

// Current returns the session whose rules and flags count for a container:
// of its live sessions the one that was created last, which is the one with
// the highest Seq. It returns nil when there is none. The result points into
// ss.
//
// A session names its container literally, by full id or by name.
func Current(ss []SessionState, c Container, now time.Time) *SessionState {
	var current *SessionState
	for i := range ss {
		s := &ss[i]
		if s.Container == "" || s.Container != c.ID && s.Container != c.Name {
			continue
		}
		if s.Live(now) && (current == nil || s.Seq > current.Seq) {
			current = s
		}
	}
	return current
}
