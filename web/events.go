package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"weir/api"
	"weir/audit"
)

// Bounds of a live view. A row costs a browser far more than the server: what
// is too much to be looked at is skipped, and said to be.
const (
	maxRows      = 60                     // sent at a time
	streamEvery  = 300 * time.Millisecond // between two sendings
	streamPing   = 20 * time.Second       // when nothing happens
	sendPatience = 10 * time.Second       // for a browser that does not read
	firstRows    = 100                    // on the page when it is opened
)

// eventsData is what the events' page shows.
type eventsData struct {
	Filter      eventFilter
	Events      []audit.Event // newest first
	Stream      string        // address of what comes after them
	Older       string        // address of what was before them; "" at the end
	Attachments []api.Attachment
}

// An eventFilter is what the form above the events says.
type eventFilter struct {
	Container, Verdict, Type, Host string
	before                         int64
}

// Any reports whether anything is left out.
func (f eventFilter) Any() bool { return f.Container+f.Verdict+f.Type+f.Host != "" }

// Types are those that there are.
func (eventFilter) Types() []audit.Type {
	return []audit.Type{audit.DNS, audit.Connect, audit.HTTP, audit.GraphQL, audit.Lifecycle, audit.Tamper, audit.Limit, audit.Ask}
}

func eventFilterOf(r *request) eventFilter {
	f := eventFilter{
		Container: strings.TrimSpace(r.FormValue("container")), Verdict: r.FormValue("verdict"), Type: r.FormValue("type"),
		Host: strings.TrimSpace(r.FormValue("host")),
	}
	f.before, _ = strconv.ParseInt(r.FormValue("before"), 10, 64) // else the newest
	return f
}

func (f eventFilter) audit() audit.Filter {
	return audit.Filter{Container: f.Container, Verdict: f.Verdict, Type: audit.Type(f.Type), Host: f.Host}
}

func (f eventFilter) address(to, key string, value int64) string {
	return queryTo(to, "container", f.Container, "verdict", f.Verdict, "type", f.Type, "host", f.Host, key, value)
}

func (s *Server) events(w http.ResponseWriter, r *request) error {
	d := eventsData{Filter: eventFilterOf(r)}
	// Before the page is read: what happens meanwhile is in both, and the
	// stream's copy is left out by its id.
	last := s.Log.Last()
	f := d.Filter.audit()
	f.Newest, f.Limit, f.Cursor = true, firstRows, d.Filter.before
	var err error
	if d.Events, err = s.Events(r.Context(), f); err != nil {
		return err
	}
	if len(d.Events) == firstRows {
		d.Older = d.Filter.address("/events", "before", d.Events[firstRows-1].ID)
	}
	if d.Filter.before == 0 {
		if len(d.Events) > 0 {
			last = max(last, d.Events[0].ID)
		}
		d.Stream = d.Filter.address("/events/stream", "after", last)
	}
	if d.Attachments, err = s.API.Attachments(r.Context()); err != nil {
		return err
	}
	s.render(w, r, http.StatusOK, "events", page{Title: "Events", At: "events", Data: d})
	return nil
}

// eventStream sends the rows of new events, a batch at a time.
func (s *Server) eventStream(w http.ResponseWriter, r *request) error {
	f := eventFilterOf(r).audit()
	after, err := strconv.ParseInt(r.FormValue("after"), 10, 64)
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		after, err = strconv.ParseInt(last, 10, 64)
	}
	if err != nil || after < 0 {
		after = s.Log.Last()
	}
	f.Cursor, f.Limit = after, audit.RingSize
	w.Header().Set("Content-Type", "text/event-stream")
	to := &stream{w: w, control: http.NewResponseController(w)}
	if to.send("ping", "", "") != nil {
		return nil
	}
	sub := s.Log.Subscribe(f)
	skipped := 0
	for {
		wait, cancel := context.WithTimeout(r.Context(), streamPing)
		rows, err := sub.Next(wait)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded) && r.Context().Err() == nil:
			err = to.send("ping", "", "")
		case err == nil:
			if sub.Lagging() {
				// Too far behind to be live: what was missed is in the store.
				f.Cursor = s.Log.Last()
				sub = s.Log.Subscribe(f)
			}
			skipped += max(0, len(rows)-maxRows)
			err = s.sendRows(to, rows[max(0, len(rows)-maxRows):], sub.Cursor(), skipped)
		}
		if s.logins.find(r.Request, s.Now()) == nil {
			return nil // logged out; the browser comes back and is told
		}
		if err != nil {
			return nil // the browser or the daemon is gone: there is nobody to tell
		}
		select {
		case <-time.After(streamEvery):
		case <-r.Context().Done():
			return nil
		}
	}
}

