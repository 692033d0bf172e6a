package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
)

// micros is how a time is kept: NULL for the zero time. Microseconds rather
// than nanoseconds, whose range ends in 2262: an expiry in the year 9999 must
// not come back as one that has passed.
func micros(t time.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.UnixMicro(), Valid: !t.IsZero()}
}

// instant is the time that micros kept.
func instant(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return time.UnixMicro(n.Int64).UTC()
}

// asJSON is how lists and maps are kept. What is kept here always encodes.
func asJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// fromJSON is lenient on nothing: a value that does not decode is damage.
func fromJSON(text, column string, v any) error {
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return fmt.Errorf("column %s holds %.40q: %w", column, text, err)
	}
	return nil
}

// where collects conditions and their arguments.
type where struct {
	text string
	args []any
}

func (w *where) and(condition string, args ...any) {
	if w.text == "" {
		w.text = " WHERE "
	} else {
		w.text += " AND "
	}
	w.text += condition
	w.args = append(w.args, args...)
}
