package api

import (
	"context"
	"errors"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"weir/audit"
)

// streamPing keeps idle event streams from looking dead.
const streamPing = 20 * time.Second

// ping is sent while nothing happens.
type ping struct{}

// streamParams select events and say where to begin: after Last-Event-ID, else
// after cursor, else at since, else with what happens from now on.
type streamParams struct {
	EventParams
	LastEventID string `header:"Last-Event-ID"`
}

// Resolve checks what EventParams does, and Last-Event-ID: a stream that began
// somewhere else would lose events without a word.
func (p *streamParams) Resolve(ctx huma.Context) []error {
	errs := p.EventParams.Resolve(ctx)
	if _, err := eventID("header.Last-Event-ID", p.LastEventID); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// stream serves events as they are stored, as server-sent events with the
// event's id, so that a client that comes back with Last-Event-ID misses none.
func (s *Server) stream(api huma.API) {
	sse.Register(api, huma.Operation{
		OperationID: "get-v1-events-stream", Method: "GET", Path: "/v1/events/stream",
		Summary: "Events as they happen; resumable with Last-Event-ID",
	}, map[string]any{"message": audit.Event{}, "ping": ping{}}, func(ctx context.Context, in *streamParams, send sse.Sender) {
		f, err := in.filter()
		if err != nil {
			return // Resolve has refused it
		}
		if in.LastEventID != "" {
			f.Cursor, _ = eventID("", in.LastEventID)
		} else if in.Cursor == "" && in.Since.IsZero() {
			f.Cursor = s.Log.Last()
		}
		sub := s.Log.Subscribe(f)
		for ctx.Err() == nil {
			wait, cancel := context.WithTimeout(ctx, streamPing)
			events, err := sub.Next(wait)
			cancel()
			switch {
			case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
				if send.Data(ping{}) != nil {
					return
				}
			case err != nil:
				return
			}
			for _, e := range events {
				if ctx.Err() != nil || send(sse.Message{ID: int(e.ID), Data: e}) != nil {
					return
				}
			}
		}
	})
}
