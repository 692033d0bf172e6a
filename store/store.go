package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"weir/migrations"
)

// No statement waits longer than this, whatever its context says. The longest
// are deletions of old events, which are cut into small transactions.
const statementDeadline = 30 * time.Second

// Store is an open database. Open makes one.
type Store struct {
	path string
	lock *os.File
	// writer has one connection: SQLite has one writer at a time, and waiting
	// for a connection is fair where SQLite's own waiting is a sleep and retry.
	writer *sql.DB
	// readers cannot write, and see the last commit without waiting for it.
	readers *sql.DB
}

// durability is how far a commit goes before it is reported.
type durability string

const (
	// synced: on disk (fsync of the WAL at every commit).
	synced durability = "FULL"
	// written: handed to the kernel; survives the process, not a power cut.
	written durability = "NORMAL"
)

// Open opens the database at path, making its directory (0700) and the file
// (0600) if there is none, and brings it to the current version. It refuses a
// database that another process has open (ErrInUse) and one that a newer Weir
// has written (a *migrations.NewerError).
func Open(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("database %q: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, explain(path, "making its directory", err)
	}
	s := &Store{path: path}
	if s.lock, err = acquire(path + ".lock"); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	// Made here rather than by SQLite, which would make it readable by all;
	// the WAL and its index inherit the mode.
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return explain(s.path, "opening it", err)
	}
	err = errors.Join(f.Chmod(0o600), f.Close())
	if err != nil {
		return explain(s.path, "making it private", err)
	}
	if s.writer, err = connect(s.path, "_txlock=immediate", 1); err != nil {
		return explain(s.path, "opening it", err)
	}
	if s.readers, err = connect(s.path, "_pragma=query_only(1)", max(2, runtime.NumCPU())); err != nil {
		return explain(s.path, "opening it", err)
	}
	if _, err := migrations.Up(ctx, s.writer); err != nil {
		return explain(s.path, "preparing it", err)
	}
	return s.write(ctx, "naming the installation", synced, createInstallationID)
}

func connect(path, extra string, conns int) (*sql.DB, error) {
	const pragmas = "_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
		"&_pragma=foreign_keys(1)&_pragma=journal_size_limit(67108864)&"
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: pragmas + extra}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// Close closes the database. Methods called afterwards fail.
func (s *Store) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.readers, s.writer} { // the writer last: it empties the WAL
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	// The lock file stays: removing it would let two processes each hold a lock
	// on a file of that name.
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return explain(s.path, "closing it", err)
	}
	return nil
}

// Path is the absolute path of the database file.
func (s *Store) Path() string { return s.path }

// Backup writes a copy of the database, as of one moment and compacted, to a
// new file. The database stays in use meanwhile. The file must not exist.
func (s *Store) Backup(ctx context.Context, file string) error {
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("backup file %q exists: remove it or choose another name", file)
	}
	// Made private before anything is in it. SQLite accepts an empty file.
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("backup file: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("backup file %q: %w", file, err)
	}
	// A reader may do this: VACUUM INTO does not write to its own database, but
	// query_only refuses it all the same. The writer would hold up recording.
	db, err := connect(s.path, "", 1)
	if err == nil {
		_, err = db.ExecContext(ctx, "VACUUM INTO ?", file)
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		return errors.Join(explain(s.path, fmt.Sprintf("copying it to %q", file), err), os.Remove(file))
	}
	return nil
}

// Size is the number of bytes in use in the database file. The file itself may
// be larger: space that deletions free is used again, not given back.
func (s *Store) Size(ctx context.Context) (int64, error) {
	var size int64
	err := s.read(ctx, "measuring it", func(ctx context.Context, tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `SELECT (page_count - freelist_count) * page_size
			FROM pragma_page_count, pragma_freelist_count, pragma_page_size`).Scan(&size)
	})
	return size, err
}

// write runs fn in a transaction. All writes take turns.
func (s *Store) write(ctx context.Context, doing string, d durability, fn func(context.Context, *sql.Tx) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, statementDeadline)
	defer cancel()
	defer func() { err = explain(s.path, doing, err) }()
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "PRAGMA synchronous = "+string(d)); err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(ctx, tx); err != nil {
		_ = tx.Rollback() // fn's error is the one that counts
		return err
	}
	return tx.Commit()
}

// read runs fn on one moment of the database.
func (s *Store) read(ctx context.Context, doing string, fn func(context.Context, *sql.Tx) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, statementDeadline)
	defer cancel()
	defer func() { err = explain(s.path, doing, err) }()
	tx, err := s.readers.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // ends the read; there is nothing to commit
	return fn(ctx, tx)
}

// query calls scan for every row of a statement.
func query(ctx context.Context, tx *sql.Tx, statement string, args []any, scan func(*sql.Rows) error) error {
	rows, err := tx.QueryContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// changed turns "no row was there" into ErrNotFound.
func changed(r sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		err = ErrNotFound
	}
	return err
}
