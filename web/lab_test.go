package web

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"weir/e2e/netlab"

	"weir/api"
	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/session"
	"weir/store"
)

// patience bounds every wait of the tests.
const patience = netlab.Patience

// TestMain runs the tests, browser and all, behind a wall of their own.
func TestMain(m *testing.M) {
	netlab.Main(func() int {
		defer closeBrowser()
		return m.Run()
	}, nil)
}

const token = "a-token-for-the-tests"

// service is a dashboard with everything behind it, as the daemon has it.
type service struct {
	t      testing.TB
	clock  *netlab.Clock
	log    *audit.Log
	server *Server
	api    *api.Client
	base   string // http://127.0.0.1:PORT
}

func newService(t testing.TB) *service {
	t.Helper()
	dir := t.TempDir()
	s := &service{t: t, clock: &netlab.Clock{}}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	st, err := store.Open(t.Context(), filepath.Join(dir, "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	activity := &Activity{}
	s.log = audit.NewLog(audit.Config{Append: func(ctx context.Context, batch []audit.Event) error {
		activity.Count(batch)
		return st.AppendEvents(ctx, batch)
	}, Events: st.Events, Now: s.clock.Now})
	upstream := &dnsmap.Upstream{}
	conductor, err := session.New(t.Context(), session.Config{
		Store: st, Log: s.log, Runtimes: container.Connect(filepath.Join(dir, "no-runtime.sock")),
		Upstream: upstream, Logger: logger, Now: s.clock.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := api.ListenSocket(filepath.Join(dir, "weir.sock"))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.base = "http://" + tcp.Addr().String()
	server := &api.Server{Conductor: conductor, Log: s.log, Events: st.Events, Version: "1.2.3", Token: token, Logger: logger, Now: s.clock.Now}
	s.api = server.Client()
	s.server = &Server{API: s.api, Log: s.log, Events: st.Events, Token: token, Activity: activity, Version: "1.2.3", Logger: logger, Now: s.clock.Now}
	server.Dashboard = s.server
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
	end("server", func() error { return server.Serve(ctx, socket, tcp) })
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		upstream.Close()
		drain, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(s.log.Shutdown(drain), <-stored, st.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// answered is what came back.
type answered struct {
	status int
	header http.Header
	body   string
}

// send sends one request as a browser would; change has the last word.
func (s *service) send(method, path, form string, change func(*http.Request)) answered {
	s.t.Helper()
	req, err := http.NewRequest(method, s.base+path, strings.NewReader(form))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if method != "GET" {
		req.Header.Set("Origin", s.base)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if change != nil {
		change(req)
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answered{resp.StatusCode, resp.Header, string(b)}
}

// logIn returns the cookie of a browser that has shown the token.
func (s *service) logIn() *http.Cookie {
	s.t.Helper()
	a := s.send("POST", "/login", "token="+token, nil)
	cookies := (&http.Response{Header: a.header}).Cookies()
	if a.status != http.StatusSeeOther || len(cookies) != 1 {
		s.t.Fatalf("login: %d %s", a.status, a.body)
	}
	return cookies[0]
}
