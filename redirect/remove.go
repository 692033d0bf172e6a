package redirect

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
)

// A Leftover is the lock of an attachment in the host's namespace, those of a
// dead daemon included.
type Leftover struct {
	Name       string
	Interfaces []string // the host's ends it was made for, there or not any more
}

// Left lists them. host nil means this process's own namespace.
func Left(host *NetNS) ([]Leftover, error) {
	var left []Leftover
	err := inHost(host, func(l lock) error {
		names, err := lockNames(l.conn)
		if err != nil {
			return err
		}
		chains, err := l.conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
		if err != nil {
			return fmt.Errorf("list the host's locks: %w", err)
		}
		for _, name := range names {
			found := Leftover{Name: name}
			for _, ch := range chains {
				if ch.Table.Name == lockPrefix+name {
					found.Interfaces = append(found.Interfaces, ch.Name)
				}
			}
			left = append(left, found)
		}
		return nil
	})
	return left, err
}

// Remove takes away what an attachment left in the host's namespace, for a
// container that is gone. A name that left nothing is no error. host nil means
// this process's own namespace.
func Remove(host *NetNS, name string) error {
	return inHost(host, func(l lock) error {
		l.name = name
		return l.remove()
	})
}

func inHost(host *NetNS, f func(lock) error) (err error) {
	if host == nil {
		if host, err = own(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, host.Close()) }()
	}
	conn, _, err := openNFT(host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	return f(lock{conn: conn})
}
