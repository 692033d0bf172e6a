package web

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"weir/audit"
)

// slowViewer opens a stream and reads nothing of it until it is called.
func (s *service) slowViewer() (end func()) {
	s.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.base, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := c.(*net.TCPConn).SetReadBuffer(1024); err != nil {
		s.t.Fatal(err)
	}
	cookie := s.logIn()
	fmt.Fprintf(c, "GET /events/stream HTTP/1.1\r\nHost: %s\r\nCookie: %s=%s\r\n\r\n", strings.TrimPrefix(s.base, "http://"), cookie.Name, cookie.Value)
	return func() { c.Close() }
}

// Whatever viewers do, recording goes on: the log holds its events for all of
// them together.
func TestViewersThatDoNotRead(t *testing.T) {
	s := newService(t)
	for range 5 {
		defer s.slowViewer()()
		s.clock.Advance(loginTime / 100) // another attempt
	}
	for i := range 4 * audit.QueueSize {
		if id := s.log.Record(audit.Event{Type: audit.Connect, Verdict: "deny", Host: "a.example", Reason: strings.Repeat("long ", 50)}); id == 0 {
			t.Fatalf("event %d was not recorded", i)
		}
	}
	s.stored()
}
