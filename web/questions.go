package web

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"weir/api"
	"weir/audit"
)

// questionsEvery is how often a page that shows questions looks whether the
// connections that wait for an answer have become more or fewer.
const questionsEvery = 2 * time.Second

// A question is one as it is shown, open or over.
type question struct {
	api.Question
	Left, Most int // seconds until it is denied, now and at first

	Over  string // what became of it; "" while it is open
	Error string // why an answer was not taken
	Swap  bool   // it takes the place of what is shown of it already
}

// About is what is asked for, as a destination is written.
func (q question) About() string { return hostPort(q.Host, q.Address, q.Port) }

type questionsData struct {
	Questions []question
	Stream    string // address of what comes after them
}

func (s *Server) open(ctx context.Context) (list []question, err error) {
	asked, err := s.API.Questions(ctx, "")
	for _, q := range asked {
		list = append(list, s.question(q))
	}
	return list, err
}

func (s *Server) question(q api.Question) question {
	seconds := func(d time.Duration) int { return max(0, int(d.Round(time.Second)/time.Second)) }
	return question{Question: q, Left: seconds(q.ExpiresAt.Sub(s.Now())), Most: max(1, seconds(q.ExpiresAt.Sub(q.AskedAt)))}
}

func (s *Server) questions(w http.ResponseWriter, r *request) error {
	return s.showQuestions(w, r, http.StatusOK, "")
}

func (s *Server) showQuestions(w http.ResponseWriter, r *request, status int, failed string) error {
	// Before the list is read: what happens meanwhile is told by the stream.
	after := s.Log.Last()
	var d questionsData
	var err error
	if d.Questions, err = s.open(r.Context()); err != nil {
		return err
	}
	var shown []string
	for _, q := range d.Questions {
		shown = append(shown, q.ID)
	}
	d.Stream = queryTo("/questions/stream", "after", after, "shown", strings.Join(shown, " "))
	s.render(w, r, status, "questions", page{Title: "Questions", At: "questions", Error: failed, Data: d})
	return nil
}

// questionCount is the number in the navigation of every page.
func (s *Server) questionCount(w http.ResponseWriter, r *request) error {
	list, err := s.API.Questions(r.Context(), "")
	if err != nil {
		return err
	}
	return s.part(w, "questions", "question-count", len(list))
}

func (s *Server) answer(w http.ResponseWriter, r *request) error {
	id, verdict := r.PathValue("id"), r.PostFormValue("verdict")
	asked, _ := s.find(r.Context(), id)
	a, err := s.API.Answer(r.Context(), id, api.AnswerRequest{Verdict: verdict, For: r.PostFormValue("for"), What: r.PostFormValue("what")})
	if !r.fragment() {
		if err != nil {
			return s.showQuestions(w, r, statusOf(err), err.Error())
		}
		return s.done(w, r, "/questions", answeredText(a))
	}
	q := s.question(asked)
	switch {
	case err == nil:
		q.Over = answeredText(a)
	case statusOf(err) == http.StatusUnprocessableEntity && asked.ID != "":
		q.Error = err.Error()
	default:
		q.ID, q.Over = id, err.Error()
	}
	return s.part(w, "questions", "question", q)
}

// find returns an open question.
func (s *Server) find(ctx context.Context, id string) (api.Question, error) {
	list, err := s.API.Questions(ctx, "")
	for _, q := range list {
		if q.ID == id {
			return q, err
		}
	}
	return api.Question{}, err
}

// answeredText says what came of an answer.
func answeredText(a api.Answered) string {
	said := "Denied"
	if a.Verdict == "allow" {
		said = "Allowed"
	}
	if r := a.Rule; r != nil {
		said += ", with the " + r.Source + " rule: " + r.Action + " " + audit.Printable(r.Destination) + ", ports " + r.Ports
	} else {
		said += ", this time"
	}
	if a.Others > 0 {
		said += "; " + strconv.Itoa(a.Others) + " more questions are answered with it"
	}
	said += "."
	for _, warning := range a.Warnings {
		said += " Note: " + warning + "."
	}
	return said
}

// questionStream sends each question when it is asked, and what became of it.
func (s *Server) questionStream(w http.ResponseWriter, r *request) error {
	after, err := strconv.ParseInt(r.FormValue("after"), 10, 64)
	if err != nil || after < 0 {
		after = s.Log.Last()
	}
	w.Header().Set("Content-Type", "text/event-stream")
	to := &stream{w: w, control: http.NewResponseController(w)}
	sub := s.Log.Subscribe(audit.Filter{Type: audit.Ask, Cursor: after, Limit: audit.RingSize})
	shown := map[string]question{}
	for _, id := range strings.Fields(r.FormValue("shown")) {
		shown[id] = question{Question: api.Question{ID: id}}
	}
	reasons := map[string]string{}
	var pinged time.Time // so that the browser knows at once that it is heard
	for {
		sent, err := s.sendQuestions(r.Context(), to, shown, reasons)
		if err != nil {
			return nil // the browser or the daemon is gone: there is nobody to tell
		}
		if now := s.Now(); sent || now.Sub(pinged) > streamPing {
			if pinged = now; !sent && to.send("ping", "", "") != nil {
				return nil
			}
		}
		clear(reasons)
		wait, cancel := context.WithTimeout(r.Context(), questionsEvery)
		events, err := sub.Next(wait)
		cancel()
		if err != nil && (r.Context().Err() != nil || !errors.Is(err, context.DeadlineExceeded)) {
			return nil
		}
		for _, e := range events {
			if id, how, over := audit.QuestionOf(e.Reason); over && how != "" {
				reasons[id] = strings.ToUpper(how[:1]) + how[1:]
			}
		}
		if s.logins.find(r.Request, s.Now()) == nil {
			return nil // logged out; the browser comes back and is told
		}
	}
}

// sendQuestions brings what a browser shows up to date.
func (s *Server) sendQuestions(ctx context.Context, to *stream, shown map[string]question, reasons map[string]string) (sent bool, err error) {
	list, err := s.open(ctx)
	if err != nil {
		return false, err
	}
	var b bytes.Buffer
	put := func(q question) error {
		sent = true
		return s.pages["questions"].ExecuteTemplate(&b, "question", q)
	}
	open := map[string]bool{}
	for _, q := range list {
		open[q.ID] = true
		was, there := shown[q.ID]
		shown[q.ID] = q
		switch {
		case !there:
			err = put(q)
		case was.Flows != q.Flows:
			sent, err = true, s.pages["questions"].ExecuteTemplate(&b, "question-flows", q)
		}
		if err != nil {
			return sent, err
		}
	}
	for id, q := range shown {
		if open[id] {
			continue
		}
		delete(shown, id)
		q.Swap, q.Over = true, reasons[id]
		if q.Over == "" {
			q.Over = "It is over."
		}
		if err := put(q); err != nil {
			return sent, err
		}
	}
	if !sent {
		return false, nil
	}
	return true, to.send("questions", "", b.String())
}
