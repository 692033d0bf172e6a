package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
)

func newSession(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "session", Short: "Sessions: periods of work in a container, with their own rules",
	}
	cmd.AddCommand(sessionCreate(c), sessionList(c), sessionShow(c), sessionHeartbeat(c), sessionEnd(c))
	return cmd
}

func sessionCreate(c *common) *cobra.Command {
	f := &sessionFlags{}
	cmd := &cobra.Command{
		Use:   "create CONTAINER",
		Short: "Create a session, or replace the one with the same id",
		Long: `Create a session. The most recently created live session of a container is
its current one, and only the current one counts.`,
		Example:           `  sudo weir session create web --id build-42 --allow '*.packages.example:443' --ttl 30m`,
		Args:              one,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			request, err := f.request(args[0])
			if err != nil {
				return err
			}
			s, err := c.client().CreateSession(cmd.Context(), request)
			if err != nil {
				return err
			}
			return c.printSession(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVar(&f.id, "id", "", "the session's `ID`; made up when absent")
	f.register(cmd)
	return cmd
}

func sessionList(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List live sessions, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Sessions(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "SESSION\tCONTAINER\tCURRENT\tMODE\tRULES\tEXPIRES")
				for _, s := range list {
					current := ""
					if s.Current {
						current = "*"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", s.ID, short(s.Container), current, s.Mode(), s.RulesCreated, until(s.ExpiresAt))
				}
			})
		},
	}
}

func sessionShow(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "show SESSION", Short: "Show one session and its rules", Args: one,
		ValidArgsFunction: c.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.client().Session(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.printSession(cmd.OutOrStdout(), s)
		},
	}
}

func sessionHeartbeat(c *common) *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "heartbeat SESSION", Short: "Extend a session and its rules", Args: one,
		ValidArgsFunction: c.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl != 0 && (ttl < time.Second || ttl%time.Second != 0) {
				return usage("--ttl %s: want whole seconds, at least one", ttl)
			}
			h, err := c.client().Heartbeat(cmd.Context(), args[0], int64(ttl/time.Second))
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), h, func(w io.Writer) {
				fmt.Fprintf(w, "session\t%s\texpires %s\n", h.ID, until(h.ExpiresAt))
			})
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "time to live from now; the session's own when absent")
	return cmd
}

func sessionEnd(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "end SESSION", Short: "End a session; its rules end with it", Args: one,
		ValidArgsFunction: c.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().EndSession(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]string{"ended": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "ended\t%s\n", args[0])
			})
		},
	}
}

func (c *common) printSession(w io.Writer, s api.Session) error {
	return c.print(w, s, func(w io.Writer) {
		fmt.Fprintf(w, "session\t%s\t%s\n", s.ID, describeSession(s))
		for _, text := range s.Warnings {
			fmt.Fprintf(w, "warning\t%s\n", text)
		}
	})
}

func describeSession(s api.Session) string {
	current := "current"
	if !s.Current {
		current = "not current: a newer session counts"
	}
	return fmt.Sprintf("%s, %d rules, expires %s, %s", s.Mode(), s.RulesCreated, until(s.ExpiresAt), current)
}

// until says when t is, and how far away.
func until(t time.Time) string {
	return fmt.Sprintf("%s (in %s)", t.Local().Format(time.TimeOnly), time.Until(t).Round(time.Second))
}

// completeSessions offers the ids of live sessions.
func (c *common) completeSessions(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	if len(args) == 0 {
		list, err := c.client().Sessions(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, s := range list {
			ids = append(ids, s.ID)
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
