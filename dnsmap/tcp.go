package dnsmap

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"weir/rules"
)

// tcpTimeout is how long a connection may take for one whole query, from the
// answer before it, and for taking one answer (RFC 7766, 6.2.3: in the order
// of seconds).
const tcpTimeout = 10 * time.Second

func (s *Server) serveTCP(ctx context.Context, g *errgroup.Group, ln net.Listener) error {
	open := make(chan struct{}, s.limits.Connections)
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if passing(err) {
			pause(ctx)
			continue
		}
		if err != nil {
			return err
		}
		select {
		case open <- struct{}{}:
		default:
			s.hit(limitConnections, s.now())
			c.Close()
			continue
		}
		g.Go(func() error {
			defer func() { <-open }()
			s.serveConn(ctx, c)
			return nil
		})
	}
}

// serveConn answers the queries of one connection. Answers go out as they come
// (RFC 7766, 6.2.1.1), so that a slow name does not hold up the others.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	s.sessions.Store(c, nil)
	defer s.sessions.Delete(c)
	defer c.Close()
	if ctx.Err() != nil {
		return
	}
	// Every query that was read owns a place until its answer is written, so
	// nobody ever blocks on replies.
	places := make(chan struct{}, s.limits.PerConnection)
	replies := make(chan []byte, s.limits.PerConnection)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		writeReplies(c, replies, places, stop)
	}()
	err := s.readQueries(ctx, c, places, replies)
	if errors.Is(err, io.EOF) { // the client may have shut down only its side
		drain(ctx, places)
	}
	close(stop)
	<-stopped
}

// drain waits until all answers are written.
func drain(ctx context.Context, places chan<- struct{}) {
	for range cap(places) {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) readQueries(ctx context.Context, c net.Conn, places chan struct{}, replies chan<- []byte) error {
	r := bufio.NewReaderSize(c, maxQuery)
	buf := make([]byte, maxQuery)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := c.SetReadDeadline(time.Now().Add(tcpTimeout)); err != nil {
			<-places
			return err
		}
		m, err := readFrame(r, buf)
		if err != nil {
			<-places
			return err
		}
		reply, q := s.respond(ctx, m, rules.TCP, nil)
		switch {
		case q != nil:
			s.forward(q, rules.TCP, func(reply []byte) { replies <- reply })
		case len(reply) > 0:
			replies <- reply
		default:
			<-places
		}
	}
}

// writeReplies writes until stop is closed. After an error it only makes
// places free.
func writeReplies(c net.Conn, replies <-chan []byte, places <-chan struct{}, stop <-chan struct{}) {
	failed := false
	for {
		select {
		case <-stop:
			return
		case reply := <-replies:
			if !failed && writeFrame(c, reply) != nil {
				failed = true
				c.Close()
			}
			<-places
		}
	}
}

// readFrame reads one message with its length before it (RFC 1035, 4.2.2).
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, buf[:2]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(buf))
	if size > len(buf) {
		return nil, errMalformed
	}
	_, err := io.ReadFull(r, buf[:size])
	return buf[:size], err
}

func writeFrame(c net.Conn, m []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(tcpTimeout)); err != nil {
		return err
	}
	// Length and message in one segment (RFC 7766, 8).
	_, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(m)+2), uint16(len(m))), m...))
	return err
}
