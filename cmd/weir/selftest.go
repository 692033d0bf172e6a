package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"weir/selftest"
)

// selftestLimit bounds the self-test; it usually takes a third of it.
const selftestLimit = 30 * time.Second

func newSelftest(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "selftest", Short: "Attack the running daemon from a throw-away namespace, and show what held", Args: cobra.NoArgs,
		Long: `Attack the running daemon the way root in a container would, from a network
namespace made for it, and look whether anything reaches a second one that
plays the outside, and whether the attack is on record. Needs root; leaves
nothing behind; at most 30 seconds.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), selftestLimit)
			defer cancel()
			results, err := selftest.Run(ctx, c.client())
			if err != nil {
				return err
			}
			failed := false
			for _, r := range results {
				failed = failed || !r.Held
			}
			err = c.print(cmd.OutOrStdout(), results, func(w io.Writer) {
				for _, r := range results {
					mark := "held"
					if !r.Held {
						mark = "FAILED"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", mark, r.Attack, r.Detail)
				}
			})
			if err == nil && failed {
				err = errFailed
			}
			return err
		},
	}
}
