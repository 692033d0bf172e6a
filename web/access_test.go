package web

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"weir/audit"
)

// everyPage are the pages that show something; with %s for a container.
var everyPage = []string{"/", "/overview", "/events", "/events/stream", "/events/1", "/rules", "/rules/r1", "/sessions", "/questions", "/questions/count", "/questions/stream", "/explain", "/containers/web", "/containers/web/flows", "/containers/web/learn", "/nothing"}

// everyWrite are the forms' addresses.
var everyWrite = []string{"/containers", "/containers/web/detach", "/containers/web/flows/1/kill", "/containers/web/learn", "/rules", "/rules/r1", "/rules/r1/delete", "/sessions", "/questions/q-1", "/sessions/s/extend", "/sessions/s/end"}

func TestNothingIsShownWithoutALogin(t *testing.T) {
	s := newService(t)
	cookies := map[string]string{"none": "", "another": cookieName + "=AAAAAAAAAAAAAAAAAAAAAAAAAA", "the token": cookieName + "=" + token, "empty": cookieName + "="}
	for what, cookie := range cookies {
		with := func(r *http.Request) {
			if cookie != "" {
				r.Header.Set("Cookie", cookie)
			}
		}
		for _, path := range everyPage {
			if a := s.send("GET", path, "", with); a.status != http.StatusSeeOther || !strings.HasPrefix(a.header.Get("Location"), "/login") {
				t.Errorf("%s, cookie %s: %d %s", path, what, a.status, a.header.Get("Location"))
			}
		}
		for _, path := range everyWrite {
			if a := s.send("POST", path, "destination=a.example&action=allow&container=web", with); a.status != http.StatusSeeOther || a.header.Get("Location") != "/login" {
				t.Errorf("%s, cookie %s: %d", path, what, a.status)
			}
		}
		if a := s.send("GET", "/v1/rules", "", with); a.status != http.StatusUnauthorized {
			t.Errorf("API, cookie %s: %d", what, a.status)
		}
	}
	if list, err := s.api.Rules(t.Context(), "global", "", ""); err != nil || list.Total != 0 {
		t.Errorf("%+v %v", list, err)
	}
	// A part of a page sends the whole page to the login.
	a := s.send("GET", "/overview", "", func(r *http.Request) { r.Header.Set("HX-Request", "true") })
	if a.status != http.StatusUnauthorized || a.header.Get("HX-Redirect") != "/login" {
		t.Errorf("a part: %d %v", a.status, a.header)
	}
}

func TestForeignRequestsAreRefused(t *testing.T) {
	s := newService(t)
	cookie := s.logIn()
	port := s.base[strings.LastIndex(s.base, ":")+1:]
	for _, c := range []struct {
		name   string
		method string
		change func(*http.Request)
		status int
	}{
		{"a page of ours", "GET", func(*http.Request) {}, 200},
		{"a form of ours", "POST", func(*http.Request) {}, 303},
		{"by its name", "GET", func(r *http.Request) { r.Host = "weir.localhost:" + port }, 200},
		{"by another name", "GET", func(r *http.Request) { r.Host = "evil.example:" + port }, 421},
		{"by another name below localhost", "GET", func(r *http.Request) { r.Host = "evil.localhost:" + port }, 421},
		{"by another port", "GET", func(r *http.Request) { r.Host = "127.0.0.1:1" }, 421},
		{"a form by another name", "POST", func(r *http.Request) { r.Host = "evil.example:" + port }, 421},
		{"from another site", "POST", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		{"from another port", "POST", func(r *http.Request) { r.Header.Set("Origin", "http://127.0.0.1:1") }, 403},
		{"from nowhere", "POST", func(r *http.Request) { r.Header.Set("Origin", "null") }, 403},
		{"without an origin", "POST", func(r *http.Request) { r.Header.Del("Origin") }, 403},
		{"a page of another site", "GET", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		{"loaded into another port's page", "GET", func(r *http.Request) {
			r.Header.Set("Sec-Fetch-Site", "same-site")
			r.Header.Set("Sec-Fetch-Mode", "no-cors")
		}, 403},
		{"sent from another port's page", "POST", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") }, 403},
		{"opened from another site", "GET", func(r *http.Request) {
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			r.Header.Set("Sec-Fetch-Mode", "navigate")
		}, 200},
	} {
		path := map[string]string{"GET": "/rules", "POST": "/rules"}[c.method]
		a := s.send(c.method, path, "action=allow&destination=a.example", func(r *http.Request) {
			r.AddCookie(cookie)
			c.change(r)
		})
		if a.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.status, a.body)
		}
	}
	if list, err := s.api.Rules(t.Context(), "global", "", ""); err != nil || list.Total != 1 {
		t.Errorf("only one of them may have counted: %+v %v", list, err)
	}
	// The cookie opens the API to the pages, and to nobody else.
	api := func(change func(*http.Request)) int {
		return s.send("GET", "/v1/rules", "", func(r *http.Request) {
			r.AddCookie(cookie)
			change(r)
		}).status
	}
	if status := api(func(*http.Request) {}); status != 200 {
		t.Errorf("the API from a page: %d", status)
	}
	if status := api(func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") }); status != 401 {
		t.Errorf("the API from another port: %d", status)
	}
	// The login is for pages of ours as well.
	if a := s.send("POST", "/login", "token="+token, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }); a.status != 403 {
		t.Errorf("a login from another site: %d", a.status)
	}
}

