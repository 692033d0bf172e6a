package web

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"weir/api"
	"weir/audit"
)

// statusOf is the status that an error of the API has.
func statusOf(err error) int {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Status
	}
	return http.StatusInternalServerError
}

// containerData is what a container's page shows.
type containerData struct {
	api.Attachment
	Session  *api.Session // current
	Policy   api.EffectivePolicy
	Names    []api.Name
	Flows    flowsData
	Refused  []audit.Event
	MaxRules int
}

// flowsData are the live connections of a container.
type flowsData struct {
	Container string
	Flows     []api.Flow
	More      int
}

// Lists that can get long are cut: a page is for looking, the API for the rest.
const (
	maxListed = 500
	maxFlows  = 200
)

func (s *Server) container(w http.ResponseWriter, r *request) error {
	ctx := r.Context()
	a, err := s.API.Attachment(ctx, r.container())
	if err != nil {
		return err
	}
	d := containerData{Attachment: a, MaxRules: maxListed}
	if d.Policy, err = s.API.EffectivePolicy(ctx, a.ContainerID); err != nil {
		return err
	}
	if a.SessionID != "" {
		// One that ended this moment is none.
		if one, err := s.API.Session(ctx, a.SessionID); err == nil {
			d.Session = &one
		}
	}
	if d.Names, err = s.API.Names(ctx, a.ContainerID); err != nil {
		return err
	}
	if d.Flows, err = s.flowsOf(r, a.ContainerID); err != nil {
		return err
	}
	if d.Refused, err = s.Events(ctx, audit.Filter{Container: a.ContainerID, Verdict: "deny", Newest: true, Limit: 8}); err != nil {
		return err
	}
	s.render(w, r, http.StatusOK, "container", page{Title: a.Name, At: "overview", Data: d})
	return nil
}

// flowsOf are the live connections of a container, the newest first.
func (s *Server) flowsOf(r *request, container string) (flowsData, error) {
	list, err := s.API.Flows(r.Context(), container)
	slices.Reverse(list)
	d := flowsData{Container: container, Flows: list}
	if d.More = len(list) - maxFlows; d.More > 0 {
		d.Flows = list[:maxFlows]
	}
	return d, err
}

func (s *Server) containerFlows(w http.ResponseWriter, r *request) error {
	d, err := s.flowsOf(r, r.container())
	if err != nil {
		return err
	}
	return s.part(w, "container", "flows", d)
}

func (s *Server) kill(w http.ResponseWriter, r *request) error {
	id, err := strconv.ParseUint(r.PathValue("flow"), 10, 64)
	if err != nil {
		return &api.Problem{Title: "Not Found", Status: http.StatusNotFound, Detail: "a connection's id is a number"}
	}
	if err := s.API.Kill(r.Context(), r.container(), id); err != nil && statusOf(err) != http.StatusNotFound {
		return err // one that has ended by itself is as good as cut
	}
	if r.fragment() {
		return s.containerFlows(w, r)
	}
	return s.done(w, r, pathTo("containers", r.container())+"#flows", "The connection is cut. A rule keeps it from being opened again.")
}

func (s *Server) detach(w http.ResponseWriter, r *request) error {
	if err := s.API.Detach(r.Context(), r.container()); err != nil {
		return err
	}
	return s.done(w, r, "/", "The container has its network back; nothing is decided for it any more.")
}

// learnData is what a container's learning page shows.
type learnData struct {
	api.Attachment
	Since  string
	Suffix bool
	TTL    int64
	Policy string // learned, or as it was changed
	Replay *api.Replay
}

// sinceOf reads how long ago a look back begins; "" is everything.
func (s *Server) sinceOf(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return time.Time{}, &api.Problem{Title: "Unprocessable Entity", Status: http.StatusUnprocessableEntity, Detail: "since " + strconv.Quote(text) + ": want a duration such as 10m or 24h"}
	}
	return s.Now().Add(-d), nil
}

func (s *Server) learn(w http.ResponseWriter, r *request) error {
	a, err := s.API.Attachment(r.Context(), r.container())
	if err != nil {
		return err
	}
	d := learnData{Attachment: a, Since: r.FormValue("since"), Suffix: r.FormValue("suffix") != "", TTL: 3600}
	p := page{Title: "Learn from " + a.Name, At: "overview"}
	since, err := s.sinceOf(d.Since)
	if err != nil {
		return err
	}
	text, err := s.API.Learn(r.Context(), a.ContainerID, since, d.Suffix)
	if err != nil && statusOf(err) >= 500 {
		return err
	}
	if d.Policy = string(text); err != nil && statusOf(err) != http.StatusNotFound {
		p.Error = err.Error() // nothing on record is no error here: the page says what to do
	}
	p.Data = d
	s.render(w, r, http.StatusOK, "learn", p)
	return nil
}

// learnTry replays a proposal on what was seen, or puts it into force.
func (s *Server) learnTry(w http.ResponseWriter, r *request) error {
	ctx := r.Context()
	a, err := s.API.Attachment(ctx, r.container())
	if err != nil {
		return err
	}
	d := learnData{Attachment: a, Since: r.PostFormValue("since"), Suffix: r.PostFormValue("suffix") != "", Policy: r.PostFormValue("policy")}
	d.TTL, err = strconv.ParseInt(r.PostFormValue("ttl_seconds"), 10, 64)
	if err == nil && r.PostFormValue("do") == "apply" {
		var made api.Session
		made, err = s.API.CreateSession(ctx, api.SessionRequest{Container: a.ContainerID, TTLSeconds: d.TTL, Policy: api.PolicyString(d.Policy)})
		if err == nil {
			return s.done(w, r, pathTo("containers", a.ContainerID), "Session "+made.ID+" enforces the policy.")
		}
	} else if err == nil {
		var since time.Time
		if since, err = s.sinceOf(d.Since); err == nil {
			var replay api.Replay
			if replay, err = s.API.Replay(ctx, a.ContainerID, since, d.Policy); err == nil {
				d.Replay = &replay
			}
		}
	}
	p := page{Title: "Learn from " + a.Name, At: "overview", Data: d}
	status := http.StatusOK
	if err != nil {
		p.Error, status = err.Error(), statusOf(err)
	}
	s.render(w, r, status, "learn", p)
	return nil
}
