package web

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"weir/api"
)

// sessionsData is what the sessions' page shows: the list, and the form as it
// was filled in.
type sessionsData struct {
	Sessions    []sessionRow
	Attachments []api.Attachment
	Form        sessionForm
}

// A sessionRow is a session with the name of its container.
type sessionRow struct {
	api.Session
	Name     string
	Attached bool
}

type sessionForm struct {
	ID, Container, TTL, Allow, Deny, Policy string
	AllowAll, Ask                           bool
}

// request makes an API request of the form.
func (f sessionForm) request() (api.SessionRequest, error) {
	r := api.SessionRequest{ID: f.ID, Container: f.Container, AllowAll: f.AllowAll, Ask: f.Ask}
	var err error
	if r.TTLSeconds, err = strconv.ParseInt(f.TTL, 10, 64); err != nil {
		return r, fmt.Errorf("time to live %q: want a number of seconds", f.TTL)
	}
	for _, list := range []struct{ action, lines string }{{"deny", f.Deny}, {"allow", f.Allow}} {
		for lines := bufio.NewScanner(strings.NewReader(list.lines)); lines.Scan(); {
			line := strings.TrimSpace(lines.Text())
			if line == "" {
				continue
			}
			destination, ports, err := api.SplitDestination(line)
			if err != nil {
				return r, fmt.Errorf("%s %w", list.action, err)
			}
			r.NetworkRules = append(r.NetworkRules, api.SessionRule{Destination: destination, Ports: ports, Action: list.action})
		}
	}
	if text := strings.TrimSpace(f.Policy); text != "" {
		r.Policy = api.PolicyString(f.Policy)
	}
	return r, nil
}

func (s *Server) sessionsOf(r *request) (d sessionsData, err error) {
	if d.Attachments, err = s.API.Attachments(r.Context()); err != nil {
		return d, err
	}
	list, err := s.API.Sessions(r.Context())
	for i := len(list) - 1; i >= 0; i-- { // the newest first
		row := sessionRow{Session: list[i], Name: short(list[i].Container)}
		for _, a := range d.Attachments {
			if a.ContainerID == row.Container || a.Name == row.Container {
				row.Name, row.Attached = a.Name, true
			}
		}
		d.Sessions = append(d.Sessions, row)
	}
	return d, err
}

func (s *Server) sessions(w http.ResponseWriter, r *request) error {
	d, err := s.sessionsOf(r)
	if err != nil {
		return err
	}
	d.Form = sessionForm{Container: r.FormValue("container"), TTL: "3600", Allow: r.FormValue("allow")}
	s.render(w, r, http.StatusOK, "sessions", page{Title: "Sessions", At: "sessions", Data: d})
	return nil
}

func (s *Server) createSession(w http.ResponseWriter, r *request) error {
	f := sessionForm{
		ID: strings.TrimSpace(r.PostFormValue("id")), Container: strings.TrimSpace(r.PostFormValue("container")), TTL: r.PostFormValue("ttl_seconds"),
		Allow: r.PostFormValue("allow"), Deny: r.PostFormValue("deny"), Policy: r.PostFormValue("policy"), AllowAll: r.PostFormValue("allow_all") != "", Ask: r.PostFormValue("ask") != "",
	}
	ask, err := f.request()
	status := http.StatusUnprocessableEntity
	if err == nil {
		var made api.Session
		if made, err = s.API.CreateSession(r.Context(), ask); err == nil {
			said := "Session " + made.ID + " is open."
			for _, warning := range made.Warnings {
				said += " Note: " + warning + "."
			}
			return s.done(w, r, "/sessions", said)
		}
		status = statusOf(err)
	}
	d, broken := s.sessionsOf(r)
	if broken != nil {
		return broken
	}
	d.Form = f
	s.render(w, r, status, "sessions", page{Title: "Sessions", At: "sessions", Error: err.Error(), Data: d})
	return nil
}

// back is the page that a session's buttons lead back to: the one they are on.
func back(r *request) string {
	if container := r.PostFormValue("container"); container != "" {
		return pathTo("containers", container)
	}
	return "/sessions"
}

func (s *Server) extendSession(w http.ResponseWriter, r *request) error {
	ttl, err := strconv.ParseInt(r.PostFormValue("ttl_seconds"), 10, 64)
	if err != nil {
		return &api.Problem{Title: "Unprocessable Entity", Status: http.StatusUnprocessableEntity, Detail: "the time to live has to be a number of seconds"}
	}
	beat, err := s.API.Heartbeat(r.Context(), r.PathValue("id"), ttl)
	if err != nil {
		return err
	}
	return s.done(w, r, back(r), "Session "+beat.ID+" lives for another "+span(beat.ExpiresAt.Sub(s.Now()))+".")
}

func (s *Server) endSession(w http.ResponseWriter, r *request) error {
	if err := s.API.EndSession(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return s.done(w, r, back(r), "Session "+r.PathValue("id")+" and its rules have ended.")
}
