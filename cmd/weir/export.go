package main

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"

	"weir/audit"
)

// exportRetry is how long a failed export waits before it goes on where it
// stood: a full disk may have room again.
const exportRetry = 5 * time.Second

// export writes events to the configured file as they are stored, until the
// trail is shut down. The channel is closed when the last one is written.
func (c *config) export(ctx context.Context, dataDir string, trail *audit.Log, logger *slog.Logger) <-chan struct{} {
	done := make(chan struct{})
	if c.Events.File == "" {
		close(done)
		return done
	}
	var to io.Writer = os.Stdout
	if c.Events.File != "-" {
		to = &lumberjack.Logger{Filename: c.Events.File, MaxSize: int(cmp.Or(c.Events.FileMB, 100)), MaxBackups: int(cmp.Or(c.Events.FileKeep, 5))}
	}
	x := &audit.Export{
		To: to, OCSF: c.Events.Format == "ocsf", Version: version, CursorFile: filepath.Join(dataDir, "events.cursor"),
	}
	go func() {
		defer close(done)
		for {
			err := x.Run(ctx, trail)
			if err == nil {
				return
			}
			logger.Error("writing events to the file; they are stored all the same", "file", c.Events.File, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(exportRetry):
			}
		}
	}()
	return done
}
