package bench

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// serveTLS answers with as many KB as the last part of the path says.
func serveTLS(addr, file string) {
	cert, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		fail(err)
	}
	l, err := tls.Listen("tcp", addr, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		fail(err)
	}
	small, large := bytes.Repeat([]byte("x"), 1<<10), bytes.Repeat([]byte("x"), 64<<10)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := small
		if strings.HasSuffix(r.URL.Path, "/64") {
			body = large
		}
		w.Write(body)
	}))
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// requestTLS does a job and prints p50 and p99 in µs, then requests a second.
// "rest1" and "rest64" are requests for 1 and 64 KB on one connection, "tls"
// connections with one request each, "refused" a request that nobody should
// let pass; its status is printed.
func requestTLS(addr, job string, n int, roots string) {
	text, err := os.ReadFile(roots)
	if err != nil {
		fail(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		fail(roots, "has no certificate")
	}
	transport := &http.Transport{
		Dial:               func(_, _ string) (net.Conn, error) { return net.Dial("tcp", addr) },
		TLSClientConfig:    &tls.Config{RootCAs: pool, ServerName: serverName},
		DisableCompression: true, DisableKeepAlives: job == "tls", MaxConnsPerHost: 1,
	}
	c := http.Client{Transport: transport, Timeout: patience}
	ask := func(method, path string) int {
		r, err := http.NewRequest(method, "https://"+serverName+path, nil)
		if err != nil {
			fail(err)
		}
		answer, err := c.Do(r)
		if err != nil {
			fail(err)
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			fail(err)
		}
		return answer.StatusCode
	}
	if job == "refused" {
		fmt.Println(ask("DELETE", "/ok/1"))
		return
	}
	path := "/ok/1"
	if job == "rest64" {
		path = "/ok/64"
	}
	ask("GET", path) // certificates are made, and where there is one, the connection
	took := make([]time.Duration, n)
	start := time.Now()
	for i := range took {
		t := time.Now()
		if status := ask("GET", path); status != 200 {
			fail("status ", status)
		}
		took[i] = time.Since(t)
	}
	all := time.Since(start)
	percentiles(took)
	fmt.Println(float64(n) / all.Seconds())
}
