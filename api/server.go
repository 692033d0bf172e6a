package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weir/audit"
	"weir/session"
)

// Group is the Unix group whose members may use the daemon's socket.
const Group = "weir"

// Server answers the API. Fields are required unless a default is named.
type Server struct {
	Conductor *session.Conductor
	Log       *audit.Log
	// Events reads stored events.
	Events  func(ctx context.Context, f audit.Filter) ([]audit.Event, error)
	Version string
	// Metrics are shown at GET /metrics; nil: there is no such page.
	Metrics *Metrics
	// Token is what callers over TCP have to show; callers over the socket
	// are known by the kernel's word.
	Token  string
	Logger *slog.Logger
	// Dashboard, over TCP only, answers what is not the API's, and knows the
	// browsers that have logged in; nil: there is none.
	Dashboard Dashboard
	// Upgrade has the daemon replaced by the program that its binary is now. An
	// error says why that would not run; nothing has happened then.
	Upgrade func(ctx context.Context) error
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	started time.Time
}

// Dashboard are pages beside the API. Who calls for them is checked by itself;
// Host and Origin have been.
type Dashboard interface {
	http.Handler
	// LoggedIn reports whether a request comes from a page of a browser that
	// has shown the token.
	LoggedIn(r *http.Request) bool
}

// Serve answers on the unix socket and, when it is not nil, on a TCP
// listener, until ctx ends; requests under way then get five seconds.
func (s *Server) Serve(ctx context.Context, socket *net.UnixListener, tcp net.Listener) error {
	handler := s.Handler()
	servers := []*http.Server{{
		Handler:     s.checkPeer(handler),
		ConnContext: withPeer,
	}}
	listeners := []net.Listener{socket}
	if tcp != nil {
		servers = append(servers, &http.Server{Handler: s.checkToken(handler)})
		listeners = append(listeners, tcp)
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, server := range servers {
		if s.Metrics != nil {
			server.Handler = s.Metrics.countViewers(server.Handler)
		}
		server.ReadHeaderTimeout = 10 * time.Second
		server.IdleTimeout = 2 * time.Minute
		server.MaxHeaderBytes = 64 << 10
		// Streams end when the daemon does.
		server.BaseContext = func(net.Listener) context.Context { return ctx }
		server.ErrorLog = slog.NewLogLogger(s.Logger.Handler(), slog.LevelWarn)
		group.Go(func() error {
			if err := server.Serve(listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			if err := server.Shutdown(drain); err != nil {
				return server.Close()
			}
			return nil
		})
	}
	return group.Wait()
}

// Handler is the API without the checks of who calls.
func (s *Server) Handler() http.Handler {
	if s.Now == nil {
		s.Now = time.Now
	}
	s.started = s.Now()
	mux := http.NewServeMux()
	s.register(mux)
	if s.Metrics != nil {
		mux.Handle("GET /metrics", s.Metrics.handler(s.Conductor, s.Log))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if methods := methodsOf(mux, r); len(methods) > 0 {
			w.Header().Set("Allow", strings.Join(methods, ", "))
			writeProblem(w, http.StatusMethodNotAllowed, fmt.Sprintf("no %s of %s; there is %s", r.Method, r.URL.Path, strings.Join(methods, ", ")))
			return
		}
		writeProblem(w, http.StatusNotFound, fmt.Sprintf("no %s %s here; the API is described by GET /openapi.json", r.Method, r.URL.Path))
	})
	return checkWrites(mux)
}

// methodsOf lists the methods that a path has handlers for.
func methodsOf(mux *http.ServeMux, r *http.Request) (methods []string) {
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, pattern := mux.Handler(other); pattern != "/" {
			methods = append(methods, method)
		}
	}
	return methods
}

// register puts the API's routes on mux.
func (s *Server) register(mux *http.ServeMux) huma.API {
	config := huma.DefaultConfig("Weir", "1")
	config.Info.Description = "Egress firewall for containers: attachments, sessions, rules, explanations and the audit trail."
	config.DocsPath, config.SchemasPath = "", ""
	config.CreateHooks = nil // no $schema links in answers
	api := humago.New(mux, config)
	s.routes(api)
	return api
}