// sendRows sends rows, newest first, and how many were left out so far.
func (s *Server) sendRows(to *stream, rows []audit.Event, cursor int64, skipped int) error {
	var b bytes.Buffer
	for i := len(rows) - 1; i >= 0; i-- {
		if err := s.pages["events"].ExecuteTemplate(&b, "event-row", rows[i]); err != nil {
			return err
		}
	}
	if err := to.send("rows", strconv.FormatInt(cursor, 10), b.String()); err != nil || skipped == 0 {
		return err
	}
	return to.send("skipped", "", fmt.Sprintf("%d events were too many to show; narrow them down, or see them all with weir events", skipped))
}

// A stream is server-sent events on their way to one browser.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

// send sends one message; the browser has sendPatience to take it.
func (t *stream) send(event, id, data string) error {
	var b strings.Builder
	b.WriteString("event: " + event + "\n")
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	for line := range strings.SplitSeq(data, "\n") {
		b.WriteString("data: " + strings.ReplaceAll(line, "\r", "") + "\n")
	}
	b.WriteString("\n")
	if err := t.control.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return err
	}
	if _, err := t.w.Write([]byte(b.String())); err != nil {
		return err
	}
	return t.control.Flush()
}

// eventData is what one event's page shows.
type eventData struct {
	audit.Event
	// Now is what would be decided now, with its trace; nil when there is
	// nothing to ask, or nobody to ask about.
	Now     *api.Decision
	NowWhy  string // why there is none
	Explain string // address of the form that asks again
	Allow   string // addresses of forms that would change a refusal
	Session string
}

func (s *Server) event(w http.ResponseWriter, r *request) error {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	var found []audit.Event
	if err == nil && id > 0 {
		if found, err = s.Events(r.Context(), audit.Filter{Cursor: id - 1, Limit: 1}); err != nil {
			return err
		}
	}
	if len(found) == 0 || found[0].ID != id {
		return &api.Problem{Title: "Not Found", Status: http.StatusNotFound, Detail: "there is no event " + r.PathValue("id") + ": the audit trail keeps events for a time only"}
	}
	d := eventData{Event: found[0]}
	s.askAgain(r.Context(), &d)
	if r.fragment() {
		return s.part(w, "event", "event", d)
	}
	s.render(w, r, http.StatusOK, "event", page{Title: "Event", At: "events", Data: d})
	return nil
}

// askAgain fills in what would be decided now about what an event is about.
func (s *Server) askAgain(ctx context.Context, d *eventData) {
	e := &d.Event
	ask := api.ExplainRequest{Container: e.ContainerID, Destination: e.Host, Address: e.Address, Port: int(e.Port), Transport: e.Transport, Binary: e.Binary}
	if ask.Destination == "" {
		ask.Destination, ask.Address = e.Address, ""
	}
	if ask.Destination == "" || e.Verdict == "" {
		return
	}
	// The body of a GraphQL request is not kept.
	if e.Type == audit.HTTP {
		ask.Method, ask.Target = e.Method, e.Path
	}
	if e.Type == audit.DNS {
		ask.Address, ask.Transport = "", ""
	}
	d.Explain = queryTo("/explain", "container", ask.Container, "destination", ask.Destination, "address", ask.Address, "port", ask.Port,
		"transport", ask.Transport, "binary", ask.Binary, "method", ask.Method, "target", ask.Target)
	if e.Verdict == "deny" && e.Layer != "guard" {
		d.Allow = queryTo("/rules", "action", "allow", "destination", ask.Destination, "ports", ask.Port, "container", e.ContainerName) + "#add"
		if e.Layer != "global" {
			d.Session = queryTo("/sessions", "container", e.ContainerID, "allow", hostPort(ask.Destination, "", e.Port)) + "#create"
		}
	}
	decision, err := s.API.Explain(ctx, ask)
	if err != nil {
		d.NowWhy = err.Error()
		return
	}
	d.Now = &decision
}
