package store

import (
	"context"
	"crypto/rand"
	"database/sql"
)

func createInstallationID(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES ('installation', ?) ON CONFLICT DO NOTHING`, rand.Text())
	return err
}

// InstallationID is a random text of 26 characters, made with the database and
// never changed.
func (s *Store) InstallationID(ctx context.Context) (string, error) {
	var id string
	err := s.read(ctx, "reading the installation id", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'installation'`).Scan(&id)
	})
	return id, err
}
