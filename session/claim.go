package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// claims is where the daemons of a machine say which namespaces they hold: two
// that hold the same would each take the other's rules for tampering. Only root
// may write there, and it does not outlive the machine.
const claims = "/run/weir/attached"

// A claim is a file that is locked as long as a namespace is held.
type claim struct{ file *os.File }

// claimNetNS fails when another daemon, or another attachment, holds the
// namespace. Who has died holds nothing.
func claimNetNS(id string) (*claim, error) {
	if err := os.MkdirAll(claims, 0o755); err != nil {
		return nil, fmt.Errorf("claim a namespace: %w", err)
	}
	path := filepath.Join(claims, strings.ReplaceAll(id, ":", "-"))
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("claim a namespace: %w", err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
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
