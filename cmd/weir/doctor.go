package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

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
	var remove []string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check kernel, runtimes, daemon and permissions, and say what to do about each", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(remove) > 0 {
				return c.removeLocks(cmd, remove)
			}
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
						mark = "note"
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
	cmd.Flags().StringArrayVar(&remove, "remove", nil, "remove a `LOCK` that an attachment of the past left on the host (repeatable)")
	return cmd
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
	list = append(list, daemon, otherSockets())
	return append(list, c.leftovers(ctx)...)
}

// otherSockets tells of AF_VSOCK, which belongs to no network namespace: no
// firewall sees it, and every container whose seccomp profile lets it may use
// it to speak to the hypervisor, the host, and other containers.
func otherSockets() finding {
	f := finding{What: "host: no sockets beside the network", OK: true}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return f
	}
	_ = unix.Close(fd)
	f.OK = false
	f.Detail = "AF_VSOCK is there: a container whose seccomp profile allows it (Docker's did before version 23) reaches the hypervisor and the host past any firewall"
	f.Fix = "give containers a seccomp profile that refuses socket(AF_VSOCK), or keep the modules vsock and vsock_loopback from being loaded"
	return f
}
