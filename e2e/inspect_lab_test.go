package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// pair writes a certificate and its key as PEM files.
func pair(t testing.TB, c tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return writeFile(t, "cert.pem", text("CERTIFICATE", c.Certificate[0])), writeFile(t, "key.pem", text("PRIVATE KEY", der))
}

// A Recorder is an HTTP server outside, h1 and h2, that keeps every byte that
// clients sent to it, as they are inside TLS, and every request that it made
// of them.
type Recorder struct {
	mu          sync.Mutex
	raw         bytes.Buffer
	requests    []Received
	connections int
	handler     http.Handler
}

// Received is a request as it reached a server outside.
type Received struct {
	Proto, Method, Target, Host, Body string
	Header                            http.Header
}

// record serves HTTP on address, TLS if config is set. Without a handler it
// answers {"data":{"ok":true}}.
func (o *Outside) record(address string, config *tls.Config, handler http.Handler) *Recorder {
	o.t.Helper()
	r := &Recorder{handler: handler}
	l := o.listen(address)
	h1 := &handed{conns: make(chan net.Conn), addr: l.Addr()}
	server := &http.Server{Handler: r}
	go server.Serve(h1)
	o.t.Cleanup(func() { server.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.accept(c, config, h1)
		}
	}()
	return r
}

func (r *Recorder) accept(c net.Conn, config *tls.Config, h1 *handed) {
	r.mu.Lock()
	r.connections++
	r.mu.Unlock()
	if config == nil {
		h1.conns <- &recorded{c, r}
		return
	}
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	t := tls.Server(c, config)
	if err := t.Handshake(); err != nil {
		c.Close()
		return
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		new(http2.Server).ServeConn(&recorded{t, r}, &http2.ServeConnOpts{Handler: r, BaseConfig: &http.Server{ErrorLog: log.New(io.Discard, "", 0)}})
		return
	}
	h1.conns <- &recorded{t, r}
}

type recorded struct {
	net.Conn
	r *Recorder
}

func (c *recorded) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.raw.Write(b[:n])
	return n, err
}

// handed is a listener for connections that were accepted before.
type handed struct {
	conns chan net.Conn
	addr  net.Addr
	once  sync.Once
	over  chan struct{}
	mu    sync.Mutex
}

func (h *handed) done() chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over == nil {
		h.over = make(chan struct{})
	}
	return h.over
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done():
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error   { h.once.Do(func() { close(h.done()) }); return nil }
func (h *handed) Addr() net.Addr { return h.addr }

