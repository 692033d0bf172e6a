package proxy

import "time"

// RelayLimits keep one container's inspected connections from using up the
// daemon. A zero field means its default.
type RelayLimits struct {
	// HeaderBytes is how long the head of a request or response may be, and
	// how long a trailer. Default 65536.
	HeaderBytes int
	// Fields is how many header fields a head may have. Default 256.
	Fields int
	// Requests is how many may be under way in all of a container's
	// connections. Default 16384.
	Requests int
	// Streams is how many may be under way in one HTTP/2 connection. Default 250.
	Streams int
	// Buffered is how many bytes of bodies and messages may be held at once to
	// be judged, by all connections together. Default 64 MiB.
	Buffered int64

	// Handshake is how long a TLS handshake may take, with either side.
	// Default 10 s.
	Handshake time.Duration
	// Head is how long a client may take for a head that it has begun.
	// Default 10 s.
	Head time.Duration
	// Stall is how long a client may let a body wait that it has begun to send
	// or to take, HTTP/1 only. Streams without end go on as long as something
	// moves; how long a connection may be silent altogether is Limits.Idle.
	// Default 10 min.
	Stall time.Duration
	// Gone is how long a request may stay unanswered before Weir begins to
	// watch whether its client still wants the answer, HTTP/1 only. Default 1 s.
	Gone time.Duration
}

func (l RelayLimits) withDefaults() RelayLimits {
	fill := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	fill(&l.HeaderBytes, 64<<10)
	fill(&l.Fields, 256)
	fill(&l.Requests, 16384)
	fill(&l.Streams, 250)
	if l.Buffered <= 0 {
		l.Buffered = 64 << 20
	}
	wait(&l.Handshake, 10*time.Second)
	wait(&l.Head, 10*time.Second)
	wait(&l.Stall, 10*time.Minute)
	wait(&l.Gone, time.Second)
	return l
}
