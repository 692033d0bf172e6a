package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"weir/rules"
)

func newPolicy(c *common) *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Policy documents"}
	cmd.AddCommand(policyCheck(c), policyShow(c))
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
		Use: "show CONTAINER", Short: "The policy that holds for a container now, in the order in which it is asked", Args: cobra.ExactArgs(1),
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
