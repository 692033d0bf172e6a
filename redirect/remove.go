package redirect

import "errors"

// Left are the names of the attachments that have a lock in the host's
// namespace, those of a dead daemon included. host nil means this process's
// own namespace.
func Left(host *NetNS) ([]string, error) {
	var names []string
	err := inHost(host, func(l lock) error {
		var err error
		names, err = lockNames(l.conn)
		return err
	})
	return names, err
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
	conn, err := openNFT(host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	return f(lock{conn: conn})
}
