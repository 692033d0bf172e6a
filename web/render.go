package web

import (
	"bytes"
	"cmp"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"weir/audit"
)

// A page is what its template is given.
type page struct {
	Title string
	At    string // the entry of the navigation
	Said  string // what was done
	Error string // what was not, and why
	Data  any

	In      bool // whether the browser has logged in
	Version string
}

// pages are the templates by name. Those of parts stand in all of them.
type pages map[string]*template.Template

// readPages parses the templates; they are part of the program.
func readPages(s *Server) pages {
	functions := template.FuncMap{
		"asset": s.asset, "path": pathTo, "query": queryTo, "show": audit.Printable, "short": short, "bytes": byteCount,
		"since": func(t time.Time) string { return span(s.Now().Sub(t)) },
		"until": func(t time.Time) string { return span(t.Sub(s.Now())) },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
		"instant": func(t time.Time) string {
			return t.UTC().Format(time.RFC3339)
		},
		"hostport": hostPort, "layer": layerName, "join": strings.Join, "dict": dict, "ofDocument": ofDocument,
		"spaced": func(ports string) string { return strings.ReplaceAll(ports, ",", ", ") },
	}
	shared := template.Must(template.New("").Funcs(functions).ParseFS(files, "templates/layout.html", "templates/parts.html"))
	all := pages{}
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		key := strings.TrimSuffix(path.Base(name), ".html")
		if key != "layout" && key != "parts" {
			all[key] = template.Must(template.Must(shared.Clone()).ParseFS(files, name))
		}
	}
	return all
}

// render writes a page. A page that cannot be rendered is an error page, never
// half of one.
func (s *Server) render(w http.ResponseWriter, r *request, status int, name string, p page) {
	p.In, p.Version = r.login != nil, s.Version
	if p.In && !r.fragment() {
		p.Said = r.login.heard()
	}
	s.write(w, status, name, "layout", p)
}

// part writes the part of a page that stands by itself.
func (s *Server) part(w http.ResponseWriter, name, part string, data any) error {
	s.write(w, http.StatusOK, name, part, data)
	return nil
}

func (s *Server) write(w http.ResponseWriter, status int, name, part string, data any) {
	var b bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&b, part, data); err != nil {
		s.Logger.Error("dashboard", "page", name, "error", err)
		http.Error(w, "this page cannot be shown; the daemon's log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	// The browser is gone if this fails; nobody is left to tell.
	_, _ = w.Write(b.Bytes())
}

// queryTo makes an address of a path and pairs of names and values; empty
// values are left out.
func queryTo(to string, pairs ...any) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if value := fmt.Sprint(pairs[i+1]); value != "" && value != "0" {
			q.Set(fmt.Sprint(pairs[i]), value)
		}
	}
	if len(q) == 0 {
		return to
	}
	return to + "?" + q.Encode()
}

// dict makes one value of pairs of names and values, for a part.
func dict(pairs ...any) map[string]any {
	d := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		d[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	return d
}

// ofDocument reports whether a global rule's id says that it stands in a
// document, with which it changes.
func ofDocument(id string) bool { return strings.Contains(id, "/") }

// short cuts a container id to the twelve digits that docker shows.
func short(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

// span is a duration as a person says it, in one or two units.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < time.Second:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		if m := d % time.Hour / time.Minute; m > 0 {
			return fmt.Sprintf("%d h %d min", d/time.Hour, m)
		}
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

func byteCount(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 999.5 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %cB", f, units[i])
	}
	return fmt.Sprintf("%.0f %cB", f, units[i])
}

// hostPort is a destination as it is written in rules.
func hostPort(host, address string, port uint16) string {
	to := cmp.Or(host, address)
	if port == 0 || to == "" {
		return audit.Printable(to)
	}
	return audit.Printable(net.JoinHostPort(to, strconv.Itoa(int(port))))
}

// layerName is a layer as the pages call it.
func layerName(layer string) string {
	switch layer {
	case "builtin":
		return "built-in"
	case "default":
		return "default deny"
	case "allow_all":
		return "learning"
	case "guard":
		return "address guard"
	}
	return layer
}
