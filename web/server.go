package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"path"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"weir/api"
	"weir/audit"
)

//go:embed static templates
var files embed.FS

// Server is the dashboard. Fields are required unless a default is named.
// It implements api.Dashboard.
type Server struct {
	// API is asked for everything but events.
	API *api.Client
	// Log is followed, Events reads what is stored.
	Log    *audit.Log
	Events func(ctx context.Context, f audit.Filter) ([]audit.Event, error)
	// Token is what a browser has to show once.
	Token string
	// Activity is what the overview plots.
	Activity *Activity
	Version  string
	Logger   *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	once    sync.Once
	handler http.Handler
	pages   pages
	assets  map[string][]byte // by name below static
	version string            // of the assets, part of their address
	attempt *rate.Limiter     // wrong tokens
	logins  logins
}

// maxForm bounds what a form sends; a policy document may have 1 MiB.
const maxForm = 4 << 20

// policy is what browsers are told to load and run: nothing that is not a file
// of this server.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.init()
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	// Not "no-referrer": forms would then have the origin "null".
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	s.handler.ServeHTTP(w, r)
}

func (s *Server) init() {
	s.once.Do(func() {
		if s.Now == nil {
			s.Now = time.Now
		}
		s.attempt = rate.NewLimiter(attemptRate, attemptBurst)
		s.logins.known = map[[sha256.Size]byte]*login{}
		s.readAssets()
		s.pages = readPages(s)
		s.handler = s.routes()
	})
}

// readAssets takes the static files into memory, with a hash of all of them
// as their version.
func (s *Server) readAssets() {
	s.assets = map[string][]byte{}
	all := sha256.New()
	err := fs.WalkDir(files, "static", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := files.ReadFile(name)
		s.assets[name[len("static/"):]] = b
		all.Write(b)
		return err
	})
	if err != nil {
		panic(err) // the files are part of the program
	}
	s.version = hex.EncodeToString(all.Sum(nil))[:12]
}

func (s *Server) asset(name string) string { return "/static/" + s.version + "/" + name }

func (s *Server) static(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	b, ok := s.assets[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
	if r.PathValue("version") == s.version {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(b))
}

// routes is the whole dashboard.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /static/{version}/{file...}", s.static)
	mux.HandleFunc("GET /login", s.loginPage)
	mux.HandleFunc("POST /login", s.logIn)
	mux.HandleFunc("POST /logout", s.logOut)

	page := func(pattern string, handler func(http.ResponseWriter, *request) error) {
		mux.Handle(pattern, s.private(handler))
	}
	page("GET /{$}", s.overview)
	page("GET /overview", s.overviewLive)
	page("POST /containers", s.attach)
	page("GET /containers/{container}", s.container)
	page("GET /containers/{container}/flows", s.containerFlows)
	page("POST /containers/{container}/flows/{flow}/kill", s.kill)
	page("POST /containers/{container}/detach", s.detach)
	page("GET /containers/{container}/learn", s.learn)
	page("POST /containers/{container}/learn", s.learnTry)
	page("GET /events", s.events)
	page("GET /events/stream", s.eventStream)
	page("GET /events/{id}", s.event)
	page("GET /questions", s.questions)
	page("GET /questions/count", s.questionCount)
	page("GET /questions/stream", s.questionStream)
	page("POST /questions/{id}", s.answer)
	page("GET /rules", s.rules)
	page("POST /rules", s.addRule)
	page("GET /rules/{id}", s.rule)
	page("POST /rules/{id}", s.changeRule)
	page("POST /rules/{id}/delete", s.deleteRule)
	page("GET /sessions", s.sessions)
	page("POST /sessions", s.createSession)
	page("POST /sessions/{id}/extend", s.extendSession)
	page("POST /sessions/{id}/end", s.endSession)
	page("GET /explain", s.explain)
	page("/", func(_ http.ResponseWriter, r *request) error {
		return &api.Problem{Title: "Not Found", Status: http.StatusNotFound, Detail: "there is no page " + r.URL.Path + "; start at the overview"}
	})
	return mux
}

// A request is one of a browser that has logged in.
type request struct {
	*http.Request
	login *login
}

// container is the container that the address names.
func (r *request) container() string { return r.PathValue("container") }

// fragment reports whether only a part of a page was asked for.
func (r *request) fragment() bool { return r.Header.Get("HX-Request") != "" }

// private shows a page to those who have logged in, and the login to others.
func (s *Server) private(handler func(http.ResponseWriter, *request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		login := s.logins.find(r, s.Now())
		if login == nil {
			s.toLogin(w, r)
			return
		}
		if !fromHere(r) {
			s.fail(w, &request{r, login}, &api.Problem{Title: "Forbidden", Status: http.StatusForbidden, Detail: "this request does not come from a page of this dashboard"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if r.Method == http.MethodPost {
			if err := r.ParseForm(); err != nil {
				s.fail(w, &request{r, login}, &api.Problem{Title: "Bad Request", Status: http.StatusBadRequest, Detail: "the form is not readable: " + err.Error()})
				return
			}
		}
		if err := handler(w, &request{r, login}); err != nil {
			s.fail(w, &request{r, login}, err)
		}
	})
}

// done ends what a form started: the page to go on with says what was done.
// A reload of it does nothing again.
func (s *Server) done(w http.ResponseWriter, r *request, to, said string) error {
	r.login.say(said)
	http.Redirect(w, r.Request, to, http.StatusSeeOther)
	return nil
}

// fail answers with an error page.
func (s *Server) fail(w http.ResponseWriter, r *request, err error) {
	status := http.StatusInternalServerError
	var p *api.Problem
	if errors.As(err, &p) {
		status = p.Status
	} else {
		s.Logger.Error("dashboard", "path", r.URL.Path, "error", err)
	}
	s.render(w, r, status, "error", page{Title: http.StatusText(status), Error: err.Error()})
}

// pathTo joins parts to an address, each escaped.
func pathTo(parts ...string) string {
	var to string
	for _, p := range parts {
		to += "/" + url.PathEscape(p)
	}
	return to
}
