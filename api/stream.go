package api

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"weir/audit"
)

// streamPing keeps idle event streams from looking dead.
const streamPing = 20 * time.Second

// ping is sent while nothing happens.
type ping struct{}

// stream serves events as they are stored, as server-sent events with the
// event's id, so that a client that comes back with Last-Event-ID misses none.
func (s *Server) stream(api huma.API) {
	sse.Register(api, huma.Operation{
		OperationID: "get-v1-events-stream", Method: "GET", Path: "/v1/events/stream",
		Summary: "Events as they happen; resumable with Last-Event-ID",
	}, map[string]any{"message": audit.Event{}, "ping": ping{}}, func(ctx context.Context, in *struct {
		eventParams
		LastEventID string `header:"Last-Event-ID"`
	}, send sse.Sender) {
		f, err := in.filter()
		if err != nil {
			return
		}
		if f.Cursor == 0 {
			f.Cursor = s.Log.Last()
		}
		if id, err := strconv.ParseInt(in.LastEventID, 10, 64); err == nil && id > 0 {
			f.Cursor = id
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
				if send(sse.Message{ID: int(e.ID), Data: e}) != nil {
					return
				}
			}
		}
	})
}
