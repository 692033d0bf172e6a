package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"testing"
	"time"
)

// BenchmarkRelayKeepAlive compares intercepted requests on a connection that
// is kept with the same over direct TLS; client and server do as little as
// they can, and "ratio" is relayed requests a second by direct ones.
func BenchmarkRelayKeepAlive(b *testing.B) {
	l := newRelayLab(b, 443, restPolicy)
	go func() {
		for range l.seen {
		}
	}()
	cert, err := l.server.Leaf(labHost)
	if err != nil {
		b.Fatal(err)
	}
	ln := tls.NewListener(listen(b), &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}})
	answer := append([]byte("HTTP/1.1 200 OK\r\nDate: Fri, 01 May 2026 12:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n"), bytes.Repeat([]byte("x"), 1024)...)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				br := bufio.NewReader(c)
				for {
					if _, err := readHead(br, 1<<16, func() {}); err != nil {
						c.Close()
						return
					}
					c.Write(answer)
				}
			}()
		}
	}()
	l.upstream(ln.Addr().String())
	request := []byte("GET /ok/a HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	one := func(addr string, root *CA, n int) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		roots := x509.NewCertPool()
		roots.AddCert(root.Certificate())
		t := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: labHost, NextProtos: []string{"http/1.1"}})
		br := bufio.NewReader(t)
		for range n {
			if _, err := t.Write(request); err != nil {
				b.Error(err)
				return
			}
			res, err := readHead(br, 1<<16, func() {})
			if err != nil || res[9:12] != "200" {
				b.Errorf("%q %v", res, err)
				return
			}
			if _, err := br.Discard(1024); err != nil {
				b.Error(err)
				return
			}
		}
	}
	// Enough connections to keep every core busy, as in a test of throughput.
	rounds := func(addr string, root *CA, n int) time.Duration {
		const connections = 16
		var all sync.WaitGroup
		begun := time.Now()
		for range connections {
			all.Go(func() { one(addr, root, n/connections+1) })
		}
		all.Wait()
		return time.Since(begun)
	}
	b.ReportAllocs()
	b.ResetTimer()
	relayed := rounds(l.addr, l.ca, b.N)
	b.StopTimer()
	direct := rounds(*l.up.Load(), l.server, b.N)
	b.ReportMetric(direct.Seconds()/relayed.Seconds(), "ratio")
	b.ReportMetric(float64(b.N)/relayed.Seconds(), "req/s")
}
