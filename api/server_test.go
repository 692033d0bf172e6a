package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"weir/e2e/netlab"

	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/session"
	"weir/store"
)

const patience = netlab.Patience

// The test binary is also a caller under another user id.
func TestMain(m *testing.M) {
	netlab.Main(m.Run, map[string]func(){"stranger": func() {
		_, err := NewClient(os.Args[1]).Health(context.Background())
		fmt.Println(err)
	}})
}

// service is an API with everything behind it, as the daemon has it.
type service struct {
	t      testing.TB
	clock  *netlab.Clock
	log    *audit.Log
	server *Server
	socket string // path
	tcp    string // address
	client *http.Client
}

const token = "a-token-for-the-tests"

func newService(t testing.TB) *service {
	t.Helper()
	return newServiceWith(t, nil)
}

// newServiceWith is a service that shows metrics.
func newServiceWith(t testing.TB, metrics *Metrics) *service {
	t.Helper()
	dir := t.TempDir()
	s := &service{t: t, clock: &netlab.Clock{}, socket: filepath.Join(dir, "weir.sock")}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	st, err := store.Open(t.Context(), filepath.Join(dir, "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	s.log = audit.NewLog(audit.Config{Append: st.AppendEvents, Events: st.Events, Now: s.clock.Now})
	upstream := &dnsmap.Upstream{}
	conductor, err := session.New(t.Context(), session.Config{
		Store: st, Log: s.log, Runtimes: container.Connect(filepath.Join(dir, "no-runtime.sock")),
		Upstream: upstream, Logger: logger, Now: s.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := ListenSocket(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.tcp = tcp.Addr().String()
	s.server = &Server{
		Conductor: conductor, Log: s.log, Events: st.Events, Version: "test", Metrics: metrics, Token: token, Logger: logger, Now: s.clock.Now,
	}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	ready := make(chan struct{})
	end := func(what string, f func() error) {
		tasks.Go(func() {
			if err := f(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	stored := make(chan error, 1)
	go func() { stored <- s.log.Serve() }()
	end("conductor", func() error { return conductor.Run(ctx, func() { close(ready) }) })
	<-ready
	end("server", func() error { return s.server.Serve(ctx, socket, tcp) })
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		cancel()
		tasks.Wait()
		upstream.Close()
		drain, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(s.log.Shutdown(drain), <-stored, st.Close()); err != nil {
			t.Error(err)
		}
	})
	s.client = &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
		},
	}}
	return s
}

// answered is what came back.
type answered struct {
	t      testing.TB
	what   string
	status int
	header http.Header
	body   []byte
}

// send sends one request over the socket; body "" is none.
func (s *service) send(method, path, body string) answered {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://weir"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return s.do(s.client, req)
}

func (s *service) do(client *http.Client, req *http.Request) answered {
	s.t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answered{s.t, req.Method + " " + req.URL.Path, resp.StatusCode, resp.Header, b}
}

// into checks the status and reads the body, which must hold nothing that T
// does not know.
func into[T any](a answered, status int) (v T) {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("%s: status %d, want %d: %s", a.what, a.status, status, a.body)
	}
	if kind := a.header.Get("Content-Type"); kind != "application/json" {
		a.t.Errorf("%s: Content-Type %q", a.what, kind)
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		a.t.Fatalf("%s: %v in %s", a.what, err, a.body)
	}
	return v
}

// empty checks a status without a body.
func (a answered) empty(status int) {
	a.t.Helper()
	if a.status != status || len(a.body) > 0 {
		a.t.Errorf("%s: status %d, want %d without a body: %s", a.what, a.status, status, a.body)
	}
}

// problem checks that a refusal is an RFC 9457 document that says so.
func (a answered) problem(status int, says string) {
	a.t.Helper()
	var p Problem
	err := json.Unmarshal(a.body, &p)
	if a.status != status || err != nil || a.header.Get("Content-Type") != "application/problem+json" || p.Status != status || p.Title == "" || p.Detail == "" {
		a.t.Errorf("%s: status %d, want the problem %d: %s: %s", a.what, a.status, status, a.header.Get("Content-Type"), a.body)
	}
	if !strings.Contains(p.Error(), says) {
		a.t.Errorf("%s: %q does not say %q", a.what, p.Error(), says)
	}
}

var namespaces atomic.Int32

// netns makes a network namespace and returns what names it.
func (s *service) netns() string {
	s.t.Helper()
	name := fmt.Sprintf("wapi%d-%d", os.Getpid(), namespaces.Add(1))
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	s.t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	return "netns:" + name
}
