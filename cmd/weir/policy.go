package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
	"weir/rules"
)

func newPolicy(c *common) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Policy documents"}
	cmd.AddCommand(policyCheck(c), policyShow(c), policySet(c), policyUnset(c), policyList(c), policyReplay(c))
	return cmd
}

func policyCheck(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "check FILE...", Short: "Validate policy documents; needs no daemon", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			type result struct {
				File     string   `json:"file"`
				Rules    int      `json:"rules"`
				Error    string   `json:"error,omitempty"`
				Warnings []string `json:"warnings,omitempty"`
			}
			var results []result
			failed := false
			for _, file := range args {
				r := result{File: file}
				text, err := os.ReadFile(file)
				var doc *rules.Document
				var warnings []rules.Warning
				if err == nil {
					doc, warnings, err = rules.ParseDocument(file, text)
				}
				for _, w := range warnings {
					r.Warnings = append(r.Warnings, w.String())
				}
				if err != nil {
					r.Error, failed = err.Error(), true
				} else {
					r.Rules = len(doc.Rules)
				}
				results = append(results, r)
			}
			err := c.print(cmd.OutOrStdout(), results, func(w io.Writer) {
				for _, r := range results {
					for _, text := range r.Warnings {
						fmt.Fprintln(w, text)
					}
					if r.Error != "" {
						fmt.Fprintln(w, r.Error)
					} else {
						fmt.Fprintf(w, "%s: ok, %d rules\n", r.File, r.Rules)
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

func policyShow(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "show CONTAINER", Short: "The policy that holds for a container now, in the order in which it is asked", Args: one,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := c.client().EffectivePolicy(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), p, func(w io.Writer) {
				fmt.Fprintf(w, "container %s, session %s, %s\n\n", short(p.Container), dash(p.SessionID), p.Mode)
				printRules(w, p.Rules)
				for _, layer := range []string{"global", "session"} {
					if text, ok := p.Documents[layer]; ok {
						fmt.Fprintf(w, "\n# policy document of the %s layer\n%s", layer, text)
					}
				}
			})
		},
	}
}

func policySet(c *common) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "set FILE", Short: "Put a policy document into the global layer, or replace it", Args: one,
		Long: `Put a policy document into the global layer: its rules come before every
session's, in every container. A document of the same name is replaced, and a
document with a mistake changes nothing.`,
		Example: `  sudo weir policy set baseline.yaml
  sudo weir policy set /etc/weir/baseline.yaml --name baseline`,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			// Checked here as well: here its mistakes have the file's name.
			if _, _, err := rules.ParseDocument(args[0], text); err != nil {
				return err
			}
			if name == "" {
				base := filepath.Base(args[0])
				name = strings.TrimSuffix(base, filepath.Ext(base))
			}
			p, err := c.client().SetPolicy(cmd.Context(), name, string(text))
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), p, func(w io.Writer) {
				for _, warning := range p.Warnings {
					fmt.Fprintf(w, "warning\t%s\n", warning)
				}
				fmt.Fprintf(w, "policy\t%s\t%d rules, in force for every container\n", p.Name, p.Rules)
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the policy; the file's without its ending when absent")
	return cmd
}

func policyUnset(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "unset NAME", Short: "Take a policy document out of the global layer", Args: one,
		ValidArgsFunction: c.completePolicies,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().DeletePolicy(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]string{"removed": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "removed\t%s\n", args[0])
			})
		},
	}
}

func policyList(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the policy documents of the global layer", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Policies(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tRULES\tUPDATED")
				for _, p := range list {
					fmt.Fprintf(w, "%s\t%d\t%s\n", p.Name, p.Rules, p.UpdatedAt.Local().Format(time.DateTime))
				}
			})
		},
	}
}

// completePolicies offers the names of the global layer's documents.
func (c *common) completePolicies(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	var list []api.Policy
	if len(args) == 0 {
		list, _ = c.client().Policies(cmd.Context()) // no daemon, no names
	}
	for _, p := range list {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