func TestTheLogin(t *testing.T) {
	s := newService(t)
	cookie := s.logIn()
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Value == "" || strings.Contains(cookie.Value, token) || cookie.MaxAge != 43200 || cookie.Domain != "" {
		t.Errorf("%+v", cookie)
	}
	status := func() int {
		return s.send("GET", "/", "", func(r *http.Request) { r.AddCookie(cookie) }).status
	}
	if got := status(); got != 200 {
		t.Fatalf("after the login: %d", got)
	}
	s.clock.Advance(loginTime)
	if got := status(); got != http.StatusSeeOther {
		t.Errorf("when it has expired: %d", got)
	}
	cookie = s.logIn()
	if a := s.send("POST", "/logout", "", func(r *http.Request) { r.AddCookie(cookie) }); a.status != http.StatusSeeOther || !strings.Contains(a.header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("logout: %d %v", a.status, a.header)
	}
	if got := status(); got != http.StatusSeeOther {
		t.Errorf("after the logout: %d", got)
	}
	for next, want := range map[string]string{
		"": "/", "/events?verdict=deny": "/events?verdict=deny", "https://evil.example/": "/", "//evil.example/": "/", `/\evil.example`: "/", "javascript:alert(1)": "/", "rules": "/",
	} {
		s.clock.Advance(time.Minute)
		a := s.send("POST", "/login", url.Values{"token": {token}, "next": {next}}.Encode(), nil)
		if a.status != http.StatusSeeOther || a.header.Get("Location") != want {
			t.Errorf("next %q: %d to %q, want %q", next, a.status, a.header.Get("Location"), want)
		}
	}
}

func TestGuessingTheTokenIsSlow(t *testing.T) {
	s := newService(t)
	for i := range attemptBurst {
		if a := s.send("POST", "/login", "token=guess", nil); a.status != http.StatusUnauthorized || a.header.Get("Set-Cookie") != "" {
			t.Fatalf("guess %d: %d", i, a.status)
		}
	}
	for _, guess := range []string{"guess", token} {
		if a := s.send("POST", "/login", "token="+guess, nil); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" || a.header.Get("Set-Cookie") != "" {
			t.Errorf("%s: %d", guess, a.status)
		}
	}
	s.clock.Advance(2 * time.Second)
	s.logIn()
}

func TestLoginsAreBounded(t *testing.T) {
	now := time.Now()
	ls := logins{known: map[[sha256.Size]byte]*login{}}
	first := ls.add(now)
	for range maxLogins + 20 {
		now = now.Add(time.Second)
		ls.add(now)
	}
	r, _ := http.NewRequest("GET", "/", nil)
	r.AddCookie(&http.Cookie{Name: cookieName, Value: first})
	if len(ls.known) != maxLogins || ls.find(r, now) != nil {
		t.Errorf("%d logins; the oldest is still known: %v", len(ls.known), ls.find(r, now) != nil)
	}
}

var inline = regexp.MustCompile(`(?i)<script(?:\s[^>]*)?>[^<]|<style|\sstyle=|\son[a-z]+=|hx-on|javascript:|hx-vals|hx-vars`)

func TestPagesHaveNothingInline(t *testing.T) {
	s := newService(t)
	cookie := s.logIn()
	get := func(path string) answered {
		return s.send("GET", path, "", func(r *http.Request) { r.AddCookie(cookie) })
	}
	s.log.Record(audit.Event{Type: audit.Connect, Verdict: "deny", Host: "a.example", ContainerName: "web", Reason: "r"})
	for _, path := range []string{"/", "/events", "/rules", "/sessions", "/explain", "/login", "/nothing"} {
		a := get(path)
		if found := inline.FindString(a.body); found != "" {
			t.Errorf("%s: %q", path, found)
		}
		csp := a.header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: %s", path, csp)
		}
		if a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be kept: %s", path, a.header.Get("Cache-Control"))
		}
	}
}

var vendorRow = regexp.MustCompile(`(?m)^\| (\S+) \| (\S+) \| (\S+) \|.* ([0-9a-f]{64}) \|$`)

func TestVendoredFilesAreTheListedOnes(t *testing.T) {
	list, err := files.ReadFile("static/vendor/README.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, m := range vendorRow.FindAllStringSubmatch(string(list), -1) {
		listed[m[1]] = m[4]
	}
	entries, err := files.ReadDir("static/vendor")
	if err != nil {
		t.Fatal(err)
	}
	scripts := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".js") {
			continue
		}
		scripts++
		b, err := files.ReadFile("static/vendor/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != listed[e.Name()] {
			t.Errorf("%s is not the listed one: %x", e.Name(), sum)
		}
	}
	if scripts != len(listed) || scripts == 0 {
		t.Errorf("%d files, %d listed", scripts, len(listed))
	}
}

func TestStaticFiles(t *testing.T) {
	s := newService(t)
	a := s.send("GET", "/login", "", nil)
	for _, m := range regexp.MustCompile(`(?:href|src)="(/static/[^"]+)"`).FindAllStringSubmatch(a.body, -1) {
		if f := s.send("GET", m[1], "", nil); f.status != 200 || f.header.Get("Content-Type") == "" || !strings.Contains(f.header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d %v", m[1], f.status, f.header)
		}
	}
	for _, path := range []string{"/static/x/../../token", "/static/x/templates/login.html", "/static/x/", "/static/x/..%2f..%2fserver.go"} {
		if f := s.send("GET", path, "", nil); f.status == 200 {
			t.Errorf("%s is served", path)
		}
	}
}
