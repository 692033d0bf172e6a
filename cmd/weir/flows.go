package main

import (
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"weir/api"
)

func newFlows(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "flows CONTAINER", Short: "Connections of a container that are open now", Args: one,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.client().Flows(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "ID\tDESTINATION\tADDRESS\tSTATE\tIN\tOUT\tBY")
				for _, f := range list {
					to, state := f.Host, f.State
					if to == "" {
						to = f.Address
					}
					if f.Inspected {
						state += ", inspected"
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%d\t%s\n", f.ID, net.JoinHostPort(to, strconv.Itoa(int(f.Port))), dash(f.Address), state, f.BytesIn, f.BytesOut, decidedBy(f))
				}
			})
		},
	}
}

// decidedBy names the rule that let a connection pass, or else the layer.
func decidedBy(f api.Flow) string {
	if f.RuleID != "" {
		return f.Layer + " " + f.RuleID
	}
	return dash(f.Layer)
}

func newKill(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "kill CONTAINER ID", Short: "Cut one connection of a container", Args: cobra.ExactArgs(2),
		Long: `Cut one connection of a container; 'weir flows' lists them. The container may
open it again: what it may not reach is said by a rule.`,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil {
				return usage("%q: want the id of a connection, from 'weir flows %s'", args[1], args[0])
			}
			if err := c.client().Kill(cmd.Context(), args[0], id); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]uint64{"cut": id}, func(w io.Writer) {
				fmt.Fprintf(w, "cut\t%d\n", id)
			})
		},
	}
}
