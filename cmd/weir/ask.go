package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
)

func newAsk(c *common) *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use: "ask", Short: "Answer what sessions that ask hold until a person answers",
		Long: `Wait for questions and answer them, key by key: what a container wants to reach
and no rule decides is held until somebody allows or denies it, and denied when
nobody does in time. Every answer says which rule it would make, if it makes one.

Questions come from sessions that ask: weir attach CONTAINER --ask. Without a
terminal, 'weir ask list' and 'weir ask answer' do the same.`,
		Example: `  sudo weir attach web --ask
  sudo weir ask
  sudo weir ask --container web`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, out := cmd.InOrStdin(), cmd.OutOrStdout()
			if !terminal(in) || c.json() {
				return usage("questions are put on a terminal, and this is none: use 'weir ask list' and 'weir ask answer'")
			}
			return c.askTerminal(cmd.Context(), container, in.(*os.File), out)
		},
	}
	c.containerFlag(cmd, &container, "only the questions of this container")
	cmd.AddCommand(askList(c), askAnswer(c))
	return cmd
}

func askList(c *common) *cobra.Command {
	var container string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what waits for an answer, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Questions(cmd.Context(), container)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "QUESTION\tCONTAINER\tDESTINATION\tPROGRAM\tCONNECTIONS\tDENIED IN")
				for _, q := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", q.ID, q.Container, askedAbout(q), q.Binary, q.Flows,
						max(0, time.Until(q.ExpiresAt)).Round(time.Second))
				}
			})
		},
	}
	c.containerFlag(cmd, &container, "only of this container")
	return cmd
}

// askedAbout is what a question is about, as a destination is written.
func askedAbout(q api.Question) string {
	return net.JoinHostPort(cmp.Or(q.Host, q.Address), strconv.Itoa(int(q.Port)))
}

func askAnswer(c *common) *cobra.Command {
	var r api.AnswerRequest
	cmd := &cobra.Command{
		Use:   "answer QUESTION allow|deny",
		Short: "Answer a question",
		Long: `Answer a question of 'weir ask list'. The answer takes effect on what waits for it
at once.`,
		Example: `  sudo weir ask answer q-7HXMW2KQ4A allow
  sudo weir ask answer q-7HXMW2KQ4A allow --for session --what suffix
  sudo weir ask answer q-7HXMW2KQ4A deny --for global --what host`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.completeQuestions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "allow" && args[1] != "deny" {
				return usage("%q: want allow or deny", args[1])
			}
			r.Verdict = args[1]
			if !slices.Contains([]string{"once", "session", "global"}, r.For) {
				return usage("--for %q: want once, session or global", r.For)
			}
			if !slices.Contains([]string{"endpoint", "host", "suffix"}, r.What) {
				return usage("--what %q: want endpoint, host or suffix", r.What)
			}
			a, err := c.client().Answer(cmd.Context(), args[0], r)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), a, func(w io.Writer) { printAnswered(w, a) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.For, "for", "once", "once: for what waits now; session: until the session ends; global: for good")
	flags.StringVar(&r.What, "what", "endpoint", "endpoint: this name or address and port; host: all its ports; suffix: the names around it, this port")
	return cmd
}

func printAnswered(w io.Writer, a api.Answered) {
	fmt.Fprintf(w, "%s\t%s\tconnections that waited: %d\n", map[string]string{"allow": "allowed", "deny": "denied"}[a.Verdict], a.Question, a.Flows)
	if a.Others > 0 {
		fmt.Fprintf(w, "\t\t%d more questions are answered with it\n", a.Others)
	}
	if r := a.Rule; r != nil {
		fmt.Fprintf(w, "rule\t%s\t%s %s %s ports %s\n", r.ID, r.Source, r.Action, r.Destination, r.Ports)
	}
	for _, text := range a.Warnings {
		fmt.Fprintf(w, "warning\t%s\n", text)
	}
}

// completeQuestions offers the ids of open questions, and then the verdicts.
func (c *common) completeQuestions(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	switch len(args) {
	case 0:
		list, err := c.client().Questions(cmd.Context(), "")
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, q := range list {
			words = append(words, fmt.Sprintf("%s\t%s to %s", q.ID, q.Container, askedAbout(q)))
		}
	case 1:
		words = []string{"allow", "deny"}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}
