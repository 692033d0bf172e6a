package dnsmap

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Against forged answers: every query has a random id and leaves from one of
// a few sockets with a random port each, connected to the server, so that the
// kernel drops what comes from anywhere else. A socket is replaced after
// socketQueries queries, or once it got socketStrays datagrams that answer
// nothing: somebody may be guessing.
const (
	socketsPerServer = 4
	socketQueries    = 4096
	socketStrays     = 100
	socketWaiting    = 1024 // queries under way on one socket
	tcpPerServer     = 32   // connections for truncated answers, under way to one server
)

var (
	errTimeout = errors.New("no answer in time")
	errSocket  = errors.New("the socket to the server failed")
	errBusy    = errors.New("too many queries under way")
)

// server is one upstream server and how it fares.
type server struct {
	addr netip.AddrPort
	tcp  chan struct{} // one per TCP connection; tcpPerServer

	mu       sync.Mutex
	sockets  [socketsPerServer]*socket
	next     int
	closed   bool
	failures int
	down     time.Time // asked only after the others until then
}

// socket carries many queries at a time to one server.
type socket struct {
	conn net.Conn

	mu      sync.Mutex
	waiting map[uint16]*waiter
	left    int
	strays  int
	closed  bool
}

type waiter struct {
	question []byte
	reply    chan []byte // 1; closed when the socket failed
}

// exchange asks over UDP, and over TCP when the answer was truncated. question
// is the packed question section.
func (s *server) exchange(question []byte, timeout time.Duration) ([]byte, error) {
	reply, err := s.overUDP(question, timeout)
	if err == nil && reply[2]&bitTruncated != 0 {
		reply, err = s.overTCP(question, timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("dns server %s: %w", s.addr, err)
	}
	return reply, nil
}

func (s *server) overUDP(question []byte, timeout time.Duration) ([]byte, error) {
	sock, err := s.socket()
	if err != nil {
		return nil, err
	}
	w := &waiter{question, make(chan []byte, 1)}
	id, err := sock.register(w)
	if err != nil {
		return nil, err
	}
	defer sock.forget(id)
	if _, err := sock.conn.Write(appendQuery(nil, id, question)); err != nil {
		return nil, err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case reply, ok := <-w.reply:
		if !ok {
			return nil, errSocket
		}
		return reply, nil
	case <-timer.C:
		return nil, errTimeout
	}
}

func (s *server) overTCP(question []byte, timeout time.Duration) ([]byte, error) {
	select {
	case s.tcp <- struct{}{}:
		defer func() { <-s.tcp }()
	default:
		return nil, errBusy
	}
	conn, err := net.DialTimeout("tcp", s.addr.String(), timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	id := randomID()
	query := appendQuery(make([]byte, 2), id, question)
	binary.BigEndian.PutUint16(query, uint16(len(query)-2))
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, err
	}
	if !answers(reply, question) || binary.BigEndian.Uint16(reply) != id {
		return nil, fmt.Errorf("%w: it answers another question", errBadAnswer)
	}
	return reply, nil
}

// socket returns the next of the server's sockets in turn, opening it when needed.
func (s *server) socket() (*socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errSocket
	}
	s.next = (s.next + 1) % socketsPerServer
	if sock := s.sockets[s.next]; sock != nil && sock.usable() {
		return sock, nil
	}
	conn, err := net.Dial("udp", s.addr.String())
	if err != nil {
		return nil, err
	}
	sock := &socket{conn: conn, waiting: map[uint16]*waiter{}, left: socketQueries}
	s.sockets[s.next] = sock
	go sock.read()
	return sock, nil
}

func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for i, sock := range s.sockets {
		if sock != nil {
			sock.fail()
			s.sockets[i] = nil
		}
	}
}

// worked and failed keep the server's health: after a failure it is asked
// last for a time that doubles from one second to 30.
func (s *server) worked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures, s.down = 0, time.Time{}
}

func (s *server) failed(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = now.Add(min(30*time.Second, time.Second<<min(s.failures, 5)))
	s.failures++
}

func (s *server) isDown(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down.After(now)
}

// usable says whether the socket takes another query. One that does not is
// left to those that wait on it and closes after the last.
func (k *socket) usable() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left <= 0 && len(k.waiting) == 0 {
		k.shut()
	}
	return !k.closed && k.left > 0
}

func (k *socket) register(w *waiter) (uint16, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return 0, errSocket
	}
	if len(k.waiting) >= socketWaiting {
		return 0, errBusy
	}
	k.left--
	for {
		id := randomID()
		if k.waiting[id] == nil {
			k.waiting[id] = w
			return id, nil
		}
	}
}

func (k *socket) forget(id uint16) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.waiting, id)
	if k.left <= 0 && len(k.waiting) == 0 {
		k.shut()
	}
}

// read hands answers to those who wait for them, until the socket fails.
func (k *socket) read() {
	defer k.fail()
	buf := make([]byte, maxUDP)
	for {
		n, err := k.conn.Read(buf)
		if err != nil {
			return // closed, or the server refused: the waiting try another one at once
		}
		if !k.deliver(buf[:n]) {
			return
		}
	}
}

// deliver returns false when there were too many datagrams that answer nothing.
func (k *socket) deliver(m []byte) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(m) >= headerSize {
		id := binary.BigEndian.Uint16(m)
		if w := k.waiting[id]; w != nil && answers(m, w.question) {
			delete(k.waiting, id)
			w.reply <- bytes.Clone(m)
			return true
		}
	}
	k.strays++
	return k.strays < socketStrays
}

func (k *socket) fail() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shut()
	for id, w := range k.waiting {
		close(w.reply)
		delete(k.waiting, id)
	}
}

// shut needs k.mu. Nothing can be done about an error of Close.
func (k *socket) shut() {
	if !k.closed {
		k.closed = true
		k.conn.Close()
	}
}

// answers says whether m is an answer to this very question.
func answers(m, question []byte) bool {
	if len(m) < headerSize+len(question) || m[2]&bitResponse == 0 || m[2]>>3&15 != dns.OpcodeQuery || binary.BigEndian.Uint16(m[4:]) != 1 {
		return false
	}
	for i, c := range question {
		if lower(m[headerSize+i]) != lower(c) {
			return false
		}
	}
	return true
}

// appendQuery packs a query with recursion desired and an OPT record without
// options: nothing of the client's own EDNS goes upstream.
func appendQuery(out []byte, id uint16, question []byte) []byte {
	out = binary.BigEndian.AppendUint16(out, id)
	out = append(out, bitRD, 0, 0, 1, 0, 0, 0, 0, 0, 1)
	out = append(out, question...)
	return appendOPT(out, 0, "")
}

func randomID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}
