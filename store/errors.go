package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

var (
	// ErrNotFound says that there is no such session, rule, policy or
	// attachment; for a heartbeat also that the session is over.
	ErrNotFound = errors.New("not found")
	// ErrInUse says that another process has the database open.
	ErrInUse = errors.New("in use by another process")
)

// explain names the file, what was being done to it and, for the errors that
// have a known way out, the next step. It keeps nil, and errors that are about
// the request rather than the file.
func explain(path, doing string, err error) error {
	if err == nil || errors.Is(err, ErrNotFound) {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("database %s: %s: %w", path, doing, err)
	}
	hint := ""
	dir := filepath.Dir(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		hint = "run weir serve as root, or choose a directory of your own with --data-dir"
	case errors.Is(err, syscall.EROFS):
		hint = dir + " is on a read-only file system: choose another with --data-dir"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		hint = "the disk is full: free space in " + dir
	case errors.Is(err, syscall.EISDIR):
		hint = "a directory is where the database file should be: choose another place with --data-dir"
	case errors.Is(err, syscall.ENOTDIR):
		hint = dir + " is not a directory: choose another with --data-dir"
	}
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff { // the primary code; the rest says where in SQLite
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			hint = "another program holds the database for longer than 5 s: close it (sqlite3, a backup tool) and try again"
		case sqlite3.SQLITE_FULL:
			hint = "the disk is full: free space in " + dir + "; flows wait until events can be stored"
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN:
			hint = "the file or its directory cannot be written: check owner and mode of " + dir + ", and that its file system is not read-only"
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			hint = "the file is damaged or not a database: stop weir, move it and its -wal and -shm files away, and restore a backup or start without one (rules, sessions and attachments then have to be made again)"
		case sqlite3.SQLITE_IOERR:
			hint = "reading or writing failed: look for disk errors in the kernel log (dmesg) and check free space in " + dir
		}
	}
	if hint != "" {
		return fmt.Errorf("database %s: %s: %w (%s)", path, doing, err, hint)
	}
	return fmt.Errorf("database %s: %s: %w", path, doing, err)
}

// acquire takes the lock that keeps a second daemon away. The kernel drops it
// when the process ends, however it ends.
func acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, explain(strings.TrimSuffix(path, ".lock"), "making its lock file", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		return nil, fmt.Errorf("database %s is %w (pid %s): stop that weir, or give this one its own --data-dir",
			strings.TrimSuffix(path, ".lock"), ErrInUse, strings.TrimSpace(string(holder[:n])))
	}
	// Only for the message above, so a failure is no reason not to start.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}
