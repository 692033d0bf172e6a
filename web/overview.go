package web

import (
	"net/http"

	"weir/api"
	"weir/audit"
)

// overviewData is what the overview shows.
type overviewData struct {
	Attachments []api.Attachment
	Sessions    int
	Learning    int
	Flows       int
	Rate        float64 // connections a second, over the last ten
	Denied      int     // in the last minute
	Allowed     int
	Plot        plot
	Refused     []audit.Event // the latest
}

// The plot's size in its own units: one column of four units for each second.
const (
	columnWidth = 10
	plotHeight  = 100
)

// A plot is a bar for each second, refusals at the foot.
type plot struct {
	Bars  []bar
	Width int
	Most  int // decisions in the busiest second
}

type bar struct {
	X, AllowedY, Allowed, DeniedY, Denied int
	AllowedCount, DeniedCount             int
}

func newPlot(seconds []second) plot {
	p := plot{Width: columnWidth * len(seconds)}
	for _, s := range seconds {
		p.Most = max(p.Most, s.allowed+s.denied)
	}
	// Below ten a second a lone decision should not look like a storm.
	scale := max(p.Most, 10)
	height := func(n int) int {
		if n == 0 {
			return 0
		}
		return max(2, n*plotHeight/scale)
	}
	for i, s := range seconds {
		if s.allowed+s.denied == 0 {
			continue
		}
		b := bar{X: i*columnWidth + 1, Allowed: height(s.allowed), Denied: height(s.denied), AllowedCount: s.allowed, DeniedCount: s.denied}
		b.DeniedY = plotHeight - b.Denied
		b.AllowedY = max(0, b.DeniedY-b.Allowed)
		p.Bars = append(p.Bars, b)
	}
	return p
}

func (s *Server) overviewOf(r *request) (d overviewData, err error) {
	ctx := r.Context()
	if d.Attachments, err = s.API.Attachments(ctx); err != nil {
		return d, err
	}
	for _, a := range d.Attachments {
		d.Flows += a.Flows
	}
	sessions, err := s.API.Sessions(ctx)
	if err != nil {
		return d, err
	}
	d.Sessions = len(sessions)
	for _, one := range sessions {
		if one.AllowAll && one.Current {
			d.Learning++
		}
	}
	seconds := s.Activity.last(s.Now())
	d.Plot = newPlot(seconds)
	for i, one := range seconds {
		d.Denied += one.denied
		d.Allowed += one.allowed
		if i >= len(seconds)-10 {
			d.Rate += float64(one.flows) / 10
		}
	}
	d.Refused, err = s.Events(ctx, audit.Filter{Verdict: "deny", Newest: true, Limit: 8})
	return d, err
}

func (s *Server) overview(w http.ResponseWriter, r *request) error {
	d, err := s.overviewOf(r)
	if err != nil {
		return err
	}
	s.render(w, r, http.StatusOK, "overview", page{Title: "Overview", At: "overview", Data: d})
	return nil
}

func (s *Server) overviewLive(w http.ResponseWriter, r *request) error {
	d, err := s.overviewOf(r)
	if err != nil {
		return err
	}
	return s.part(w, "overview", "live", d)
}

func (s *Server) attach(w http.ResponseWriter, r *request) error {
	a, err := s.API.Attach(r.Context(), r.PostFormValue("container"))
	if err != nil {
		d, broken := s.overviewOf(r)
		if broken != nil {
			return broken
		}
		s.render(w, r, statusOf(err), "overview", page{Title: "Overview", At: "overview", Error: err.Error(), Data: d})
		return nil
	}
	return s.done(w, r, pathTo("containers", a.ContainerID), a.Name+" is attached. Without a session only global rules count.")
}
