package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// benchPolicy inspects REST below /ok and GraphQL at /graphql.
const benchPolicy = `
version: 1
network_policies:
  bench:
    endpoints:
      - {host: api.example.com, port: 443, path: /ok/**, protocol: rest, access: read-only}
      - {host: api.example.com, port: 443, path: /graphql, protocol: graphql, graphql_max_body_bytes: 262144,
         rules: [{allow: {operation_type: query, fields: [node]}}]}
`

// relayBenchServer answers REST with as many bytes as the query says, and GraphQL
// with a small answer; over TLS, HTTP/1.1 and HTTP/2.
func relayBenchServer(b *testing.B, l *relayLab) {
	b.Helper()
	cert, err := l.server.Leaf(labHost)
	if err != nil {
		b.Fatal(err)
	}
	small, large := bytes.Repeat([]byte("x"), 1<<10), bytes.Repeat([]byte("x"), 64<<10)
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2", "http/1.1"}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body := small
			if strings.HasSuffix(r.URL.Path, "/64") {
				body = large
			}
			if r.Method == "POST" {
				io.Copy(io.Discard, r.Body)
			}
			w.Write(body)
		}),
	}
	ln := listen(b)
	go server.ServeTLS(ln, "", "")
	b.Cleanup(func() { server.Close() })
	l.upstream(ln.Addr().String())
}

// relayBenchClient speaks to addr as labHost, by one connection that is kept.
func relayBenchClient(b *testing.B, addr string, root *CA, h2 bool) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(root.Certificate())
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetHTTP2(h2)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: labHost},
		Protocols:       &protocols, MaxConnsPerHost: 1, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}
	b.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// BenchmarkRelay compares inspected requests with the same over direct TLS, in
// turns on two connections that are kept: "of-direct" are requests a second,
// "added-µs" is what inspection adds to the median.
func BenchmarkRelay(b *testing.B) {
	for _, kind := range []string{"rest", "graphql"} {
		for _, kilobytes := range []int{1, 64} {
			for _, h2 := range []bool{false, true} {
				version := map[bool]string{false: "h1", true: "h2"}[h2]
				b.Run(fmt.Sprintf("%s/%dKB/%s", kind, kilobytes, version), func(b *testing.B) {
					benchRelay(b, kind, kilobytes, h2)
				})
			}
		}
	}
}

func benchRelay(b *testing.B, kind string, kilobytes int, h2 bool) {
	l := newRelayLab(b, 443, benchPolicy)
	go func() {
		for range l.seen {
		}
	}()
	relayBenchServer(b, l)
	body := `{"query":"query Node($id: ID!) { node(id: $id) { id name } }","variables":{"id":"` + strings.Repeat("x", kilobytes<<10) + `"}}`
	ask := func(c *http.Client) time.Duration {
		req, err := http.NewRequest("GET", fmt.Sprintf("https://%s/ok/%d", labHost, kilobytes), nil)
		if kind == "graphql" {
			req, err = http.NewRequest("POST", "https://"+labHost+"/graphql", strings.NewReader(body))
			req.Header.Set("Content-Type", "application/json")
		}
		if err != nil {
			b.Fatal(err)
		}
		begun := time.Now()
		res, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 {
			b.Fatalf("%d %v", res.StatusCode, err)
		}
		return time.Since(begun)
	}
	relayed, direct := relayBenchClient(b, l.addr, l.ca, h2), relayBenchClient(b, *l.up.Load(), l.server, h2)
	ask(relayed)
	ask(direct)
	var through, past []time.Duration
	for b.Loop() {
		through = append(through, ask(relayed))
		past = append(past, ask(direct))
	}
	report(b, through, past)
}

// report prints what paired measurements say.
func report(b *testing.B, through, past []time.Duration) {
	sum := func(list []time.Duration) (total time.Duration) {
		for _, d := range list {
			total += d
		}
		return total
	}
	median := func(list []time.Duration) time.Duration {
		slices.Sort(list)
		return list[len(list)/2]
	}
	b.ReportMetric(sum(past).Seconds()/sum(through).Seconds(), "of-direct")
	b.ReportMetric(float64((median(through)-median(past)).Nanoseconds())/1000, "added-µs")
}

// BenchmarkHandshake compares a TLS handshake and one request through the
// relay with direct ones, on new connections: with a certificate that is there
// already, and with one that has to be made.
func BenchmarkHandshake(b *testing.B) {
	for _, fresh := range []bool{false, true} {
		b.Run(map[bool]string{false: "cached", true: "fresh"}[fresh], func(b *testing.B) {
			l := newRelayLab(b, 443, benchPolicy)
			go func() {
				for range l.seen {
				}
			}()
			relayBenchServer(b, l)
			ask := func(addr string, root *CA) time.Duration {
				c := relayBenchClient(b, addr, root, false)
				defer c.CloseIdleConnections()
				begun := time.Now()
				res, err := c.Get("https://" + labHost + "/ok/1")
				if err != nil {
					b.Fatal(err)
				}
				defer res.Body.Close()
				io.Copy(io.Discard, res.Body)
				return time.Since(begun)
			}
			ask(l.addr, l.ca)
			var through, past []time.Duration
			for b.Loop() {
				if fresh {
					forgetLeaves(l.ca)
				}
				through = append(through, ask(l.addr, l.ca))
				past = append(past, ask(*l.up.Load(), l.server))
			}
			report(b, through, past)
		})
	}
}

// forgetLeaves makes the next certificate a new one.
func forgetLeaves(c *CA) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.leaves)
	c.recent.Init()
}
