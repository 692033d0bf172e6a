package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"weir/learn"
)

// document is an answer that is a policy document's text.
type document struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

// learning registers what turns observations into policies.
func (s *Server) learning(api huma.API) {
	huma.Register(api, huma.Operation{
		OperationID: "get-v1-learn-container", Method: "GET", Path: "/v1/learn/{container}",
		Summary: "A policy document that admits what a container was seen doing, and nothing else; its comments say what it was learned from",
		Errors:  []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		Responses: map[string]*huma.Response{"200": {
			Description: "OK", Content: map[string]*huma.MediaType{"application/yaml": {Schema: &huma.Schema{Type: huma.TypeString}}},
		}},
	}, s.learn)
	route(api, "POST", "/v1/replay/{container}", "What a policy would have made of what a container was seen doing", s.replay)
	route(api, "PUT", "/v1/sessions/{id}/inspect", "Set the hosts whose requests a session in learning mode looks at", s.inspect)
}

func (s *Server) learn(ctx context.Context, in *struct {
	Container string    `path:"container" doc:"id, unique id prefix or name"`
	Since     time.Time `query:"since" doc:"RFC 3339; everything on record when absent"`
	Suffix    bool      `query:"suffix" doc:"fold many names below one domain into *.DOMAIN"`
}) (*document, error) {
	learned, err := s.Conductor.Learn(ctx, in.Container, in.Since, in.Suffix)
	if err != nil {
		return nil, answer(err)
	}
	return &document{ContentType: "application/yaml", Body: learned.Text}, nil
}

func (s *Server) replay(ctx context.Context, in *struct {
	Container string    `path:"container" doc:"id, unique id prefix or name"`
	Since     time.Time `query:"since" doc:"RFC 3339; everything on record when absent"`
	Body      ReplayRequest
}) (*out[Replay], error) {
	text, err := in.Body.Policy.text()
	if err != nil {
		return nil, huma.Error422UnprocessableEntity(err.Error())
	}
	report, err := s.Conductor.Replay(ctx, in.Container, in.Since, text)
	return ok(Replay{
		Same: report.Same, Denied: changesOf(report.Denied), Allowed: changesOf(report.Allowed), Unknown: changesOf(report.Unknown),
	}, err)
}

func changesOf(list []learn.Change) []Change {
	out := make([]Change, 0, len(list))
	for _, c := range list {
		out = append(out, Change(c))
	}
	return out
}

func (s *Server) inspect(ctx context.Context, in *struct {
	ID   string `path:"id"`
	Body InspectRequest
}) (*out[Session], error) {
	changed, err := s.Conductor.SetInspect(ctx, in.ID, in.Body.InspectHosts)
	return ok(sessionOf(changed), err)
}