func (r *Recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	r.requests = append(r.requests, Received{req.Proto, req.Method, req.RequestURI, req.Host, string(body), req.Header.Clone()})
	r.mu.Unlock()
	if r.handler != nil {
		req.Body = io.NopCloser(bytes.NewReader(body))
		r.handler.ServeHTTP(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"data":{"ok":true}}`)
}

// take returns the requests since the last call, and all bytes so far.
func (r *Recorder) take() (requests []Received, raw string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests, r.requests = r.requests, nil
	return requests, r.raw.String()
}

// opened is how many connections reached the server.
func (r *Recorder) opened() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.connections
}

// trustedBox attaches a new container with a policy and makes its programs
// trust Weir's authority. The variables that the install printed are set for
// everything that Box.exec runs.
func (w *Weir) trustedBox(policy string, args ...string) *Box {
	w.t.Helper()
	b := newBox(w.t, args...)
	w.run("attach", b.Name, "--policy", writeFile(w.t, "policy.yaml", policy), "--session", b.Name)
	b.trust(w)
	return b
}

func (b *Box) trust(w *Weir) {
	b.t.Helper()
	var trust struct {
		Environment []struct{ Name, Value string }
	}
	w.json(&trust, "ca", "install", b.Name)
	for _, v := range trust.Environment {
		b.env = append(b.env, v.Name+"="+v.Value)
	}
}

// setPolicy replaces the session that trustedBox opened.
func (w *Weir) setPolicy(b *Box, policy string) {
	w.t.Helper()
	w.run("session", "create", b.Name, "--id", b.Name, "--policy", writeFile(w.t, "policy.yaml", policy))
}

// clientFile is where addClient puts the Go client.
const clientFile = "/usr/local/bin/client"

// addClient copies the tests' own client into the container.
func (b *Box) addClient() {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "client")
	cmd := exec.Command("go", "build", "-o", file, "./testdata/client")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("build the client: %v\n%s", err, out)
	}
	run(b.t, "docker", "cp", file, b.Name+":"+clientFile)
}

// A Reply is what the Go client or a curl of reply got.
type Reply struct {
	Status       int
	Proto, Event string
	Body, Failed string
	GRPC         string // Grpc-Status

	Got  string // raw
	Open bool

	Messages []string // ws
	Closed   int
	Reason   string

	Connections int // authorities
}

// client runs the Go client with what it is to read. Commands that give
// several replies return the last.
func (b *Box) client(input string, args ...string) Reply {
	b.t.Helper()
	replies := b.clientAll(input, args...)
	return replies[len(replies)-1]
}

func (b *Box) clientAll(input string, args ...string) []Reply {
	b.t.Helper()
	out, _ := b.pipe(input, append([]string{clientFile}, args...)...)
	var replies []Reply
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var r Reply
		if err := dec.Decode(&r); err != nil {
			b.t.Fatalf("client %s: %v in %q", strings.Join(args, " "), err, out)
		}
		replies = append(replies, r)
	}
	if len(replies) == 0 {
		b.t.Fatalf("client %s said nothing: %s", strings.Join(args, " "), out)
	}
	return replies
}

// Refusal is the body of a request that Weir refused, in either form.
type Refusal struct {
	Error, Code, Reason, Layer, Rule, Container, Host, Method, Path string
	Port                                                            int
	Operations                                                      []Operation
	Event                                                           int64
}

// refusal decodes a GraphQL error or the plain form.
func refusal(t testing.TB, body string) Refusal {
	t.Helper()
	var graphQL struct {
		Errors []struct {
			Message    string
			Extensions Refusal
		}
	}
	if err := json.Unmarshal([]byte(body), &graphQL); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	if len(graphQL.Errors) > 0 {
		return graphQL.Errors[0].Extensions
	}
	var r Refusal
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return r
}

// refusals waits until n events match and returns them; more than n is an error.
func (w *Weir) refusals(container, kind string, n int, match func(Event) bool) (found []Event) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d events of %s", n, container), func() bool {
		found = nil
		for _, e := range w.events(container, "--type", kind) {
			if match(e) {
				found = append(found, e)
			}
		}
		return len(found) >= n
	})
	if len(found) > n {
		w.t.Errorf("%d events, want %d: %+v", len(found), n, found)
	}
	return found
}

// operation finds an event that names an operation with the field.
func (e Event) operation(kind, field string) bool {
	for _, op := range e.Operations {
		for _, f := range op.Fields {
			if op.Type == kind && f == field {
				return true
			}
		}
	}
	return false
}

// npm installs the packages of testdata/npm once and returns the folder.
func npm(t testing.TB) string {
	t.Helper()
	npmOnce.Do(func() {
		if npmDir, npmErr = filepath.Abs(".cache/npm"); npmErr != nil {
			return
		}
		out, err := try("sh", "-ec", fmt.Sprintf(`
			mkdir -p %[1]q
			cp testdata/npm/*.json testdata/npm/*.mjs testdata/npm/.npmrc %[1]q/
			cd %[1]q
			cmp -s package-lock.json node_modules/.installed || { npm ci --loglevel=error; cp package-lock.json node_modules/.installed; }`, npmDir))
		if err != nil {
			npmErr = fmt.Errorf("npm ci: %w\n%s", err, out)
		}
	})
	if npmErr != nil {
		t.Fatal(npmErr)
	}
	return npmDir
}

var (
	npmOnce sync.Once
	npmDir  string
	npmErr  error
)

// serverConfig is TLS for a server with these names.
func serverConfig(a *Authority, names ...string) *tls.Config {
	return tlsOf(a.certificate(names...))
}

func tlsOf(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
