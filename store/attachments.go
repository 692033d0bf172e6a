package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Desired says what Weir is to do about a container when it starts.
type Desired string

const (
	// Attached: the container is, or is about to be, attached.
	Attached Desired = "attached"
	// Detached: a detach has begun; whatever is left is to be taken away.
	Detached Desired = "detached"
)

// Attachment is one container that Weir is attached to. It is stored before
// anything is installed and deleted after everything is removed, so that a
// daemon killed in between knows what to look for.
type Attachment struct {
	ContainerID string // full id; the key
	Ref         string // what the user called it: id, prefix, name, pid:N, netns:PATH
	Name        string
	Runtime     string   // docker, podman; "" for a bare namespace
	NetNS       string   // identity of the namespace, "dev:ino"
	NetNSPath   string   // where it was opened
	Interfaces  []string // host-side
	Closed      []string // connections cut at attach, for people
	StartedAt   time.Time
	AttachedAt  time.Time
	Desired     Desired // "" is Attached
}

// PutAttachment stores an attachment, in place of the one of that container if
// there is one. The names that the container learned are kept.
func (s *Store) PutAttachment(ctx context.Context, a Attachment) error {
	if a.ContainerID == "" {
		return fmt.Errorf("attachment of %q has no container id: resolve the container first", a.Ref)
	}
	if a.Desired == "" {
		a.Desired = Attached
	}
	interfaces, err := asJSON(a.Interfaces)
	if err != nil {
		return err
	}
	closed, err := asJSON(a.Closed)
	if err != nil {
		return err
	}
	return s.write(ctx, "storing an attachment", synced, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO attachments
			(container_id, ref, name, runtime, netns, netns_path, interfaces, closed, started, attached, desired)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (container_id) DO UPDATE SET ref = excluded.ref, name = excluded.name, runtime = excluded.runtime,
				netns = excluded.netns, netns_path = excluded.netns_path, interfaces = excluded.interfaces,
				closed = excluded.closed, started = excluded.started, attached = excluded.attached, desired = excluded.desired`,
			a.ContainerID, a.Ref, a.Name, a.Runtime, a.NetNS, a.NetNSPath, interfaces, closed,
			micros(a.StartedAt), micros(a.AttachedAt), string(a.Desired))
		return err
	})
}

// Attachments returns all attachments, those that were made first first.
func (s *Store) Attachments(ctx context.Context) ([]Attachment, error) {
	var found []Attachment
	err := s.read(ctx, "listing attachments", func(ctx context.Context, tx *sql.Tx) error {
		return query(ctx, tx, `SELECT container_id, ref, name, runtime, netns, netns_path, interfaces, closed, started, attached, desired
			FROM attachments ORDER BY attached, container_id`, nil, func(rows *sql.Rows) error {
			var a Attachment
			var interfaces, closed string
			var started, attached sql.NullInt64
			err := rows.Scan(&a.ContainerID, &a.Ref, &a.Name, &a.Runtime, &a.NetNS, &a.NetNSPath, &interfaces, &closed,
				&started, &attached, &a.Desired)
			a.StartedAt, a.AttachedAt = instant(started), instant(attached)
			found = append(found, a)
			last := &found[len(found)-1]
			return errors.Join(err, fromJSON(interfaces, "interfaces", &last.Interfaces), fromJSON(closed, "closed", &last.Closed))
		})
	})
	return found, err
}

// DeleteAttachment removes an attachment and the names that its container
// learned. ErrNotFound if there is none.
func (s *Store) DeleteAttachment(ctx context.Context, containerID string) error {
	return s.write(ctx, "deleting an attachment", synced, func(ctx context.Context, tx *sql.Tx) error {
		if err := changed(tx.ExecContext(ctx, `DELETE FROM attachments WHERE container_id = ?`, containerID)); err != nil {
			return fmt.Errorf("attachment of container %q: %w", containerID, err)
		}
		return nil
	})
}

// Name is one address that a container was given for a name.
type Name struct {
	Name    string
	Addr    netip.Addr
	Expires time.Time // when the answer's TTL runs out
}

// PutNames replaces what an attached container is known to have looked up.
func (s *Store) PutNames(ctx context.Context, containerID string, names []Name) error {
	return s.write(ctx, "storing names", written, func(ctx context.Context, tx *sql.Tx) error {
		var attached bool
		if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM attachments WHERE container_id = ?)`, containerID).Scan(&attached); err != nil {
			return err
		}
		if !attached {
			return fmt.Errorf("names of container %q, which has no attachment: %w", containerID, ErrNotFound)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM names WHERE container_id = ?`, containerID); err != nil {
			return err
		}
		insert, err := tx.PrepareContext(ctx, `INSERT INTO names (container_id, name, address, expires) VALUES (?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET expires = MAX(expires, excluded.expires)`)
		if err != nil {
			return err
		}
		defer insert.Close()
		for _, n := range names {
			if _, err := insert.ExecContext(ctx, containerID, n.Name, n.Addr.String(), micros(n.Expires)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Names returns what PutNames stored, by name and address.
func (s *Store) Names(ctx context.Context, containerID string) ([]Name, error) {
	var found []Name
	err := s.read(ctx, "listing names", func(ctx context.Context, tx *sql.Tx) error {
		return query(ctx, tx, `SELECT name, address, expires FROM names WHERE container_id = ? ORDER BY name, address`,
			[]any{containerID}, func(rows *sql.Rows) error {
				var n Name
				var address string
				var expires sql.NullInt64
				if err := rows.Scan(&n.Name, &address, &expires); err != nil {
					return err
				}
				n.Expires = instant(expires)
				var err error
				n.Addr, err = netip.ParseAddr(address)
				found = append(found, n)
				return err
			})
	})
	return found, err
}
