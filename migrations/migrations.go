// Package migrations holds the shape of Weir's database as numbered SQL files
// and brings a database to the newest one.
//
// It does not open databases and knows nothing of what is in the tables; that
// is package store.
//
//	err := migrations.Up(ctx, db)
//
// Invariants: a file that was released is never changed, only followed by
// another with the next number; every file runs in one transaction, so that a
// migration that fails or is killed leaves the version before it; a database
// newer than the newest file is never written to.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
)

//go:embed sql/*.sql
var files embed.FS

// NewerError says that a newer Weir has migrated the database to a version
// that this one does not know.
type NewerError struct {
	Have int64 // the database's version
	Want int64 // the newest version that this program knows
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("the database has version %d, and this weir knows versions up to %d: "+
		"install the weir that wrote it (or a newer one), or restore a backup made before the upgrade", e.Have, e.Want)
}

// Up runs the migrations that db has not had yet and returns the version it
// has then. db must be a SQLite database. The error is a *NewerError when db
// is from a newer Weir; it is then unchanged.
func Up(ctx context.Context, db *sql.DB) (int64, error) {
	dir, err := fs.Sub(files, "sql")
	if err != nil {
		return 0, err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return 0, fmt.Errorf("reading the migrations: %w", err)
	}
	have, want, err := provider.GetVersions(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the database's version: %w", err)
	}
	if have > want {
		return have, &NewerError{Have: have, Want: want}
	}
	if _, err := provider.Up(ctx); err != nil {
		return have, fmt.Errorf("migrating the database from version %d to %d: %w", have, want, err)
	}
	return want, nil
}
