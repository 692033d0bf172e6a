package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"weir/rules"
)

// Rule is a stored rule and what is known about it besides what it says.
type Rule struct {
	rules.Rule
	// LastUsed is when the rule last made a decision, as far as TouchRules was
	// told. Zero: never.
	LastUsed time.Time
	// SessionContainer is the container of a session rule's session. "" for
	// global rules.
	SessionContainer string
}

// RuleFilter selects rules. The zero filter selects all that are stored.
type RuleFilter struct {
	Source    rules.Source // Global or Session; nothing else is stored
	SessionID string
	// Container is, literally, a global rule's pattern or the container of a
	// session rule's session.
	Container   string
	Destination string    // as written, case ignored
	LiveAt      time.Time // only rules that count then; zero: dead ones too
}

const ruleColumns = `r.number, r.container, r.destination, r.ports, r.transport, r.binaries, r.action,
	r.created, r.last_used, r.notes, COALESCE(r.expires, s.expires), s.id, s.container`

const ruleTables = ` FROM rules r LEFT JOIN sessions s ON s.seq = r.session`

func scanRule(rows interface{ Scan(...any) error }) (Rule, error) {
	var (
		r                          Rule
		created, expires, lastUsed sql.NullInt64
		session, sessionContainer  sql.NullString
		binaries                   string
	)
	if err := rows.Scan(&r.Order, &r.Container, &r.Destination, &r.Ports, &r.Transport, &binaries, &r.Action,
		&created, &lastUsed, &r.Notes, &expires, &session, &sessionContainer); err != nil {
		return r, err
	}
	r.ID = ruleID(r.Order)
	r.Source = rules.Global
	if session.Valid {
		r.Source, r.SessionID, r.SessionContainer = rules.Session, session.String, sessionContainer.String
	}
	r.Created, r.Expires, r.LastUsed = instant(created), instant(expires), instant(lastUsed)
	return r, fromJSON(binaries, "binaries", &r.Binaries)
}

// A rule's id is its number with an r before it, so that it is not taken for a
// port, a count or an event.
func ruleID(number int64) string { return "r" + strconv.FormatInt(number, 10) }

func ruleNumber(id string) (int64, error) {
	digits, ok := strings.CutPrefix(id, "r")
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil || ruleID(n) != id {
		return 0, fmt.Errorf("rule %q: %w", id, ErrNotFound)
	}
	return n, nil
}

// checkRule refuses what a rule row cannot hold. What the rule says was
// checked by rules.Canonical.
func checkRule(r rules.Rule) error {
	if r.Endpoint != nil {
		return fmt.Errorf("rule for %q: rules with an endpoint are kept as the policy document that they come from", r.Destination)
	}
	if r.Action != rules.ActionAllow && r.Action != rules.ActionDeny {
		return fmt.Errorf("rule for %q: action is %q, want %q or %q", r.Destination, r.Action, rules.ActionAllow, rules.ActionDeny)
	}
	return nil
}

// AddRule stores a global rule and returns it with its ID and Order. ID, Order,
// Source and SessionID of r are not looked at; Created is required. r must be
// canonical and without an Endpoint.
func (s *Store) AddRule(ctx context.Context, r rules.Rule) (Rule, error) {
	var added Rule
	err := s.write(ctx, "adding a rule", synced, func(ctx context.Context, tx *sql.Tx) error {
		n, err := insertRule(ctx, tx, sql.NullInt64{}, micros(r.Expires), r)
		if err != nil {
			return err
		}
		added, err = ruleByNumber(ctx, tx, n)
		return err
	})
	return added, err
}

func insertRule(ctx context.Context, tx *sql.Tx, session, expires sql.NullInt64, r rules.Rule) (int64, error) {
	if err := checkRule(r); err != nil {
		return 0, err
	}
	binaries, err := asJSON(r.Binaries)
	if err != nil {
		return 0, err
	}
	if r.Created.IsZero() {
		return 0, fmt.Errorf("rule for %q has no creation time: set Created", r.Destination)
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO rules
		(session, container, destination, ports, transport, binaries, action, expires, created, notes)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		session, r.Container, r.Destination, r.Ports, string(r.Transport), binaries, string(r.Action), expires, micros(r.Created), r.Notes)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

func ruleByNumber(ctx context.Context, tx *sql.Tx, n int64) (Rule, error) {
	r, err := scanRule(tx.QueryRowContext(ctx, `SELECT `+ruleColumns+ruleTables+` WHERE r.number = ?`, n))
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("rule %q: %w", ruleID(n), ErrNotFound)
	}
	return r, err
}

