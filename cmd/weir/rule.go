package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
)

func newRule(c *common) *cobra.Command {
	cmd := &cobra.Command{Use: "rule", Short: "Global rules, which come before every session's"}
	cmd.AddCommand(ruleAdd(c), ruleList(c), ruleRemove(c))
	return cmd
}

func ruleAdd(c *common) *cobra.Command {
	var r api.RuleRequest
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "add allow|deny DEST[:PORTS][/tcp|/udp]",
		Short: "Add a global rule",
		Example: `  sudo weir rule add deny '**.evil.example'
  sudo weir rule add allow 10.0.5.0/24:5432 --container 'ci-*' --expires 2h
  sudo weir rule add allow ntp.example:123/udp`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if args[0] != "allow" && args[0] != "deny" {
				return usage("%q: want allow or deny", args[0])
			}
			r.Action = args[0]
			if r.Destination, r.Ports, r.Transport, err = splitDestination(args[1], r.Transport); err != nil {
				return err
			}
			if cmd.Flags().Changed("expires") {
				if expires < time.Second {
					return usage("--expires %s: want at least one second", expires)
				}
				r.ExpiresInSeconds = int64(expires / time.Second)
			}
			rule, err := c.client().AddRule(cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), rule, func(w io.Writer) {
				fmt.Fprintf(w, "rule\t%s\t%s %s ports %s for %s\n", rule.ID, rule.Action, rule.Destination, rule.Ports, rule.Container)
				for _, text := range rule.Warnings {
					fmt.Fprintf(w, "warning\t%s\n", text)
				}
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.Container, "container", "*", "which containers: a glob over names and ids")
	flags.StringVar(&r.Transport, "transport", "", "tcp, udp or any (the default); only a rule that names udp lets UDP out")
	flags.StringArrayVar(&r.Binaries, "binary", nil, "only for this program, a path as seen in the container; repeatable")
	flags.DurationVar(&expires, "expires", 0, "how long the rule counts; for ever when absent")
	flags.StringVar(&r.Notes, "notes", "", "why the rule is there")
	return cmd
}

func ruleList(c *common) *cobra.Command {
	var source, container, destination string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the rules of every layer", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Rules(cmd.Context(), source, container, destination)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) { printRules(w, list.Items) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&source, "source", "", "only global, session or builtin rules")
	flags.StringVar(&container, "container", "", "only rules that can apply to this container")
	flags.StringVar(&destination, "destination", "", "only rules with this destination")
	return cmd
}

func printRules(w io.Writer, items []api.Rule) {
	fmt.Fprintln(w, "SOURCE\tID\tACTION\tDESTINATION\tPORTS\tTRANSPORT\tCONTAINER\tEXPIRES\tNOTES")
	for _, r := range items {
		expires := "never"
		if r.ExpiresAt != nil {
			expires = until(*r.ExpiresAt)
		}
		action := r.Action
		if r.Endpoint != "" {
			action += " (inspect: " + r.Endpoint + ")"
		}
		if r.ShadowedBy != "" {
			action += " (shadowed by " + r.ShadowedBy + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Source, r.ID, action, r.Destination, r.Ports, r.Transport, short(r.Container), expires, r.Notes)
	}
}

func ruleRemove(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "rm ID", Aliases: []string{"remove"}, Short: "Remove a global rule", Args: one,
		ValidArgsFunction: c.completeRules,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().DeleteRule(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]string{"removed": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "removed\t%s\n", args[0])
			})
		},
	}
}

// completeRules offers the ids of global rules that stand by themselves.
func (c *common) completeRules(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	if len(args) == 0 {
		list, err := c.client().Rules(cmd.Context(), "global", "", "")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, r := range list.Items {
			if !strings.Contains(r.ID, "/") {
				ids = append(ids, fmt.Sprintf("%s\t%s %s", r.ID, r.Action, r.Destination))
			}
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
