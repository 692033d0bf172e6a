package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"weir/rules"
)

// Session is a stored session. Its Document is nil: the store keeps the text,
// and whoever compiles the policy parses it.
type Session struct {
	rules.SessionState
	PolicyName string // what messages about the policy call it: a file name
	PolicyText string // policy document, YAML or JSON; "": none
	// EndedAt is when the session was ended, or expired as far as Sweep has
	// noticed. Zero: neither.
	EndedAt time.Time
}

// SessionFilter selects sessions. The zero filter selects all that are stored,
// the ended ones that are kept for a while too.
type SessionFilter struct {
	Container string    // id or name, literally as the session has it
	LiveAt    time.Time // only sessions that are live then; zero: all
}

const sessionColumns = `seq, id, container, created, expires, ttl, ended, allow_all, ask, policy_name, policy_text, labels, inspect`

func scanSession(rows interface{ Scan(...any) error }) (Session, error) {
	var (
		s                       Session
		created, expires, ended sql.NullInt64
		labels, inspect         string
		ttl                     int64
	)
	if err := rows.Scan(&s.Seq, &s.ID, &s.Container, &created, &expires, &ttl, &ended, &s.AllowAll,
		&s.Ask, &s.PolicyName, &s.PolicyText, &labels, &inspect); err != nil {
		return s, err
	}
	s.TTL = time.Duration(ttl) * time.Microsecond
	s.Created, s.Expires, s.EndedAt, s.Ended = instant(created), instant(expires), instant(ended), ended.Valid
	if err := fromJSON(inspect, "inspect", &s.Inspect); err != nil {
		return s, err
	}
	return s, fromJSON(labels, "labels", &s.Labels)
}

