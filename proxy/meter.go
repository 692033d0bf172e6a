package proxy

import (
	"time"

	"weir/rules"
)

// A Meter is told how long things took, on the data path and from any
// goroutine: its methods must neither wait nor allocate.
type Meter interface {
	// Decided: the policy was asked, and how long it took to answer; finding
	// out more facts is not in it.
	Decided(stage rules.Stage, took time.Duration)
	// Handshaken: TLS was opened with one side of an inspected connection, or
	// was not. What the client's side waits for the server's is not in its time.
	Handshaken(side Side, took time.Duration, done bool)
}

// Side is one end of an inspected connection.
type Side uint8

// The sides.
const (
	ClientSide Side = iota // the program in the container
	ServerSide             // whom it wants to reach
)

// String returns "client" or "server".
func (s Side) String() string {
	if s == ClientSide {
		return "client"
	}
	return "server"
}

// Decide asks p about r and tells m, which may be nil, how long it took.
func Decide(m Meter, p *rules.Policy, r rules.Request) rules.Decision {
	if m == nil {
		return p.Decide(r)
	}
	began := time.Now()
	d := p.Decide(r)
	m.Decided(r.Stage, time.Since(began))
	return d
}

// shaken tells the meter of a handshake that began so long ago.
func (r *Relay) shaken(side Side, took time.Duration, err error) {
	if r.Meter != nil {
		r.Meter.Handshaken(side, took, err == nil)
	}
}

// A Level is how much of a limit is in use.
type Level struct {
	Limit     string // its name: "dialing"
	Now, Most int64
}

// A Load is what a container has under way.
type Load struct {
	Levels []Level
	// BytesIn and BytesOut are what the connections and associations that are
	// open now have moved so far.
	BytesIn, BytesOut int64
}

// Load says what is under way.
func (s *Server) Load() Load {
	s.init()
	g := &s.gauges
	load := Load{Levels: []Level{
		g.connections.level("connections"), g.dialing.level("dialing"), g.peeking.level("first_messages"),
		g.associations.level("udp_associations"), g.remembered.level("udp_refused"), g.datagrams.level("udp_datagrams"),
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.flows {
		load.BytesIn += p.base().moved.in.Load()
		load.BytesOut += p.base().moved.out.Load()
	}
	return load
}

// Levels says how much is in use of the limits of inspected connections.
func (r *Relay) Levels() []Level {
	r.init()
	return []Level{r.requests.level("requests"), r.buffered.level("buffered_bytes")}
}

func (g *gauge) level(limit string) Level { return Level{limit, g.now.Load(), g.most} }

// Open is how many connections and associations are open now.
func (s *Server) Open() int {
	s.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flows)
}