// OpenAPI returns the description of the API as indented JSON.
func (s *Server) OpenAPI() ([]byte, error) {
	return json.MarshalIndent(s.register(http.NewServeMux()).OpenAPI(), "", "  ")
}

// checkWrites refuses what a browser can be made to send without asking.
func checkWrites(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodDelete {
			if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
				writeProblem(w, http.StatusUnsupportedMediaType, "send the body as JSON, with Content-Type: application/json")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// checkToken admits callers over TCP: those who know the token or have logged
// in, by a name of this very listener, and not on behalf of another site.
func (s *Server) checkToken(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(s.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if !ownHost(r.Host, local) {
			writeProblem(w, http.StatusMisdirectedRequest, fmt.Sprintf("host %q is not this server's: use its address or localhost", r.Host))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
			writeProblem(w, http.StatusForbidden, fmt.Sprintf("requests from the site %q are not answered", origin))
			return
		}
		if s.Dashboard != nil && !ofAPI(r.URL.Path) {
			s.Dashboard.ServeHTTP(w, r)
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(token))
		known := ok && subtle.ConstantTimeCompare(got[:], want[:]) == 1
		if !known && (s.Dashboard == nil || !s.Dashboard.LoggedIn(r)) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeProblem(w, http.StatusUnauthorized, "send the token of the file 'token' in the daemon's data directory: Authorization: Bearer TOKEN")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ofAPI reports whether a path is the API's rather than the dashboard's.
func ofAPI(path string) bool {
	return path == "/metrics" || strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/openapi")
}

// ownHost reports whether a Host header names the address that the request
// arrived at; a name that an attacker made resolve to it does not count.
func ownHost(host string, local net.Addr) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil || local == nil {
		return false
	}
	own, err := netip.ParseAddrPort(local.String())
	if err != nil || port != strconv.Itoa(int(own.Port())) {
		return false
	}
	// RFC 6761 section 6.3: names below localhost mean this machine, and
	// nobody else can have them. Browsers keep the cookies of this one from
	// whatever else listens on localhost.
	if name == "localhost" || name == "weir.localhost" {
		return own.Addr().Unmap().IsLoopback()
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap() == own.Addr().Unmap()
}

type peerKey struct{}

// withPeer notes who is at the other end of the unix socket.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, *cred)
}

// checkPeer admits root and the members of Group. The socket's mode says the
// same; a socket that was passed on or bind-mounted into a container with
// user ids of its own does not.
func (s *Server) checkPeer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cred, ok := r.Context().Value(peerKey{}).(unix.Ucred)
		if !ok || cred.Uid != 0 && int(cred.Uid) != os.Getuid() && !inGroup(cred) {
			writeProblem(w, http.StatusForbidden, fmt.Sprintf("user %d may not use this socket: run with sudo, or join the group %q", cred.Uid, Group))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func inGroup(cred unix.Ucred) bool {
	group, err := user.LookupGroup(Group)
	if err != nil {
		return false
	}
	if strconv.Itoa(int(cred.Gid)) == group.Gid {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	if err != nil {
		return false
	}
	for _, g := range groups {
		if g == group.Gid {
			return true
		}
	}
	return false
}

// ListenSocket opens the unix socket, mode 0660, group weir where there is
// such a group. A socket that a daemon answers on is not taken away from it.
func ListenSocket(path string) (*net.UnixListener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("another daemon answers on %s: stop it, or choose another --socket", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is there and is not a socket: remove it, or choose another --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket of a daemon that is gone: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// Nobody may connect between bind and chmod.
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	gid := -1
	if group, err := user.LookupGroup(Group); err == nil {
		gid, _ = strconv.Atoi(group.Gid)
	}
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// LoadToken reads the token for callers over TCP from a file, mode 0600, and
// makes one up at first.
func LoadToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		token := rand.Text()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", err
		}
		_, err = io.WriteString(f, token+"\n")
		return token, errors.Join(err, f.Close())
	}
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return "", fmt.Errorf("%s: the token is too short; remove the file and a new one is made", path)
	}
	return token, nil
}
