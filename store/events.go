package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"weir/audit"
)

const eventColumns = `e.id, e.time, c.id, c.name, e.type, e.session_id, e.verdict, e.layer, e.rule_id, e.reason,
	e.host, e.address, e.port, e.transport, e.binary, e.method, e.path, e.upgrade, e.operations, e.bytes_in, e.bytes_out, e.duration_ms, e.would`

const eventTables = ` FROM events e JOIN event_containers c ON c.key = e.container`

// AppendEvents stores a batch, all of it or nothing. Ids must be increasing and
// above all stored ones, and an id at least its event's Time in microseconds:
// audit.Log sees to both. Appending an event again that is stored already does
// nothing, so that a batch whose fate is not known can be tried again.
func (s *Store) AppendEvents(ctx context.Context, batch []audit.Event) error {
	return s.write(ctx, "recording events", written, func(ctx context.Context, tx *sql.Tx) error {
		insert, err := tx.PrepareContext(ctx, `INSERT INTO events (id, time, container, type, session_id, verdict, layer, rule_id, reason,
			host, address, port, transport, binary, method, path, upgrade, operations, bytes_in, bytes_out, duration_ms, would)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING`)
		if err != nil {
			return err
		}
		defer insert.Close()
		type container struct{ id, name string }
		keys := map[container]int64{}
		for i := range batch {
			e := &batch[i]
			at := e.Time.UnixMicro()
			if e.ID < at || e.ID <= 0 {
				return fmt.Errorf("event %d of %s: its id is older than its time: events get their ids from audit.Log", e.ID, e.Time)
			}
			c := container{e.ContainerID, e.ContainerName}
			key, ok := keys[c]
			if !ok {
				// The update changes nothing; without it there is no row to return.
				if err := tx.QueryRowContext(ctx, `INSERT INTO event_containers (id, name) VALUES (?, ?)
					ON CONFLICT (id, name) DO UPDATE SET name = excluded.name RETURNING key`, c.id, c.name).Scan(&key); err != nil {
					return err
				}
				keys[c] = key
			}
			var operations, would []byte
			if len(e.Operations) > 0 {
				if operations, err = json.Marshal(e.Operations); err != nil {
					return err
				}
			}
			if e.Would != nil {
				if would, err = json.Marshal(e.Would); err != nil {
					return err
				}
			}
			// Without ctx: the driver would start a goroutine for each event to
			// interrupt it. The batch is checked between events.
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := insert.Exec(e.ID, at, key, string(e.Type), e.SessionID, e.Verdict, e.Layer, e.RuleID, e.Reason,
				e.Host, e.Address, int64(e.Port), e.Transport, e.Binary, e.Method, e.Path, e.Upgrade, string(operations),
				e.BytesIn, e.BytesOut, e.DurationMS, string(would)); err != nil {
				return err
			}
		}
		return nil
	})
}

func scanEvent(rows *sql.Rows) (audit.Event, error) {
	var (
		e                 audit.Event
		at                int64
		operations, would string
	)
	if err := rows.Scan(&e.ID, &at, &e.ContainerID, &e.ContainerName, &e.Type, &e.SessionID, &e.Verdict, &e.Layer, &e.RuleID, &e.Reason,
		&e.Host, &e.Address, &e.Port, &e.Transport, &e.Binary, &e.Method, &e.Path, &e.Upgrade, &operations,
		&e.BytesIn, &e.BytesOut, &e.DurationMS, &would); err != nil {
		return e, err
	}
	e.Time = time.UnixMicro(at).UTC()
	if err := fromJSON(operations, "operations", &e.Operations); err != nil {
		return e, err
	}
	return e, fromJSON(would, "would", &e.Would)
}

