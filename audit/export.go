package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Export writes stored events out, one line each, for programs that collect
// them: as JSON, or in OCSF. It follows the log as any viewer does: however
// slow its writer is, nothing waits for it.
type Export struct {
	// To gets whole lines, one Write each batch. Required.
	To io.Writer
	// OCSF chooses the Open Cybersecurity Schema Framework; else it is the
	// API's own JSON.
	OCSF bool
	// Version is the product's, for OCSF.
	Version string
	// CursorFile remembers the last event written, so that a restart neither
	// loses one nor writes one twice (a kill in between may write a batch
	// twice). "": each Run begins with what happens from then on.
	CursorFile string
}

// Run writes until ctx ends or the log is shut down and everything stored has
// been written. An error means that To or the cursor could not be written.
func (x *Export) Run(ctx context.Context, log *Log) error {
	cursor, err := x.cursor(log)
	if err != nil {
		return err
	}
	sub := log.Subscribe(Filter{Cursor: cursor, Limit: MaxLimit})
	for {
		events, err := sub.Next(ctx)
		if len(events) > 0 {
			if err := x.write(events); err != nil {
				return err
			}
		}
		if errors.Is(err, ErrShutdown) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (x *Export) cursor(log *Log) (int64, error) {
	if x.CursorFile == "" {
		return log.Last(), nil
	}
	text, err := os.ReadFile(x.CursorFile)
	if errors.Is(err, fs.ErrNotExist) {
		return log.Last(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("export of events: %w", err)
	}
	id, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("export of events: %s holds no event id: remove it to begin with the newest", x.CursorFile)
	}
	return id, nil
}

func (x *Export) write(events []Event) error {
	var lines bytes.Buffer
	enc := NewEncoder(&lines)
	for _, e := range events {
		var err error
		if x.OCSF {
			err = enc.Encode(OCSF(e, x.Version))
		} else {
			err = enc.Encode(e)
		}
		if err != nil {
			return fmt.Errorf("export of event %d: %w", e.ID, err)
		}
	}
	if _, err := x.To.Write(lines.Bytes()); err != nil {
		return fmt.Errorf("export of events: %w", err)
	}
	if x.CursorFile == "" {
		return nil
	}
	last := strconv.FormatInt(events[len(events)-1].ID, 10)
	temp := x.CursorFile + ".new"
	if err := os.WriteFile(temp, []byte(last+"\n"), 0o600); err != nil {
		return fmt.Errorf("export of events: %w", err)
	}
	return os.Rename(temp, x.CursorFile)
}
