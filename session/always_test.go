package session

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// What a container can make fail, as the watch over its ruleset, must not stay
// failed.
func TestWhatFailsBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*retryPause+retryPause/2)
		defer cancel()
		runs, failures := 0, 0
		always(ctx, func(ctx context.Context) error {
			if runs++; runs > 5 {
				<-ctx.Done()
				return ctx.Err()
			}
			return errors.New("buffer overrun")
		}, func(error) { failures++ })
		if runs != 6 || failures != 5 {
			t.Errorf("ran %d times and failed %d times, want 6 and 5", runs, failures)
		}
		if ctx.Err() == nil {
			t.Error("ended before its context did")
		}
	})
}

func TestTheEndIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(retryPause/2, cancel)
		failed := func(err error) { t.Errorf("failed with %v", err) }
		always(ctx, func(ctx context.Context) error { <-ctx.Done(); return errors.New("interrupted") }, failed)
		always(t.Context(), func(context.Context) error { return nil }, failed)
	})
}
