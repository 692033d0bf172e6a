package web

import (
	"net/http"
	"strconv"
	"strings"

	"weir/api"
)

// rulesData is what the rules' page shows: the list, what it is narrowed down
// to, and the form as it was filled in.
type rulesData struct {
	Rules             []api.Rule
	Total             int
	Source, Container string
	Attachments       []api.Attachment
	Form              ruleForm
	Sessions          map[string]bool   // those that count
	Names             map[string]string // of attached containers, by id
}

// A ruleForm is a rule as a form has it.
type ruleForm struct {
	ID                                                                string // of the one to change
	Action, Destination, Ports, Transport, Container, Binaries, Notes string
	Expires                                                           string // seconds from now; "" is never, "keep" as it is
	Until                                                             *api.Rule
}

func ruleFormOf(r *http.Request) ruleForm {
	return ruleForm{
		Action: r.FormValue("action"), Destination: strings.TrimSpace(r.FormValue("destination")), Ports: strings.TrimSpace(r.FormValue("ports")),
		Transport: r.FormValue("transport"), Container: strings.TrimSpace(r.FormValue("container")), Binaries: r.FormValue("binaries"),
		Notes: r.FormValue("notes"), Expires: r.FormValue("expires"),
	}
}

// request makes an API request of the form; old is the rule to change, if any.
func (f ruleForm) request(old *api.Rule) (api.RuleRequest, error) {
	r := api.RuleRequest{
		Action: f.Action, Destination: f.Destination, Ports: f.Ports, Transport: f.Transport, Container: f.Container, Notes: f.Notes,
		Binaries: strings.Fields(f.Binaries),
	}
	switch {
	case f.Expires == "keep" && old != nil:
		r.ExpiresAt = old.ExpiresAt
	case f.Expires != "":
		var err error
		if r.ExpiresInSeconds, err = strconv.ParseInt(f.Expires, 10, 64); err != nil {
			return r, &api.Problem{Title: "Unprocessable Entity", Status: http.StatusUnprocessableEntity, Detail: "the expiry has to be a number of seconds"}
		}
	}
	return r, nil
}

func (s *Server) rulesOf(r *request, source, container string) (d rulesData, err error) {
	ctx := r.Context()
	d.Source, d.Container = source, container
	list, err := s.API.Rules(ctx, source, container, "")
	if err != nil {
		return d, err
	}
	d.Rules, d.Total = list.Items[:min(len(list.Items), maxListed)], list.Total
	sessions, err := s.API.Sessions(ctx)
	if err != nil {
		return d, err
	}
	d.Sessions = map[string]bool{}
	for _, one := range sessions {
		d.Sessions[one.ID] = one.Current
	}
	d.Attachments, err = s.API.Attachments(ctx)
	d.Names = map[string]string{}
	for _, a := range d.Attachments {
		d.Names[a.ContainerID] = a.Name
	}
	return d, err
}

func (s *Server) rules(w http.ResponseWriter, r *request) error {
	q := r.URL.Query()
	d, err := s.rulesOf(r, q.Get("source"), q.Get("for"))
	if err != nil {
		return err
	}
	d.Form = ruleFormOf(r.Request)
	s.render(w, r, http.StatusOK, "rules", page{Title: "Rules", At: "rules", Data: d})
	return nil
}

func (s *Server) addRule(w http.ResponseWriter, r *request) error {
	f := ruleFormOf(r.Request)
	ask, err := f.request(nil)
	if err == nil {
		var added api.Rule
		if added, err = s.API.AddRule(r.Context(), ask); err == nil {
			return s.done(w, r, "/rules", saidOf("added", added))
		}
	}
	d, broken := s.rulesOf(r, "", "")
	if broken != nil {
		return broken
	}
	d.Form = f
	s.render(w, r, statusOf(err), "rules", page{Title: "Rules", At: "rules", Error: err.Error(), Data: d})
	return nil
}

// saidOf says what became of a rule.
func saidOf(verb string, r api.Rule) string {
	text := "Rule " + r.ID + " is " + verb + ": " + r.Action + " " + r.Destination + ", ports " + r.Ports + ", for " + r.Container + "."
	for _, warning := range r.Warnings {
		text += " Note: " + warning + "."
	}
	return text
}

// globalRule finds a rule that can be changed.
func (s *Server) globalRule(r *request) (api.Rule, error) {
	id := r.PathValue("id")
	list, err := s.API.Rules(r.Context(), "global", "", "")
	if err != nil {
		return api.Rule{}, err
	}
	for _, one := range list.Items {
		if one.ID == id && !ofDocument(id) {
			return one, nil
		}
	}
	return api.Rule{}, &api.Problem{Title: "Not Found", Status: http.StatusNotFound, Detail: "there is no global rule " + id + " that stands by itself: it has expired or was deleted, or it belongs to a session or a document"}
}

func (s *Server) rule(w http.ResponseWriter, r *request) error {
	old, err := s.globalRule(r)
	if err != nil {
		return err
	}
	f := ruleForm{
		ID: old.ID, Action: old.Action, Destination: old.Destination, Ports: old.Ports, Transport: old.Transport,
		Container: old.Container, Binaries: strings.Join(old.Binaries, "\n"), Notes: old.Notes, Until: &old,
	}
	if old.ExpiresAt != nil {
		f.Expires = "keep"
	}
	s.render(w, r, http.StatusOK, "rule", page{Title: "Rule " + old.ID, At: "rules", Data: f})
	return nil
}

func (s *Server) changeRule(w http.ResponseWriter, r *request) error {
	old, err := s.globalRule(r)
	if err != nil {
		return err
	}
	f := ruleFormOf(r.Request)
	f.ID, f.Until = old.ID, &old
	ask, err := f.request(&old)
	if err == nil {
		var changed api.Rule
		if changed, err = s.API.UpdateRule(r.Context(), old.ID, ask); err == nil {
			return s.done(w, r, "/rules", saidOf("changed", changed))
		}
	}
	s.render(w, r, statusOf(err), "rule", page{Title: "Rule " + old.ID, At: "rules", Error: err.Error(), Data: f})
	return nil
}

func (s *Server) deleteRule(w http.ResponseWriter, r *request) error {
	if err := s.API.DeleteRule(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	return s.done(w, r, "/rules", "Rule "+r.PathValue("id")+" is deleted.")
}
