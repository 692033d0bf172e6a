package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"weir/api"
	"weir/audit"
)

// errFailed ends a command with exit code 1 whose output has said everything.
var errFailed = errors.New("failed")

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usage(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// one is for commands that take exactly what their usage line names; an empty
// word is most often a variable that was not set.
func one(cmd *cobra.Command, args []string) error {
	name, path := strings.Fields(cmd.Use)[1], cmd.CommandPath()
	switch {
	case len(args) == 0:
		return usage("%s: which %s", path, name)
	case len(args) > 1:
		return usage("%s takes one %s, and %d were given: %s", path, name, len(args), strings.Join(args, " "))
	case args[0] == "":
		return usage("%s: the %s is empty, perhaps a variable that is not set", path, name)
	}
	return nil
}

// common are the flags that every client command has.
type common struct {
	socket string
	output string
}

func (c *common) client() *api.Client { return api.NewClient(c.socket) }

// json says whether JSON was asked for.
func (c *common) json() bool { return c.output == "json" }

// print writes v as JSON, or calls table with a tab-aligned writer.
func (c *common) print(w io.Writer, v any, table func(w io.Writer)) error {
	if c.json() {
		enc := audit.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	out := &output{to: w}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	table(tw)
	if err := tw.Flush(); err != nil {
		return err
	}
	return out.err
}

// An output remembers that it could not be written: a table is written piece by
// piece, and Flush knows only of the last one.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(b []byte) (n int, err error) {
	if o.err != nil {
		return 0, o.err
	}
	n, o.err = o.to.Write(b)
	return n, o.err
}

// containerFlag adds --container, which completes the names of attached ones.
func (c *common) containerFlag(cmd *cobra.Command, container *string, help string) {
	cmd.Flags().StringVar(container, "container", "", help)
	_ = cmd.RegisterFlagCompletionFunc("container", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return c.completeContainers(cmd, nil, prefix)
	})
}

func newRoot() *cobra.Command {
	c := &common{}
	root := &cobra.Command{
		Use:   "weir",
		Short: "A transparent egress firewall for containers",
		Long: `Weir decides what a running container may reach, without touching its image,
network or environment.

  sudo weir serve                          run the daemon
  sudo weir attach web --allow-all         watch what "web" does, block nothing
  sudo weir attach web --allow '*.packages.example:443'
                                           allow this and nothing else
  sudo weir explain web example.com:443    why is this allowed or refused?
  sudo weir events -f                      every decision as it is made`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			formats := "table or json"
			allowed := c.output == "table" || c.output == "json"
			if cmd.Name() == "events" {
				formats, allowed = "table, json or ocsf", allowed || c.output == "ocsf"
			}
			if !allowed {
				return usage("-o %s: want %s", c.output, formats)
			}
			return nil
		},
	}
	socket := os.Getenv("WEIR_SOCKET")
	if socket == "" {
		socket = api.DefaultSocket
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", socket, "the daemon's socket; also $WEIR_SOCKET")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "output format: table or json")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%w (see '%s --help')", err, cmd.CommandPath())
	})
	root.Args = cobra.ArbitraryArgs
	root.RunE = func(cmd *cobra.Command, given []string) error {
		if len(given) == 0 {
			return cmd.Help()
		}
		return usage("unknown command %q (see 'weir --help')", given[0])
	}
	root.AddCommand(
		newServe(c), newAttach(c), newDetach(c), newPs(c), newSession(c), newRule(c), newPolicy(c), newCA(c),
		newTest(c), newExplain(c), newAsk(c), newLearn(c), newEvents(c), newDNS(c), newFlows(c), newKill(c), newDoctor(c), newVersion(c), newOCIRuntime(c), newOCIHook(c), newUpgrade(c), newSelftest(c),
	)
	for _, cmd := range root.Commands() {
		explainUsage(cmd)
	}
	return root
}

// explainUsage makes wrong arguments a usage error, and a noun without a verb
// one that lists its verbs, unless the noun does something by itself.
func explainUsage(cmd *cobra.Command) {
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if err := args(cmd, given); err != nil {
				return usage("%w: %s (see '%s --help')", err, cmd.UseLine(), cmd.CommandPath())
			}
			return nil
		}
	}
	var verbs []string
	for _, sub := range cmd.Commands() {
		explainUsage(sub)
		verbs = append(verbs, sub.Name())
	}
	if len(verbs) > 0 && cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, given []string) error {
			return usage("%s: want one of %s (see '%s --help')", cmd.CommandPath(), strings.Join(verbs, ", "), cmd.CommandPath())
		}
	}
}

// completeContainers offers the names of attached containers.
func (c *common) completeContainers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := c.client().Attachments(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, a := range list {
		names = append(names, a.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func newVersion(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this binary, and of the daemon if it runs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"client": version}
			if h, err := c.client().Health(cmd.Context()); err == nil {
				v["daemon"] = h.Version
			}
			return c.print(cmd.OutOrStdout(), v, func(w io.Writer) {
				fmt.Fprintf(w, "client\t%s\n", v["client"])
				if d, ok := v["daemon"]; ok {
					fmt.Fprintf(w, "daemon\t%s\n", d)
				}
			})
		},
	}
}