// Rule returns one rule, global or of a session. ErrNotFound if there is none.
func (s *Store) Rule(ctx context.Context, id string) (Rule, error) {
	n, err := ruleNumber(id)
	if err != nil {
		return Rule{}, err
	}
	var r Rule
	err = s.read(ctx, "reading a rule", func(ctx context.Context, tx *sql.Tx) error {
		r, err = ruleByNumber(ctx, tx, n)
		return err
	})
	return r, err
}

// Rules returns the rules that f selects, older ones first.
func (s *Store) Rules(ctx context.Context, f RuleFilter) ([]Rule, error) {
	var w where
	switch f.Source {
	case "":
	case rules.Global:
		w.and(`r.session IS NULL`)
	case rules.Session:
		w.and(`r.session IS NOT NULL`)
	default:
		return nil, nil
	}
	if f.SessionID != "" {
		w.and(`s.id = ?`, f.SessionID)
	}
	if f.Container != "" {
		w.and(`CASE WHEN r.session IS NULL THEN r.container ELSE s.container END = ?`, f.Container)
	}
	if f.Destination != "" {
		w.and(`r.destination = ? COLLATE NOCASE`, f.Destination)
	}
	if !f.LiveAt.IsZero() {
		w.and(`(COALESCE(r.expires, s.expires) IS NULL OR COALESCE(r.expires, s.expires) > ?)`, micros(f.LiveAt))
		w.and(`s.ended IS NULL`)
	}
	var found []Rule
	err := s.read(ctx, "listing rules", func(ctx context.Context, tx *sql.Tx) error {
		return query(ctx, tx, `SELECT `+ruleColumns+ruleTables+w.text+` ORDER BY r.number`, w.args, func(rows *sql.Rows) error {
			r, err := scanRule(rows)
			found = append(found, r)
			return err
		})
	})
	return found, err
}

// UpdateRule replaces what the global rule with r's ID says. Created and Order
// stay. ErrNotFound if there is no such global rule.
func (s *Store) UpdateRule(ctx context.Context, r rules.Rule) (Rule, error) {
	n, err := ruleNumber(r.ID)
	if err != nil {
		return Rule{}, err
	}
	if err := checkRule(r); err != nil {
		return Rule{}, err
	}
	binaries, err := asJSON(r.Binaries)
	if err != nil {
		return Rule{}, err
	}
	var updated Rule
	err = s.write(ctx, "changing a rule", synced, func(ctx context.Context, tx *sql.Tx) error {
		err := changed(tx.ExecContext(ctx, `UPDATE rules SET container = ?, destination = ?, ports = ?, transport = ?,
			binaries = ?, action = ?, expires = ?, notes = ? WHERE number = ? AND session IS NULL`,
			r.Container, r.Destination, r.Ports, string(r.Transport), binaries, string(r.Action), micros(r.Expires), r.Notes, n))
		if err != nil {
			return globalRule(r.ID, err)
		}
		updated, err = ruleByNumber(ctx, tx, n)
		return err
	})
	return updated, err
}

// DeleteRule removes a global rule. ErrNotFound if there is no such one.
func (s *Store) DeleteRule(ctx context.Context, id string) error {
	n, err := ruleNumber(id)
	if err != nil {
		return err
	}
	return s.write(ctx, "deleting a rule", synced, func(ctx context.Context, tx *sql.Tx) error {
		return globalRule(id, changed(tx.ExecContext(ctx, `DELETE FROM rules WHERE number = ? AND session IS NULL`, n)))
	})
}

func globalRule(id string, err error) error {
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("global rule %q: %w (a session's rules are changed with the session)", id, err)
	}
	return err
}

// TouchRules notes when rules were last used, by id. Ids that are gone, or that
// are not stored rules (built-in, from a document), are passed over, and a
// time never moves back. Meant to be called now and then with what gathered.
func (s *Store) TouchRules(ctx context.Context, used map[string]time.Time) error {
	if len(used) == 0 {
		return nil
	}
	return s.write(ctx, "noting the use of rules", written, func(ctx context.Context, tx *sql.Tx) error {
		touch, err := tx.PrepareContext(ctx, `UPDATE rules SET last_used = MAX(?1, COALESCE(last_used, ?1)) WHERE number = ?2`)
		if err != nil {
			return err
		}
		defer touch.Close()
		for id, t := range used {
			n, err := ruleNumber(id)
			if err != nil {
				continue // documented: not a stored rule
			}
			if _, err := touch.ExecContext(ctx, micros(t), n); err != nil {
				return err
			}
		}
		return nil
	})
}
