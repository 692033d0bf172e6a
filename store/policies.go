package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Policy is a policy document of the global layer, as text.
type Policy struct {
	Name    string // unique
	Text    string // YAML or JSON
	Updated time.Time
}

// PutPolicy stores a document, in place of the one of that name if there is one.
func (s *Store) PutPolicy(ctx context.Context, p Policy) error {
	if p.Name == "" {
		return errors.New("policy document without a name: give it one")
	}
	return s.write(ctx, "storing a policy", synced, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO policies (name, text, updated) VALUES (?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET text = excluded.text, updated = excluded.updated`, p.Name, p.Text, micros(p.Updated))
		return err
	})
}

// Policies returns all documents by name.
func (s *Store) Policies(ctx context.Context) ([]Policy, error) {
	var found []Policy
	err := s.read(ctx, "listing policies", func(ctx context.Context, tx *sql.Tx) error {
		return query(ctx, tx, `SELECT name, text, updated FROM policies ORDER BY name`, nil, func(rows *sql.Rows) error {
			var p Policy
			var updated sql.NullInt64
			err := rows.Scan(&p.Name, &p.Text, &updated)
			p.Updated = instant(updated)
			found = append(found, p)
			return err
		})
	})
	return found, err
}

// DeletePolicy removes a document. ErrNotFound if there is none of that name.
func (s *Store) DeletePolicy(ctx context.Context, name string) error {
	return s.write(ctx, "deleting a policy", synced, func(ctx context.Context, tx *sql.Tx) error {
		if err := changed(tx.ExecContext(ctx, `DELETE FROM policies WHERE name = ?`, name)); err != nil {
			return fmt.Errorf("policy %q: %w", name, err)
		}
		return nil
	})
}
