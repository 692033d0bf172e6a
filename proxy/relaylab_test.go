package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/audit"
	"weir/rules"
)

const labHost = "api.example.com"

// A relayLab is a client, a Server with its Relay, and a server, on loopback.
type relayLab struct {
	t      testing.TB
	ca     *CA // Weir's
	server *CA // who certifies servers
	relay  *Relay
	proxy  *Server
	addr   string // where clients connect to
	port   uint16 // where they mean to
	policy atomic.Pointer[rules.Policy]
	up     atomic.Pointer[string]        // the server's address
	who    atomic.Pointer[rules.Program] // that connects; nil: not found
	log    *slog.Logger                  // of proxy; nil: none
	asked  atomic.Int64                  // how often who was looked for

	mu     sync.Mutex
	events []audit.Event
	seen   chan audit.Event
}

// newRelayLab serves connections to labHost at port by a policy document.
func newRelayLab(t testing.TB, port uint16, document string, change ...func(*relayLab)) *relayLab {
	t.Helper()
	l := &relayLab{t: t, ca: testCA(t, "weir"), server: testCA(t, "servers"), port: port, seen: make(chan audit.Event, 1000)}
	l.setPolicy(document)
	roots := x509.NewCertPool()
	roots.AddCert(l.server.Certificate())
	l.relay = &Relay{Authority: l.ca, Roots: roots, Policy: l.policy.Load, Record: l.record, Program: l.program}
	for _, c := range change {
		c(l)
	}
	dst := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), port)
	l.proxy = &Server{
		Container:   rules.Container{ID: "c1", Name: "web"},
		Policy:      l.policy.Load,
		Names:       func(netip.Addr, time.Time) []string { return []string{labHost} },
		OriginalDst: func(*net.TCPConn) (netip.AddrPort, error) { return dst, nil },
		Dial: func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", *l.up.Load())
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Program: l.program,
		Record:  l.record,
		Relay:   l.relay.Serve,
		Log:     l.log,
	}
	ln := listen(t)
	l.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.proxy.Serve(ctx, ln)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		ln.Close()
	})
	return l
}

func (l *relayLab) program(context.Context, rules.Transport, netip.AddrPort, netip.AddrPort) (*rules.Program, error) {
	l.asked.Add(1)
	if who := l.who.Load(); who != nil {
		return who, nil
	}
	return nil, errors.New("no such socket")
}

func testCA(t testing.TB, name string) *CA {
	t.Helper()
	ca, err := OpenCA(t.TempDir(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (l *relayLab) setPolicy(document string) {
	l.t.Helper()
	doc, _, err := rules.ParseDocument("lab.yaml", []byte(document))
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range doc.Rules {
		doc.Rules[i].ID = fmt.Sprintf("r%d", i)
		doc.Rules[i].Source = rules.Session
	}
	layer, err := rules.NewLayer(rules.Session, doc.Rules)
	if err != nil {
		l.t.Fatal(err)
	}
	l.policy.Store(rules.Compile(rules.Stack{Layers: []*rules.Layer{layer}, Session: "s1"}))
}

func (l *relayLab) record(e audit.Event) int64 {
	l.mu.Lock()
	l.events = append(l.events, e)
	n := int64(len(l.events))
	l.mu.Unlock()
	e.ID = n
	l.seen <- e
	return n
}

// event waits for the next event of one of the types.
func (l *relayLab) event(types ...audit.Type) audit.Event {
	l.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e := <-l.seen:
			for _, t := range types {
				if e.Type == t {
					return e
				}
			}
		case <-timeout:
			l.t.Fatalf("no event of %v", types)
		}
	}
}

// serve starts the server; its certificate is for host, "" for labHost.
func (l *relayLab) serve(h http.Handler, protocols ...string) {
	l.t.Helper()
	cert, err := l.server.Leaf(labHost)
	if err != nil {
		l.t.Fatal(err)
	}
	l.serveWith(h, &tls.Config{Certificates: []tls.Certificate{*cert}}, protocols...)
}

func (l *relayLab) serveWith(h http.Handler, conf *tls.Config, protocols ...string) {
	ln := listen(l.t)
	srv := &http.Server{Handler: h, TLSConfig: conf, Protocols: new(http.Protocols), ErrorLog: quietLog()}
	srv.Protocols.SetHTTP1(len(protocols) == 0 || contains(protocols, "http/1.1"))
	srv.Protocols.SetHTTP2(contains(protocols, "h2"))
	if l.port == 80 {
		go srv.Serve(ln)
	} else {
		go srv.ServeTLS(ln, "", "")
	}
	l.t.Cleanup(func() { srv.Close() })
	l.upstream(ln.Addr().String())
}

func (l *relayLab) upstream(addr string) { l.up.Store(&addr) }

func contains(ss []string, s string) bool {
	for _, v := range ss {
		if v == s {
			return true
		}
	}
	return false
}

func (l *relayLab) tlsConfig(protocols ...string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(l.ca.Certificate())
	return &tls.Config{RootCAs: roots, ServerName: labHost, NextProtos: protocols}
}

// client is an HTTP client inside the container.
func (l *relayLab) client(h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.addr)
		},
		TLSClientConfig:    l.tlsConfig(),
		Protocols:          new(http.Protocols),
		DisableCompression: true,
	}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	l.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// url is the address of a path on the lab's host.
func (l *relayLab) url(path string) string {
	switch l.port {
	case 80:
		return "http://" + labHost + path
	case 443:
		return "https://" + labHost + path
	}
	return fmt.Sprintf("https://%s:%d%s", labHost, l.port, path)
}

// dial opens a connection inside the container, TLS unless the port is 80.
func (l *relayLab) dial(protocols ...string) net.Conn {
	l.t.Helper()
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	if l.port == 80 {
		return c
	}
	t := tls.Client(c, l.tlsConfig(protocols...))
	if err := t.Handshake(); err != nil {
		l.t.Fatalf("handshake: %v", err)
	}
	return t
}

// raw sends bytes and returns the first response and whether the connection
// was closed after it, as announced.
func (l *relayLab) raw(request string) (*http.Response, string, bool) {
	l.t.Helper()
	c := l.dial()
	go io.WriteString(c, request)
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		l.t.Fatalf("no response to %q: %v", request[:min(len(request), 200)], err)
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	if !res.Close {
		return res, string(text), false
	}
	_, err = br.ReadByte()
	return res, string(text), err == io.EOF
}

// A canary is a server that keeps what it got.
type canary struct {
	mu   sync.Mutex
	got  bytes.Buffer
	hits int
}

func (c *canary) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	c.hits++
	fmt.Fprintf(&c.got, "%s %s %v\n%s\n", r.Method, r.RequestURI, r.Header, text)
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"data":{}}`)
}

func (c *canary) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got.String()
}

const restPolicy = `
version: 1
network_policies:
  api:
    endpoints:
      - host: api.example.com
        ports: [80, 443, 8443]
        protocol: rest
        rules:
          - allow: {method: GET, path: "/ok/**"}
          - allow: {methods: [POST, PUT], path: "/ok/**"}
          - allow: {method: OPTIONS, path: "/**"}
        deny_rules:
          - {method: GET, path: "/ok/secret/**"}
`

func readRes(res *http.Response, err error) (int, string, error) {
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }
