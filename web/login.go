package web

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of logging in.
const (
	cookieName = "weir_dashboard"
	// A browser has to show the token again after this time.
	loginTime = 12 * time.Hour
	// So many browsers are logged in at most; one more logs out the oldest.
	maxLogins = 100
	// The token is looked at so often, whoever asks: on the loopback address
	// nobody can be told from anybody else.
	attemptRate  = rate.Limit(0.5)
	attemptBurst = 5
)

// A login is a browser that has shown the token.
type login struct {
	expires time.Time
	mu      sync.Mutex
	said    string // to be shown on the next page
}

// say has the next page say something.
func (l *login) say(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = text
}

// heard returns what is to be said, once.
func (l *login) heard() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.said
	l.said = ""
	return text
}

// logins are the browsers that have shown the token, by the hash of their
// cookie, so that finding one takes the same time for every wrong value.
type logins struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*login
}

// find returns the login of a request, or nil.
func (ls *logins) find(r *http.Request, now time.Time) *login {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return nil
	}
	key := sha256.Sum256([]byte(cookie.Value))
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.known[key]
	if l != nil && !l.expires.After(now) {
		delete(ls.known, key)
		return nil
	}
	return l
}

// add makes a login and returns its cookie's value.
func (ls *logins) add(now time.Time) string {
	value := rand.Text()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var oldest [sha256.Size]byte
	for key, l := range ls.known {
		if !l.expires.After(now) {
			delete(ls.known, key)
		} else if o := ls.known[oldest]; o == nil || l.expires.Before(o.expires) {
			oldest = key
		}
	}
	if len(ls.known) >= maxLogins {
		delete(ls.known, oldest)
	}
	ls.known[sha256.Sum256([]byte(value))] = &login{expires: now.Add(loginTime)}
	return value
}

func (ls *logins) remove(r *http.Request) {
	if cookie, err := r.Cookie(cookieName); err == nil {
		ls.mu.Lock()
		defer ls.mu.Unlock()
		delete(ls.known, sha256.Sum256([]byte(cookie.Value)))
	}
}

// LoggedIn implements api.Dashboard.
func (s *Server) LoggedIn(r *http.Request) bool {
	s.init()
	return s.logins.find(r, s.Now()) != nil && fromHere(r)
}

// fromHere reports whether a page of this server made a browser send r. The
// cookie's SameSite says so of other sites only, and another port of this
// machine is the same site. Opening a page from elsewhere is fine: that
// changes nothing. The Origin has been compared with the Host already.
func fromHere(r *http.Request) bool {
	site, mode := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Sec-Fetch-Mode")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return r.Header.Get("Origin") != "" && (site == "" || site == "same-origin")
	}
	return site == "" || site == "same-origin" || site == "none" || mode == "navigate"
}

// toLogin sends a browser to the login, and from there to where it wanted to.
func (s *Server) toLogin(w http.ResponseWriter, r *http.Request) {
	to := "/login"
	if r.Method == http.MethodGet && r.Header.Get("HX-Request") == "" && r.URL.Path != "/" && r.Header.Get("Accept") != "text/event-stream" {
		to += "?next=" + url.QueryEscape(r.URL.RequestURI())
	}
	if r.Header.Get("HX-Request") != "" {
		if page, err := url.Parse(r.Header.Get("HX-Current-URL")); err == nil && page.Path != "" {
			to += "?next=" + url.QueryEscape(page.RequestURI())
		}
		// A part of a page would be put where the login does not belong.
		w.Header().Set("HX-Redirect", to)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) {
	if s.logins.find(r, s.Now()) != nil {
		http.Redirect(w, r, next(r), http.StatusSeeOther)
		return
	}
	s.render(w, &request{r, nil}, http.StatusOK, "login", page{Title: "Log in", Data: r.FormValue("next")})
}

func (s *Server) logIn(w http.ResponseWriter, r *http.Request) {
	if !fromHere(r) {
		http.Error(w, "this request does not come from the login page", http.StatusForbidden)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	again := func(status int, text string) {
		s.render(w, &request{r, nil}, status, "login", page{Title: "Log in", Error: text, Data: r.FormValue("next")})
	}
	if !s.attempt.AllowN(s.Now(), 1) {
		w.Header().Set("Retry-After", "2")
		again(http.StatusTooManyRequests, "Too many attempts. Wait a few seconds, then try again.")
		return
	}
	got, want := sha256.Sum256([]byte(strings.TrimSpace(r.PostFormValue("token")))), sha256.Sum256([]byte(s.Token))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		again(http.StatusUnauthorized, "That is not the token. It is the content of the file “token” in the daemon’s data directory.")
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: s.logins.add(s.Now()), Path: "/", MaxAge: int(loginTime / time.Second),
		HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
	http.Redirect(w, r, next(r), http.StatusSeeOther)
}

func (s *Server) logOut(w http.ResponseWriter, r *http.Request) {
	if !fromHere(r) {
		http.Error(w, "this request does not come from the dashboard", http.StatusForbidden)
		return
	}
	s.logins.remove(r)
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// next is where a browser wanted to go: a page of this server.
func next(r *http.Request) string {
	to, err := url.Parse(r.FormValue("next"))
	if err != nil || to.IsAbs() || to.Host != "" || !strings.HasPrefix(to.Path, "/") || strings.HasPrefix(to.Path, "//") || strings.Contains(to.Path, `\`) {
		return "/"
	}
	return to.RequestURI()
}
