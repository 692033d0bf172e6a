package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// claims is where the daemons of a machine say which namespaces they hold: two
// that hold the same would each take the other's rules for tampering. Only root
// may write there, and it does not outlive the machine.
const claims = "/run/weir/attached"

// claimLooks is how often a claim is found held before it counts as held: a
// daemon that clears away those of dead ones holds each for a moment.
const claimLooks = 3

// A claim is a file that is locked as long as a namespace is held.
type claim struct{ file *os.File }

// claimNetNS fails when another daemon, or another attachment, holds the
// namespace. Who has died holds nothing.
func claimNetNS(id string) (*claim, error) {
	if err := os.MkdirAll(claims, 0o755); err != nil {
		return nil, fmt.Errorf("claim a namespace: %w", err)
	}
	path := filepath.Join(claims, strings.ReplaceAll(id, ":", "-"))
	for looks := 1; ; {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("claim a namespace: %w", err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if looks < claimLooks && errors.Is(err, unix.EWOULDBLOCK) {
				looks++
				file.Close()
				<-time.After(10 * time.Millisecond)
				continue
			}
			holder := make([]byte, 20)
			n, _ := file.Read(holder)
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = fmt.Errorf("another daemon (pid %s) has attached it: detach it there first, with that one's --socket", strings.TrimSpace(string(holder[:n])))
			}
			return nil, errors.Join(err, file.Close())
		}
		// It may have been given up, and the file taken away, since it was opened.
		mine, mineErr := file.Stat()
		there, thereErr := os.Stat(path)
		if mineErr == nil && thereErr == nil && os.SameFile(mine, there) {
			err := file.Truncate(0)
			if err == nil {
				_, err = fmt.Fprintln(file, os.Getpid())
			}
			if err != nil {
				return nil, errors.Join(fmt.Errorf("claim a namespace: %w", err), os.Remove(path), file.Close())
			}
			return &claim{file}, nil
		}
		if err := errors.Join(mineErr, file.Close()); err != nil {
			return nil, fmt.Errorf("claim a namespace: %w", err)
		}
	}
}

// giveUp ends a claim.
func (c *claim) giveUp() error {
	err := os.Remove(c.file.Name())
	if errors.Is(err, os.ErrNotExist) {
		err = nil // with all of /run/weir
	}
	return errors.Join(err, c.file.Close())
}

// clearClaims removes the claims that nobody holds: of daemons that were killed,
// and whose namespaces are gone, since the others have been claimed again.
func clearClaims() error {
	entries, err := os.ReadDir(claims)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		file, err := os.OpenFile(filepath.Join(claims, entry.Name()), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue // given up meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		mine, err := file.Stat()
		if err == nil && unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			// Not one that was claimed anew since it was opened.
			if there, statErr := os.Stat(file.Name()); statErr == nil && os.SameFile(mine, there) {
				err = os.Remove(file.Name())
			}
		}
		errs = append(errs, err, file.Close())
	}
	return errors.Join(errs...)
}
