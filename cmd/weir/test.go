package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"weir/policytest"
)

func newTest(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "test FILE...", Short: "Run policy tests; needs no daemon and no privileges", Args: cobra.MinimumNArgs(1),
		Long: `Run policy tests: files that state a situation (sessions, rules, what was
resolved) and what must come of each request. Keep them beside your policies.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			report := policytest.Report{Failures: []policytest.Failure{}}
			for _, file := range args {
				one, err := policytest.Run(file)
				if err != nil {
					return err
				}
				report.Add(one)
			}
			err := c.print(cmd.OutOrStdout(), report, func(w io.Writer) {
				for _, f := range report.Failures {
					fmt.Fprintln(w, f)
				}
				fmt.Fprintf(w, "%d passed, %d failed\n", report.Passed, report.Failed)
			})
			if err == nil && report.Failed > 0 {
				err = errFailed
			}
			return err
		},
	}
}
