package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weir/api"
	"weir/rules"
)

// learnFlags are those of weir learn.
type learnFlags struct {
	since   string
	suffix  bool
	inspect []string
	apply   bool
	yes     bool
	ttl     time.Duration
}

func newLearn(c *common) *cobra.Command {
	f := &learnFlags{}
	cmd := &cobra.Command{
		Use:   "learn CONTAINER",
		Short: "Write the policy that admits what a container was seen doing, and nothing else",
		Long: `Write a policy document that admits what a container was allowed to do, best in
learning mode, and as little else as is sensible. Look through it, keep it, and
use it with --policy; or put it into force at once with --apply.

With --inspect the container's current session, which must be in learning mode,
looks at the requests to a host from now on, so that the policy can say which
of them are allowed. The programs in the container have to trust Weir's
certificates for that: weir ca install CONTAINER.`,
		Example: `  sudo weir attach web --allow-all --ttl 1h
  sudo weir learn web --inspect api.github.com
  sudo weir learn web > web.yaml
  sudo weir policy replay web.yaml --container web
  sudo weir learn web --apply`,
		Args: one, ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			since, err := f.check(cmd)
			if err != nil {
				return err
			}
			if len(f.inspect) > 0 {
				return c.inspect(cmd, args[0], f.inspect)
			}
			text, err := c.client().Learn(cmd.Context(), args[0], since, f.suffix)
			if err != nil {
				return err
			}
			if f.apply {
				return c.apply(cmd, args[0], text, f)
			}
			return c.print(cmd.OutOrStdout(), map[string]string{"policy": string(text)}, func(w io.Writer) { fmt.Fprintf(w, "%s", text) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.since, "since", "", "learn from this time on, or this long ago: 2026-05-01T12:00:00Z, 10m; everything on record when absent")
	flags.BoolVar(&f.suffix, "suffix", false, "fold three or more names below one domain into *.DOMAIN")
	flags.StringArrayVar(&f.inspect, "inspect", nil, "look at the requests to `HOST[:PORT]` from now on; repeatable")
	flags.BoolVar(&f.apply, "apply", false, "put the policy into force, in the place of the current session")
	flags.BoolVar(&f.yes, "yes", false, "with --apply: do not ask")
	flags.DurationVar(&f.ttl, "ttl", 0, "with --apply: how long the session lives without a heartbeat; what it has left, or 15m, when absent")
	return cmd
}

// check says how the flags go together, and reads --since.
func (f *learnFlags) check(cmd *cobra.Command) (since time.Time, err error) {
	switch {
	case len(f.inspect) > 0 && (f.apply || f.suffix || f.since != ""):
		return since, usage("--inspect goes alone: let the container work afterwards, then learn")
	case !f.apply && (f.yes || f.ttl != 0):
		return since, usage("--yes and --ttl go with --apply")
	case f.ttl != 0 && (f.ttl < time.Second || f.ttl%time.Second != 0):
		return since, usage("--ttl %s: want whole seconds, at least one", f.ttl)
	case f.apply && !f.yes && !terminal(cmd.InOrStdin()):
		return since, usage("--apply asks before it acts, and there is no terminal to ask on: add --yes")
	}
	for _, host := range f.inspect {
		if _, err := rules.CanonicalInspectHost(host); err != nil {
			return since, usage("%w", err)
		}
	}
	if f.since == "" {
		return since, nil
	}
	return parseSince(f.since, time.Now())
}

// terminal: somebody can answer there.
func terminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// current returns an attached container and its current session, if any.
func (c *common) current(ctx context.Context, container string) (a api.Attachment, s *api.Session, err error) {
	client := c.client()
	if a, err = client.Attachment(ctx, container); err != nil || a.SessionID == "" {
		return a, nil, err
	}
	session, err := client.Session(ctx, a.SessionID)
	return a, &session, err
}

// inspect has the current session look at the requests to more hosts.
func (c *common) inspect(cmd *cobra.Command, container string, hosts []string) error {
	a, s, err := c.current(cmd.Context(), container)
	if err != nil {
		return err
	}
	if s == nil {
		return fmt.Errorf("%s has no session: open one with 'weir session create %s --allow-all --inspect %s'", a.Name, a.Name, hosts[0])
	}
	changed, err := c.client().SetInspect(cmd.Context(), s.ID, slices.Concat(s.InspectHosts, hosts))
	if err != nil {
		return err
	}
	return c.print(cmd.OutOrStdout(), changed, func(w io.Writer) {
		fmt.Fprintf(w, "session\t%s\tlooks at the requests to %s\n", changed.ID, strings.Join(changed.InspectHosts, ", "))
		fmt.Fprintf(w, "next\t\tits programs must trust Weir: weir ca install %s; let it work, then: weir learn %s\n", a.Name, a.Name)
	})
}

// errNotConfirmed is the answer no.
var errNotConfirmed = errors.New("not applied; the container goes on as it was")

// apply shows a policy, asks, and puts it into force in the place of the
// current session.
func (c *common) apply(cmd *cobra.Command, container string, text []byte, f *learnFlags) error {
	a, s, err := c.current(cmd.Context(), container)
	if err != nil {
		return err
	}
	r := api.SessionRequest{Container: a.ContainerID, Policy: api.PolicyString(string(text))}
	ttl := max(f.ttl, 0)
	if s != nil {
		r.ID, r.Labels = s.ID, s.Labels
		if ttl == 0 {
			ttl = max(time.Until(s.ExpiresAt).Truncate(time.Second), 15*time.Minute)
		}
	}
	r.TTLSeconds = int64(ttl / time.Second)
	if !f.yes {
		messages := cmd.ErrOrStderr()
		if _, err := messages.Write(text); err != nil {
			return fmt.Errorf("show the policy: %w", err)
		}
		what := "as a new session"
		if s != nil {
			what = "in the place of session " + s.ID
		}
		fmt.Fprintf(messages, "\nEnforce this for %s, %s? [y/N] ", a.Name, what)
		line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		if err != nil && err != io.EOF {
			return err
		}
		if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
			return errNotConfirmed
		}
	}
	made, err := c.client().CreateSession(cmd.Context(), r)
	if err != nil {
		return err
	}
	return c.printSession(cmd.OutOrStdout(), made)
}

func policyReplay(c *common) *cobra.Command {
	var container, since string
	cmd := &cobra.Command{
		Use:   "replay POLICY --container CONTAINER",
		Short: "What a policy would have made of what a container was seen doing",
		Long: `Try a policy document, as that of the container's session and below the global
rules in force, on everything that is on record about the container, and show
what would be answered otherwise.

Exit code 1: something that was allowed would be denied. Queries of requests and
ancestors of programs are not on record: rules that need them do not match.`,
		Example: `  sudo weir policy replay web.yaml --container web --since 24h`,
		Args:    one,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if container == "" {
				return usage("whose record? add --container CONTAINER")
			}
			var from time.Time
			if since != "" {
				if from, err = parseSince(since, time.Now()); err != nil {
					return err
				}
			}
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			// Checked here as well: here its mistakes have the file's name.
			if _, _, err := rules.ParseDocument(args[0], text); err != nil {
				return err
			}
			report, err := c.client().Replay(cmd.Context(), container, from, string(text))
			if err != nil {
				return err
			}
			if err := c.print(cmd.OutOrStdout(), report, func(w io.Writer) { printReplay(w, report) }); err != nil {
				return err
			}
			if len(report.Denied) > 0 {
				return errFailed
			}
			return nil
		},
	}
	c.containerFlag(cmd, &container, "whose record to try the policy on; required")
	cmd.Flags().StringVar(&since, "since", "", "from this time, or this long ago: 2026-05-01T12:00:00Z, 10m; everything on record when absent")
	return cmd
}

func printReplay(w io.Writer, r api.Replay) {
	total := func(list []api.Change) (n int) {
		for _, c := range list {
			n += c.Count
		}
		return n
	}
	for _, group := range []struct {
		title string
		list  []api.Change
	}{
		{"would be DENIED, were allowed", r.Denied},
		{"would be allowed, were denied", r.Allowed},
		{"would be inspected, and their requests were not seen", r.Unknown},
	} {
		if len(group.list) == 0 {
			continue
		}
		fmt.Fprintf(w, "%d %s:\n", total(group.list), group.title)
		for _, c := range group.list {
			fmt.Fprintf(w, "  %d\t%s\t%s\n\t  %s\n", c.Count, c.What, c.Binary, c.Reason)
		}
	}
	fmt.Fprintf(w, "%d the same, %d would be denied, %d would be allowed\n", r.Same, total(r.Denied), total(r.Allowed))
}
