package web

import (
	"net/http"
	"strconv"
	"strings"

	"weir/api"
)

// explainData is what the form for questions shows: the question and the answer.
type explainData struct {
	Ask         api.ExplainRequest
	Port        string
	ContentType string
	Decision    *api.Decision
	Attachments []api.Attachment
}

func (s *Server) explain(w http.ResponseWriter, r *request) error {
	q := r.URL.Query()
	get := func(key string) string { return strings.TrimSpace(q.Get(key)) }
	d := explainData{Port: get("port"), ContentType: get("content_type")}
	var err error
	if d.Attachments, err = s.API.Attachments(r.Context()); err != nil {
		return err
	}
	d.Ask = api.ExplainRequest{
		Container: get("container"), Destination: get("destination"), Address: get("address"), Transport: get("transport"),
		Binary: get("binary"), Method: get("method"), Target: get("target"), Body: q.Get("body"),
	}
	p := page{Title: "Explain", At: "explain"}
	status := http.StatusOK
	if d.Ask.Destination != "" {
		if d.Port != "" {
			if d.Ask.Port, err = strconv.Atoi(d.Port); err != nil {
				err = &api.Problem{Title: "Unprocessable Entity", Status: http.StatusUnprocessableEntity, Detail: "port " + strconv.Quote(d.Port) + ": want one number from 1 to 65535"}
			}
		}
		if d.ContentType != "" {
			d.Ask.Headers = map[string]string{"Content-Type": d.ContentType}
		}
		var decision api.Decision
		if err == nil {
			decision, err = s.API.Explain(r.Context(), d.Ask)
		}
		if err != nil {
			p.Error, status = err.Error(), statusOf(err)
		} else {
			d.Decision = &decision
		}
	}
	p.Data = d
	s.render(w, r, status, "explain", p)
	return nil
}
