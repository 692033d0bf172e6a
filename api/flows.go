package api

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"weir/session"
)

// Flow is a connection as it is at one moment.
type Flow struct {
	ID        uint64    `json:"id" doc:"unique in its container while the daemon runs"`
	Started   time.Time `json:"started_at"`
	Client    string    `json:"client" doc:"in the container"`
	Host      string    `json:"host,omitempty" doc:"the name that counted"`
	Address   string    `json:"address,omitempty"`
	Port      uint16    `json:"port,omitempty"`
	State     string    `json:"state" enum:"judged,open" doc:"judged: it is still being judged or dialled"`
	Inspected bool      `json:"inspected" doc:"its requests are judged one by one"`
	Layer     string    `json:"layer,omitempty"`
	RuleID    string    `json:"rule_id,omitempty"`
	Reason    string    `json:"reason"`
	Binary    string    `json:"binary,omitempty" doc:"if it had to be found"`
	BytesIn   int64     `json:"bytes_in" doc:"from the outside to the container"`
	BytesOut  int64     `json:"bytes_out"`
}

// flowRoutes registers what shows and cuts live connections.
func (s *Server) flowRoutes(api huma.API) {
	route(api, "GET", "/v1/flows/{container}", "Connections of a container that are open now, oldest first", s.flows)
	route(api, "DELETE", "/v1/flows/{container}/{id}", "Cut one connection", s.kill)
}

func (s *Server) flows(ctx context.Context, in *containerPath) (*out[[]Flow], error) {
	live, err := s.Conductor.Flows(ctx, in.Container)
	list := []Flow{}
	for _, f := range live {
		list = append(list, flowOf(f))
	}
	return ok(list, err)
}

func flowOf(f session.Flow) Flow {
	out := Flow{
		ID: f.ID, Started: f.Started, Client: f.Client.String(), Host: f.Host, Port: f.Destination.Port(), State: "judged",
		Inspected: f.Inspected, Layer: string(f.Layer), Reason: f.Reason, Binary: f.Binary, BytesIn: f.BytesIn, BytesOut: f.BytesOut,
	}
	if f.Live {
		out.State = "open"
	}
	if f.Destination.Addr().IsValid() {
		out.Address = f.Destination.Addr().String()
	}
	if f.Rule != nil {
		out.RuleID = f.Rule.ID
	}
	return out
}

func (s *Server) kill(ctx context.Context, in *struct {
	Container string `path:"container"`
	ID        uint64 `path:"id"`
}) (*struct{}, error) {
	return nil, answer(s.Conductor.Kill(ctx, in.Container, in.ID))
}
