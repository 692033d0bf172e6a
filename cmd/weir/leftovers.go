package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weir/api"
	"weir/redirect"
	"weir/session"
)

// leftovers are the locks on the host that belong to no attachment of the
// daemon: its data directory was deleted, or they are another daemon's.
func (c *common) leftovers(ctx context.Context) []finding {
	left, err := redirect.Left(nil)
	if err != nil {
		return []finding{{What: "locks", Detail: err.Error()}}
	}
	attached, err := c.attachedLocks(ctx)
	if err != nil && len(left) > 0 {
		return []finding{{
			What: "locks", OK: true,
			Detail: fmt.Sprintf("%d in place (%s), as they should be while the daemon is away", len(left), strings.Join(names(left), ", ")),
			Fix:    "if it is gone for good, restart their containers and remove each: weir doctor --remove LOCK",
		}}
	}
	var list []finding
	for _, l := range left {
		if attached[l.Name] != "" {
			continue
		}
		f := finding{What: "lock: " + l.Name, Detail: "left by an attachment of the past; its interface is gone", Fix: "weir doctor --remove " + l.Name}
		if there := slices.DeleteFunc(l.Interfaces, gone); len(there) > 0 {
			f.Detail = "holds " + strings.Join(there, ", ") + ", but is of no attachment of this daemon: the container behind it has no egress"
			f.Fix = "if no other daemon's: attach and detach the container, or restart it and remove what is left: weir doctor --remove " + l.Name
		}
		list = append(list, f)
	}
	return list
}

func names(left []redirect.Leftover) (list []string) {
	for _, l := range left {
		list = append(list, l.Name)
	}
	return list
}

func gone(name string) bool {
	_, err := net.InterfaceByName(name)
	return err != nil
}

// attachedLocks are the names of the containers that the daemon has attached,
// by their locks.
func (c *common) attachedLocks(ctx context.Context) (map[string]string, error) {
	attachments, err := c.client().Attachments(ctx)
	if err != nil {
		return nil, err
	}
	of := map[string]string{}
	for _, a := range attachments {
		of[session.LockName(a.ContainerID)] = a.Name
	}
	return of, nil
}

// removeLocks removes all or, if one of them must stay, none.
func (c *common) removeLocks(cmd *cobra.Command, locks []string) error {
	left, err := redirect.Left(nil)
	if err != nil {
		return err
	}
	// Who names a lock while no daemon answers means it.
	attached, err := c.attachedLocks(cmd.Context())
	if err != nil && !errors.Is(err, api.ErrNoDaemon) {
		return err
	}
	for _, name := range locks {
		if of := attached[name]; of != "" {
			return fmt.Errorf("lock %s is that of %s, which is attached; let go of it with: weir detach %s", name, of, of)
		}
		if !slices.Contains(names(left), name) {
			return fmt.Errorf("there is no lock %q; weir doctor lists those that were left", name)
		}
	}
	for _, name := range locks {
		if err := redirect.Remove(nil, name); err != nil {
			return fmt.Errorf("lock %s: %w", name, err)
		}
	}
	return c.print(cmd.OutOrStdout(), map[string][]string{"removed": locks}, func(w io.Writer) {
		for _, name := range locks {
			fmt.Fprintf(w, "removed\t%s\n", name)
		}
	})
}
