package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
	"weir/audit"
)

func newEvents(c *common) *cobra.Command {
	var q api.EventQuery
	var follow bool
	var since string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "The audit trail: every decision, oldest first",
		Example: `  sudo weir events --container web --verdict deny
  sudo weir events -f -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.Verdict != "" && q.Verdict != "allow" && q.Verdict != "deny" {
				return usage("--verdict %q: want allow or deny", q.Verdict)
			}
			if since != "" {
				if q.Since, err = parseSince(since, time.Now()); err != nil {
					return err
				}
			}
			write := c.eventWriter(cmd.OutOrStdout())
			client, ctx := c.client(), cmd.Context()
			var last int64
			for {
				page, err := client.Events(ctx, q)
				if err != nil {
					return err
				}
				for _, e := range page.Items {
					if err := write(e); err != nil {
						return err
					}
					last = e.ID
				}
				if q.Cursor = page.NextCursor; q.Cursor == "" {
					break
				}
			}
			if last == 0 && q.Container != "" && c.output == "table" {
				// To the terminal: there is nothing on the output itself.
				fmt.Fprintf(cmd.ErrOrStderr(), "no such events of %s on record so far; 'weir ps' lists who is attached\n", q.Container)
			}
			if !follow {
				return nil
			}
			if last == 0 {
				q.Cursor = "0" // nothing so far; what came since then is not to be missed
			}
			return client.Follow(ctx, q, last, write)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "go on with events as they happen")
	c.containerFlag(cmd, &q.Container, "only this container")
	flags.StringVar(&q.Verdict, "verdict", "", "only allow or deny")
	flags.StringVar(&q.Type, "type", "", "only dns, connect, http, graphql, lifecycle, tamper, limit or ask")
	flags.StringVar(&since, "since", "", "from this time, or this long ago: 2026-05-01T12:00:00Z, 10m")
	return cmd
}

// parseSince reads an RFC 3339 time, or a duration before now.
func parseSince(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usage("--since %q: want a time such as 2026-05-01T12:00:00Z or a duration such as 10m", s)
	}
	return t, nil
}

// eventWriter returns what writes one event in the chosen format.
func (c *common) eventWriter(w io.Writer) func(audit.Event) error {
	enc := audit.NewEncoder(w)
	switch c.output {
	case "json":
		return func(e audit.Event) error { return enc.Encode(e) }
	case "ocsf":
		return func(e audit.Event) error { return enc.Encode(audit.OCSF(e, version)) }
	}
	return func(e audit.Event) error {
		_, err := fmt.Fprintln(w, audit.Line(e))
		return err
	}
}

func newDNS(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "dns CONTAINER", Short: "Names that a container resolved, and until when they count", Args: one,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.client().Names(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tADDRESS\tCOUNTS UNTIL")
				for _, n := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\n", n.Name, n.Address, until(n.Until))
				}
			})
		},
	}
}
