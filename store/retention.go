package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Retention bounds the audit trail. A zero bound does not bound.
type Retention struct {
	MaxAge  time.Duration
	MaxRows int64
	// MaxBytes bounds the whole database, as Size measures it. Only events are
	// deleted to keep it.
	MaxBytes int64
}

// How many events one transaction deletes: about 10 ms, for which recording waits.
const deleteChunk = 2000

// DeleteOldEvents deletes the oldest events until the rest is within r at now,
// and returns how many it deleted. The newest event is always left. It works in
// small transactions, so that recording goes on meanwhile; when it fails or ctx
// ends, what was deleted stays deleted.
func (s *Store) DeleteOldEvents(ctx context.Context, r Retention, now time.Time) (int64, error) {
	cut, err := s.retentionCut(ctx, r, now)
	if err != nil {
		return 0, err
	}
	var deleted int64
	for cut > 0 {
		n, err := s.deleteEvents(ctx, cut)
		deleted += n
		if err != nil {
			return deleted, err
		}
		if n < deleteChunk {
			break
		}
	}
	for r.MaxBytes > 0 {
		size, err := s.Size(ctx)
		if err != nil || size <= r.MaxBytes {
			return deleted, err
		}
		last, err := s.LastEventID(ctx)
		if err != nil {
			return deleted, err
		}
		n, err := s.deleteEvents(ctx, last)
		deleted += n
		if err != nil || n == 0 { // nothing left that may be deleted
			return deleted, err
		}
	}
	return deleted, nil
}

// retentionCut is the id below which age and number say to delete.
func (s *Store) retentionCut(ctx context.Context, r Retention, now time.Time) (int64, error) {
	var cut int64
	err := s.read(ctx, "looking for old events", func(ctx context.Context, tx *sql.Tx) error {
		if r.MaxAge > 0 {
			// The old ones are in front, so this stops at the first that is kept.
			var young sql.NullInt64
			err := tx.QueryRowContext(ctx, `SELECT COALESCE(
				(SELECT id FROM events WHERE time >= ? ORDER BY id LIMIT 1), (SELECT MAX(id) FROM events))`,
				micros(now.Add(-r.MaxAge))).Scan(&young)
			if err != nil {
				return err
			}
			cut = young.Int64
		}
		if r.MaxRows > 0 {
			var first int64
			err := tx.QueryRowContext(ctx, `SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?`, r.MaxRows-1).Scan(&first)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			cut = max(cut, first)
		}
		return nil
	})
	return cut, err
}

// deleteEvents deletes the oldest events with ids below cut, at most
// deleteChunk of them, and the containers that no event is left of.
func (s *Store) deleteEvents(ctx context.Context, cut int64) (int64, error) {
	var n int64
	err := s.write(ctx, "deleting old events", written, func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < ? ORDER BY id LIMIT ?)`, cut, deleteChunk)
		if err != nil {
			return err
		}
		if n, err = res.RowsAffected(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM event_containers WHERE NOT EXISTS
			(SELECT 1 FROM events WHERE events.container = event_containers.key)`)
		return err
	})
	return n, err
}
