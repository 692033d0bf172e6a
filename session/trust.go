package session

import (
	"context"
	"fmt"

	"weir/container"
	"weir/trust"
)

// Authority is the interception authority's certificate, PEM.
func (c *Conductor) Authority() []byte { return c.config.Authority.PEM() }

// InstallCA makes the programs in a running container trust the authority; the
// container need not be attached yet. Installing again changes nothing.
func (c *Conductor) InstallCA(ctx context.Context, ref string) (trust.Result, error) {
	var result trust.Result
	err := c.inRoot(ctx, ref, func(root *container.Root) (err error) {
		result, err = trust.Install(root, c.config.Authority.Certificate())
		return err
	})
	return result, err
}

// UninstallCA takes the authority out of a running container again.
func (c *Conductor) UninstallCA(ctx context.Context, ref string) error {
	return c.inRoot(ctx, ref, func(root *container.Root) error {
		return trust.Uninstall(root, c.config.Authority.Certificate())
	})
}

// inRoot calls f with the file system of a running container.
func (c *Conductor) inRoot(ctx context.Context, ref string, f func(*container.Root) error) error {
	found, err := c.config.Runtimes.Find(ctx, ref)
	if err != nil {
		return containerError(err)
	}
	root, err := container.OpenRoot(found)
	if err != nil {
		return containerError(err)
	}
	defer root.Close()
	// One at a time: two of them would each read a list without the other's.
	c.attaching.Lock()
	defer c.attaching.Unlock()
	if err := f(root); err != nil {
		return &Error{Conflict, fmt.Errorf("certificates of %s: %w", found.Name, err)}
	}
	return nil
}
