package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weir/api"
)

func newExplain(c *common) *cobra.Command {
	var r api.ExplainRequest
	var headers []string
	cmd := &cobra.Command{
		Use:   "explain CONTAINER DEST[:PORT]",
		Short: "Say what would be decided now, and why",
		Long: `Say what would be decided now for a connection (or, with --method, for a
request) from CONTAINER to DEST, every rule that was looked at, and what to
do when it is refused. Nothing is sent.`,
		Example: `  sudo weir explain web example.com
  sudo weir explain web 10.0.0.7:5432
  sudo weir explain web ntp.example:123/udp
  sudo weir explain web api.github.com --method POST --path /graphql --body '{"query":"{viewer{login}}"}'`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			dest, ports, transport, err := splitDestination(args[1], r.Transport)
			if err != nil {
				return err
			}
			r.Container, r.Destination, r.Transport = args[0], dest, transport
			if ports != "" {
				port, err := strconv.ParseUint(ports, 10, 16)
				if err != nil || port == 0 {
					return usage("%q: want one port from 1 to 65535", ports)
				}
				r.Port = int(port)
			}
			for _, h := range headers {
				key, value, ok := strings.Cut(h, ":")
				if !ok {
					return usage("--header %q: want NAME: VALUE", h)
				}
				if r.Headers == nil {
					r.Headers = map[string]string{}
				}
				r.Headers[strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
			d, err := c.client().Explain(cmd.Context(), r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), d, func(w io.Writer) { printDecision(w, d) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.Address, "address", "", "the address the name stands for; what the container resolved when absent")
	flags.StringVar(&r.Transport, "transport", "", "tcp (the default) or udp")
	flags.StringVar(&r.Binary, "binary", "", "the connecting program, a path as seen in the container")
	flags.StringVar(&r.Method, "method", "", "HTTP method")
	flags.StringVar(&r.Target, "path", "", "HTTP path, with query string")
	flags.StringVar(&r.Body, "body", "", "HTTP body")
	flags.StringArrayVar(&headers, "header", nil, "HTTP header, `NAME: VALUE`; repeatable")
	return cmd
}

var verdictWord = map[string]string{
	"allow":   "ALLOWED",
	"deny":    "DENIED",
	"inspect": "DEPENDS on what is sent",
}

func printDecision(w io.Writer, d api.Decision) {
	fmt.Fprintf(w, "%s\n  why: %s\n", verdictWord[d.Verdict], d.Reason)
	if d.Rule != nil {
		fmt.Fprintf(w, "  by: %s rule %s: %s %s, ports %s\n", d.Rule.Source, d.Rule.ID, d.Rule.Action, d.Rule.Destination, d.Rule.Ports)
	}
	for _, op := range d.Operations {
		fmt.Fprintf(w, "  operation: %s %s, fields %s\n", op.Type, dash(op.Name), strings.Join(op.Fields, ", "))
	}
	if d.Would != nil {
		fmt.Fprintf(w, "  without learning mode: %s: %s\n", verdictWord[d.Would.Verdict], d.Would.Reason)
	}
	if len(d.Trace) > 0 {
		fmt.Fprintln(w, "\nLooked at, in this order:")
		for _, s := range d.Trace {
			mark := " "
			if s.Won {
				mark = ">"
			}
			line := fmt.Sprintf("%s %s\t%s\t%s", mark, s.Layer, s.Text, s.Why)
			fmt.Fprintln(w, strings.TrimSuffix(line, "\t"))
		}
	}
	if len(d.Hints) > 0 {
		fmt.Fprintln(w, "\nTo change it:")
		for _, hint := range d.Hints {
			fmt.Fprintf(w, "  %s\n", hint)
		}
	}
}
