package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"weir/container"
	"weir/redirect"
)

// finding is one thing that doctor looked at.
type finding struct {
	What string `json:"what"`
	OK   bool   `json:"ok"`
	// Needed says that Weir cannot work without it.
	Needed bool   `json:"needed"`
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

func newDoctor(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check kernel, runtimes, daemon and permissions, and say what to do about each", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := c.examine(cmd.Context())
			failed := false
			for _, f := range findings {
				failed = failed || f.Needed && !f.OK
			}
			err := c.print(cmd.OutOrStdout(), findings, func(w io.Writer) {
				for _, f := range findings {
					mark := "ok"
					if !f.OK && f.Needed {
						mark = "FAILED"
					} else if !f.OK {
						mark = "missing"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.What, f.Detail)
					if f.Fix != "" {
						fmt.Fprintf(w, "\t\t-> %s\n", f.Fix)
					}
				}
			})
			if err == nil && failed {
				err = errFailed
			}
			return err
		},
	}
}

func (c *common) examine(ctx context.Context) []finding {
	var list []finding
	root := finding{What: "permissions", OK: os.Geteuid() == 0, Needed: true}
	if !root.OK {
		root.Detail, root.Fix = "not root: the kernel cannot be examined", "run: sudo weir doctor"
		return append(list, root)
	}
	list = append(list, root)
	for _, f := range redirect.Check() {
		list = append(list, finding{What: "kernel: " + f.Feature, OK: f.OK, Needed: true, Detail: f.Detail, Fix: f.Fix})
	}
	answered := false
	for _, s := range container.Connect().Status(ctx) {
		f := finding{What: "runtime: " + s.Socket, OK: s.Present && s.Err == nil}
		switch {
		case !s.Present:
			f.Detail = "no socket"
		case s.Err != nil:
			f.Detail, f.Fix = s.Err.Error(), "start the runtime's service, for example: systemctl start docker"
		default:
			f.Detail = "version " + s.Version + ", API " + s.APIVersion
			answered = true
		}
		list = append(list, f)
	}
	if !answered {
		list = append(list, finding{
			What: "a container runtime", Detail: "none answers; bare namespaces (pid:N, netns:PATH) can be attached all the same",
			Fix: "start Docker or Podman's API service (podman system service)",
		})
	}
	daemon := finding{What: "daemon: " + c.socket, OK: true}
	if h, err := c.client().Health(ctx); err != nil {
		daemon.OK, daemon.Detail, daemon.Fix = false, "does not answer", err.Error()
	} else {
		daemon.Detail = fmt.Sprintf("version %s, %d attached", h.Version, h.Attachments)
	}
	return append(list, daemon)
}