// PutSession stores a session and returns it as stored: with Seq, and with
// rules that have their IDs, Orders, Created, and the session's expiry.
//
// If a session with this ID is live at now, it is replaced, rules and flags and
// all, and keeps its Seq and Created. One that ended or expired counts as not
// there: the new one gets a Seq of its own, above all others.
//
// ID, Container and Expires are required; a zero Created is now. Seq, Ended
// and EndedAt are not looked at. The rules must be canonical and without
// Endpoint; their ID, Order, SessionID, Source and Expires are not looked at.
func (s *Store) PutSession(ctx context.Context, session Session, now time.Time) (Session, error) {
	switch {
	case session.ID == "":
		return Session{}, errors.New("session without an id: give it one")
	case session.Container == "":
		return Session{}, fmt.Errorf("session %q has no container: name one", session.ID)
	case session.Expires.IsZero():
		return Session{}, fmt.Errorf("session %q has no expiry: give it one", session.ID)
	}
	if session.Created.IsZero() {
		session.Created = now
	}
	labels, err := asJSON(session.Labels)
	if err != nil {
		return Session{}, err
	}
	inspect, err := inspectText(session.Inspect)
	if err != nil {
		return Session{}, err
	}
	var stored Session
	err = s.write(ctx, "storing a session", synced, func(ctx context.Context, tx *sql.Tx) error {
		// The dead one makes way; its rules go with it.
		if _, err := tx.ExecContext(ctx, `DELETE FROM sessions WHERE id = ? AND (ended IS NOT NULL OR expires <= ?)`,
			session.ID, micros(now)); err != nil {
			return err
		}
		var seq int64
		err := tx.QueryRowContext(ctx, `INSERT INTO sessions
			(id, container, created, expires, ttl, allow_all, ask, policy_name, policy_text, labels, inspect) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET container = excluded.container, expires = excluded.expires, ttl = excluded.ttl,
				allow_all = excluded.allow_all, ask = excluded.ask, policy_name = excluded.policy_name, policy_text = excluded.policy_text,
				labels = excluded.labels, inspect = excluded.inspect
			RETURNING seq`,
			session.ID, session.Container, micros(session.Created), micros(session.Expires), session.TTL.Microseconds(), session.AllowAll, session.Ask,
			session.PolicyName, session.PolicyText, labels, inspect).Scan(&seq)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM rules WHERE session = ?`, seq); err != nil {
			return err
		}
		for _, r := range session.Rules {
			if r.Created.IsZero() {
				r.Created = now
			}
			if _, err := insertRule(ctx, tx, sql.NullInt64{Int64: seq, Valid: true}, sql.NullInt64{}, r); err != nil {
				return fmt.Errorf("session %q: %w", session.ID, err)
			}
		}
		stored, err = sessionByID(ctx, tx, session.ID)
		return err
	})
	return stored, err
}

// Session returns one session, live or not. ErrNotFound if there is none.
func (s *Store) Session(ctx context.Context, id string) (Session, error) {
	var found Session
	err := s.read(ctx, "reading a session", func(ctx context.Context, tx *sql.Tx) (err error) {
		found, err = sessionByID(ctx, tx, id)
		return err
	})
	return found, err
}

func sessionByID(ctx context.Context, tx *sql.Tx, id string) (Session, error) {
	var w where
	w.and(`id = ?`, id)
	found, err := sessionsWhere(ctx, tx, w)
	if err != nil {
		return Session{}, err
	}
	if len(found) == 0 {
		return Session{}, fmt.Errorf("session %q: %w", id, ErrNotFound)
	}
	return found[0], nil
}

// Sessions returns the sessions that f selects in creation order.
func (s *Store) Sessions(ctx context.Context, f SessionFilter) ([]Session, error) {
	var w where
	if f.Container != "" {
		w.and(`container = ?`, f.Container)
	}
	if !f.LiveAt.IsZero() {
		w.and(`ended IS NULL AND expires > ?`, micros(f.LiveAt))
	}
	var found []Session
	err := s.read(ctx, "listing sessions", func(ctx context.Context, tx *sql.Tx) (err error) {
		found, err = sessionsWhere(ctx, tx, w)
		return err
	})
	return found, err
}

func sessionsWhere(ctx context.Context, tx *sql.Tx, w where) ([]Session, error) {
	var found []Session
	at := map[string]int{}
	err := query(ctx, tx, `SELECT `+sessionColumns+` FROM sessions`+w.text+` ORDER BY seq`, w.args, func(rows *sql.Rows) error {
		s, err := scanSession(rows)
		at[s.ID] = len(found)
		found = append(found, s)
		return err
	})
	if err != nil {
		return nil, err
	}
	// One query for the rules of all of them, in the same moment.
	err = query(ctx, tx, `SELECT `+ruleColumns+ruleTables+` WHERE r.session IN (SELECT seq FROM sessions`+w.text+`) ORDER BY r.number`,
		w.args, func(rows *sql.Rows) error {
			r, err := scanRule(rows)
			if err != nil {
				return err
			}
			s := &found[at[r.SessionID]]
			s.Rules = append(s.Rules, r.Rule)
			return nil
		})
	return found, err
}

// ExtendSession moves a live session's expiry, and with it that of its rules.
// ErrNotFound if there is no session with this id that is live at now.
func (s *Store) ExtendSession(ctx context.Context, id string, expires, now time.Time) (Session, error) {
	var extended Session
	err := s.write(ctx, "extending a session", synced, func(ctx context.Context, tx *sql.Tx) error {
		err := liveSession(id, changed(tx.ExecContext(ctx,
			`UPDATE sessions SET expires = ? WHERE id = ? AND ended IS NULL AND expires > ?`, micros(expires), id, micros(now))))
		if err != nil {
			return err
		}
		extended, err = sessionByID(ctx, tx, id)
		return err
	})
	return extended, err
}

// EndSession ends a live session: its rules and its policy text are gone, the
// rest is kept as history until Sweep. ErrNotFound if there is no session with
// this id that is live at now.
func (s *Store) EndSession(ctx context.Context, id string, now time.Time) error {
	return s.write(ctx, "ending a session", synced, func(ctx context.Context, tx *sql.Tx) error {
		err := liveSession(id, changed(tx.ExecContext(ctx,
			`UPDATE sessions SET ended = ?1, policy_text = '' WHERE id = ?2 AND ended IS NULL AND expires > ?1`, micros(now), id)))
		if err != nil {
			return err
		}
		return deleteRulesOfEnded(ctx, tx)
	})
}

// SetInspect replaces the hosts that a live session looks into. ErrNotFound if
// there is no session with this id that is live at now.
func (s *Store) SetInspect(ctx context.Context, id string, hosts []string, now time.Time) error {
	text, err := inspectText(hosts)
	if err != nil {
		return err
	}
	return s.write(ctx, "changing a session", synced, func(ctx context.Context, tx *sql.Tx) error {
		return liveSession(id, changed(tx.ExecContext(ctx,
			`UPDATE sessions SET inspect = ? WHERE id = ? AND ended IS NULL AND expires > ?`, text, id, micros(now))))
	})
}

// AddSessionRule adds a rule to a live session; it expires with it. The rule
// must be canonical and without Endpoint, Created is required; ID, Order,
// Source, SessionID and Expires are not looked at. ErrNotFound if there is no
// session with this id that is live at now.
func (s *Store) AddSessionRule(ctx context.Context, id string, r rules.Rule, now time.Time) (Rule, error) {
	var added Rule
	err := s.write(ctx, "adding a rule to a session", synced, func(ctx context.Context, tx *sql.Tx) error {
		var seq int64
		err := tx.QueryRowContext(ctx, `SELECT seq FROM sessions WHERE id = ? AND ended IS NULL AND expires > ?`, id, micros(now)).Scan(&seq)
		if errors.Is(err, sql.ErrNoRows) {
			return liveSession(id, ErrNotFound)
		}
		if err != nil {
			return err
		}
		n, err := insertRule(ctx, tx, sql.NullInt64{Int64: seq, Valid: true}, sql.NullInt64{}, r)
		if err != nil {
			return err
		}
		added, err = ruleByNumber(ctx, tx, n)
		return err
	})
	return added, err
}

// inspectText is how a session's hosts to look into are kept.
func inspectText(hosts []string) (string, error) {
	if len(hosts) == 0 {
		return "", nil
	}
	return asJSON(hosts)
}

func liveSession(id string, err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("live session %q: %w (it never was, has ended or has expired)", id, err)
	}
	return err
}

func deleteRulesOfEnded(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM rules WHERE session IN (SELECT seq FROM sessions WHERE ended IS NOT NULL)`)
	return err
}

// DeleteSession removes every trace of a session, live or not. ErrNotFound if
// there is none.
func (s *Store) DeleteSession(ctx context.Context, id string) error {
	return s.write(ctx, "deleting a session", synced, func(ctx context.Context, tx *sql.Tx) error {
		if err := changed(tx.ExecContext(ctx, `DELETE FROM sessions WHERE id = ?`, id)); err != nil {
			return fmt.Errorf("session %q: %w", id, err)
		}
		return nil
	})
}

// Swept is what a Sweep found to be over.
type Swept struct {
	Sessions []Session // expired since the last Sweep, in creation order, rules no longer with them
	Rules    []Rule    // expired global rules, now deleted
}

// Sweep ends the sessions that have expired at now, deletes the global rules
// that have, and forgets sessions that have been over for keep or longer.
func (s *Store) Sweep(ctx context.Context, now time.Time, keep time.Duration) (Swept, error) {
	var swept Swept
	err := s.write(ctx, "sweeping expired sessions", synced, func(ctx context.Context, tx *sql.Tx) error {
		err := query(ctx, tx, `UPDATE sessions SET ended = expires, policy_text = '' WHERE ended IS NULL AND expires <= ?
			RETURNING `+sessionColumns, []any{micros(now)}, func(rows *sql.Rows) error {
			session, err := scanSession(rows)
			swept.Sessions = append(swept.Sessions, session)
			return err
		})
		if err != nil {
			return err
		}
		// RETURNING promises no order.
		slices.SortFunc(swept.Sessions, func(a, b Session) int { return cmp.Compare(a.Seq, b.Seq) })
		if err := deleteRulesOfEnded(ctx, tx); err != nil {
			return err
		}
		err = query(ctx, tx, `SELECT `+ruleColumns+ruleTables+` WHERE r.session IS NULL AND r.expires <= ? ORDER BY r.number`,
			[]any{micros(now)}, func(rows *sql.Rows) error {
				r, err := scanRule(rows)
				swept.Rules = append(swept.Rules, r)
				return err
			})
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM rules WHERE session IS NULL AND expires <= ?`, micros(now)); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM sessions WHERE ended <= ?`, micros(now.Add(-keep)))
		return err
	})
	return swept, err
}
