package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"weir/session"
	"weir/store"
)

// answer turns an error into an RFC 9457 problem document: the one place
// where errors become statuses.
func answer(err error) error {
	var known *session.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		switch known.Kind {
		case session.Invalid:
			return huma.Error422UnprocessableEntity(err.Error())
		case session.NotFound:
			return huma.Error404NotFound(err.Error())
		case session.Conflict:
			return huma.Error409Conflict(err.Error())
		case session.Unavailable:
			return huma.Error503ServiceUnavailable(err.Error())
		}
	case errors.Is(err, store.ErrNotFound): // gone since it was looked up
		return huma.Error404NotFound(err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return huma.Error503ServiceUnavailable(err.Error())
	}
	return huma.Error500InternalServerError(err.Error())
}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	// The client is gone if this fails; nobody is left to tell.
	_ = json.NewEncoder(w).Encode(Problem{Title: http.StatusText(status), Status: status, Detail: detail})
}
