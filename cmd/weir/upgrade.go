package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

func newUpgrade(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "upgrade", Short: "Replace the running daemon by the version that its binary is now", Args: cobra.NoArgs,
		Long: `Replace the running daemon by the version that its binary is now. Connections
that containers make meanwhile wait for the new one; those that are live get
5 seconds to end.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, ctx := c.client(), cmd.Context()
			before, err := client.Health(ctx)
			if err != nil {
				return err
			}
			if err := client.Upgrade(ctx); err != nil {
				return err
			}
			for deadline := time.Now().Add(30 * time.Second); ; {
				after, err := client.Health(ctx)
				if err == nil && after.StartedAt.After(before.StartedAt) {
					v := map[string]string{"from": before.Version, "to": after.Version}
					return c.print(cmd.OutOrStdout(), v, func(w io.Writer) {
						fmt.Fprintf(w, "upgraded\tfrom %s to %s, %d containers attached\n", before.Version, after.Version, after.Attachments)
					})
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("the new daemon does not answer within 30 s: see its log; containers stay locked in: %w", err)
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(50 * time.Millisecond):
				}
			}
		},
	}
}