// Events returns the events that f selects, in the order it asks for and
// f.Page() at most. The id of the last one is the cursor of the next page; a
// page that is not full is the last one for now.
func (s *Store) Events(ctx context.Context, f audit.Filter) ([]audit.Event, error) {
	var found []audit.Event
	err := s.read(ctx, "listing events", func(ctx context.Context, tx *sql.Tx) error {
		w, err := eventsWhere(ctx, tx, f)
		if err != nil {
			return err
		}
		order := ` ORDER BY e.id LIMIT ?`
		if f.Newest {
			order = ` ORDER BY e.id DESC LIMIT ?`
		}
		return query(ctx, tx, `SELECT `+eventColumns+eventTables+w.text+order, append(w.args, f.Page()), func(rows *sql.Rows) error {
			e, err := scanEvent(rows)
			found = append(found, e)
			return err
		})
	})
	return found, err
}

func eventsWhere(ctx context.Context, tx *sql.Tx, f audit.Filter) (where, error) {
	var w where
	switch {
	case f.Cursor == 0:
	case f.Newest:
		w.and(`e.id < ?`, f.Cursor)
	default:
		w.and(`e.id > ?`, f.Cursor)
	}
	if f.Container != "" {
		// Looked up first: with one key, which is the usual case, the index
		// gives the events in order and a page costs no more than its rows.
		var keys []any
		err := query(ctx, tx, `SELECT key FROM event_containers WHERE id = ?1 OR name = ?1`, []any{f.Container}, func(rows *sql.Rows) error {
			var key int64
			err := rows.Scan(&key)
			keys = append(keys, key)
			return err
		})
		if err != nil {
			return w, err
		}
		if len(keys) == 1 {
			w.and(`e.container = ?`, keys...)
		} else {
			w.and(`e.container IN (SELECT key FROM event_containers WHERE id = ? OR name = ?)`, f.Container, f.Container)
		}
	}
	switch f.Verdict {
	case "":
	case "deny":
		w.and(`e.verdict = 'deny'`) // literally, for the partial index
	default:
		w.and(`e.verdict = ?`, f.Verdict)
	}
	if f.Type != "" {
		w.and(`e.type = ?`, string(f.Type))
	}
	if f.Host != "" {
		w.and(`(e.host = ? COLLATE NOCASE OR e.address = ? COLLATE NOCASE)`, f.Host, f.Host)
	}
	if f.SessionID != "" {
		w.and(`e.session_id = ?`, f.SessionID)
	}
	if !f.Since.IsZero() {
		// An id is never below its event's time, so the first condition is
		// implied by the second; it lets the search begin where it matters.
		since := f.Since.UnixMicro()
		if f.Since.After(time.UnixMicro(since)) {
			since++ // stored times have no finer part
		}
		w.and(`e.id >= ? AND e.time >= ?`, since, since)
	}
	return w, nil
}

// LastEventID is the largest id that is stored, 0 when there is none. It does
// not go down: retention leaves the newest event.
func (s *Store) LastEventID(ctx context.Context) (int64, error) {
	var last sql.NullInt64
	err := s.read(ctx, "reading the last event's id", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT MAX(id) FROM events`).Scan(&last)
	})
	return last.Int64, err
}

// EventCount is how many events of one container are stored.
type EventCount struct {
	ContainerID string
	Allowed     int64 // events with verdict allow
	Denied      int64 // events with verdict deny
	Total       int64 // those and the ones without a verdict
	LastID      int64
}

// CountEvents counts the events recorded at since or later, by container id.
// It looks at each of them: milliseconds for thousands, about a second for
// millions.
func (s *Store) CountEvents(ctx context.Context, since time.Time) ([]EventCount, error) {
	var w where
	if !since.IsZero() {
		w.and(`e.id >= ?`, since.UnixMicro())
	}
	var found []EventCount
	err := s.read(ctx, "counting events", func(ctx context.Context, tx *sql.Tx) error {
		return query(ctx, tx, `SELECT c.id, SUM(e.verdict = 'allow'), SUM(e.verdict = 'deny'), COUNT(*), MAX(e.id)`+
			eventTables+w.text+` GROUP BY c.id ORDER BY c.id`, w.args, func(rows *sql.Rows) error {
			var n EventCount
			err := rows.Scan(&n.ContainerID, &n.Allowed, &n.Denied, &n.Total, &n.LastID)
			found = append(found, n)
			return err
		})
	})
	return found, err
}
