package dnsmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weir/audit"
)

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func frame(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
}

func receive(t *testing.T, c net.Conn) *dns.Msg {
	t.Helper()
	raw, err := readFrame(c, make([]byte, maxMessage))
	m := new(dns.Msg)
	if err == nil {
		err = m.Unpack(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestPipeliningByteByByte(t *testing.T) {
	a := newAuthority(t, records(t, "www.ok.test. 60 IN A 203.0.113.7"))
	s := newShim(t, a.addr, nil)
	c := dial(t, s.addr)
	var stream []byte
	want := map[uint16]int{}
	for i := range uint16(30) {
		name, rcode := "www.ok.test.", dns.RcodeSuccess
		if i%3 == 0 {
			name, rcode = fmt.Sprintf("d%d.evil.test.", i), dns.RcodeNameError
		}
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Id = i
		want[i] = rcode
		stream = append(stream, frame(t, m)...)
	}
	go func() {
		for _, b := range stream {
			if _, err := c.Write([]byte{b}); err != nil {
				t.Error(err)
				return
			}
		}
		c.(*net.TCPConn).CloseWrite() // everything asked is still answered
	}()
	for range 30 {
		m := receive(t, c)
		rcode, ok := want[m.Id]
		if !ok || m.Rcode != rcode {
			t.Errorf("id %d: %s", m.Id, dns.RcodeToString[m.Rcode])
		}
		delete(want, m.Id)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the last answer: %v", err)
	}
	for _, q := range a.questions() {
		if strings.Contains(q.Name, "evil") {
			t.Errorf("upstream was asked for %s", q.Name)
		}
	}
	if n := len(s.recorded(audit.DNS)); n != 30 {
		t.Errorf("%d events", n)
	}
}

// TestSlowNameHoldsUpNobody: answers come as they are ready.
func TestSlowNameHoldsUpNobody(t *testing.T) {
	release := make(chan struct{})
	answer := records(t, "slow.ok.test. 60 IN A 203.0.113.1", "fast.ok.test. 60 IN A 203.0.113.2")
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Name == "slow.ok.test." {
			<-release
		}
		answer(w, q)
	})
	s := newShim(t, a.addr, func(s *Server) { s.Upstream.Timeout = time.Minute })
	c := dial(t, s.addr)
	for _, name := range []string{"slow.ok.test.", "fast.ok.test."} {
		if _, err := c.Write(frame(t, new(dns.Msg).SetQuestion(name, dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	if m := receive(t, c); m.Question[0].Name != "fast.ok.test." {
		t.Errorf("first answer: %v", m)
	}
	close(release)
	if m := receive(t, c); m.Question[0].Name != "slow.ok.test." {
		t.Errorf("second answer: %v", m)
	}
}

func TestInFlightPerConnectionIsBounded(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 12)
	var mu sync.Mutex
	most, now := 0, 0
	answer := records(t)
	a := newAuthority(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		arrived <- struct{}{}
		<-release
		mu.Lock()
		now--
		mu.Unlock()
		answer(w, q)
	})
	s := newShim(t, a.addr, func(s *Server) {
		s.Upstream.Timeout = time.Minute
		s.Limits.PerConnection = 4
	})
	c := dial(t, s.addr)
	for i := range 12 {
		if _, err := c.Write(frame(t, new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.ok.test.", i), dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		<-arrived
	}
	close(release)
	for range 12 {
		receive(t, c)
	}
	mu.Lock()
	defer mu.Unlock()
	if most > 4 {
		t.Errorf("%d queries of one connection at a time", most)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	a := newAuthority(t, records(t))
	s := newShim(t, a.addr, func(s *Server) { s.Limits.Connections = 2 })
	query := frame(t, new(dns.Msg).SetQuestion("evil.test.", dns.TypeA))
	for range 2 {
		c := dial(t, s.addr)
		if _, err := c.Write(query); err != nil {
			t.Fatal(err)
		}
		receive(t, c)
	}
	third := dial(t, s.addr)
	if n, err := third.Read(make([]byte, 1)); err == nil {
		t.Errorf("a third connection got %d bytes", n)
	}
	e := s.recorded(audit.Limit)
	if len(e) != 1 || e[0].Verdict != "deny" || e[0].ContainerName != "web" || !strings.Contains(e[0].Reason, "connections") {
		t.Errorf("events %+v", e)
	}
}

func TestOverlongFrameEndsTheConnection(t *testing.T) {
	s := newShim(t, newAuthority(t, records(t)).addr, nil)
	c := dial(t, s.addr)
	if _, err := c.Write([]byte{0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}
