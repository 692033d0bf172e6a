package session

import (
	"context"
	"time"
)

// retryPause is how long what failed is left alone before it begins again.
const retryPause = time.Second

// always runs what has to go on until ctx ends. When it fails before, failed
// is told why and it begins again after retryPause.
func always(ctx context.Context, run func(context.Context) error, failed func(error)) {
	for {
		err := run(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		failed(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryPause):
		}
	}
}
