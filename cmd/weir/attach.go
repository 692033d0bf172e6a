package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
	"weir/container"
	"weir/rules"
)

// sessionFlags are the flags that describe a session.
type sessionFlags struct {
	id       string
	ttl      time.Duration
	allowAll bool
	ask      bool
	inspect  []string
	policy   string
	allow    []string
	deny     []string
	labels   []string
}

func (f *sessionFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.DurationVar(&f.ttl, "ttl", 15*time.Minute, "how long the session lives without a heartbeat, at most 24h")
	flags.BoolVar(&f.allowAll, "allow-all", false, "learning: let everything pass and record it")
	flags.BoolVar(&f.ask, "ask", false, "hold what no rule decides, and ask a person (see 'weir ask'); denied after 30 seconds")
	flags.StringArrayVar(&f.inspect, "inspect", nil, "while learning, look at the requests to `HOST[:PORT]`; repeatable (see 'weir ca install')")
	flags.StringVar(&f.policy, "policy", "", "policy document, a YAML or JSON `FILE`")
	flags.StringArrayVar(&f.allow, "allow", nil, "allow `DEST[:PORTS][/udp]`: a name, *.name, an address or CIDR; repeatable")
	flags.StringArrayVar(&f.deny, "deny", nil, "deny `DEST[:PORTS][/udp]`; repeatable")
	flags.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` to find the session by; repeatable")
}

// request turns the flags into an API request for container.
func (f *sessionFlags) request(container string) (api.SessionRequest, error) {
	r := api.SessionRequest{ID: f.id, Container: container, AllowAll: f.allowAll, Ask: f.ask, InspectHosts: f.inspect}
	if f.ttl < time.Second || f.ttl%time.Second != 0 {
		return r, usage("--ttl %s: want whole seconds, at least one", f.ttl)
	}
	r.TTLSeconds = int64(f.ttl / time.Second)
	for _, list := range []struct {
		action string
		dests  []string
	}{{"allow", f.allow}, {"deny", f.deny}} {
		for _, d := range list.dests {
			dest, ports, transport, err := splitDestination(d, "")
			if err != nil {
				return r, err
			}
			// Checked here as well: before anything is attached.
			if _, _, err := rules.Canonical(rules.Rule{Source: rules.Session, Destination: dest, Ports: ports, Action: rules.Action(list.action)}); err != nil {
				return r, fmt.Errorf("--%s %s: %w", list.action, d, err)
			}
			r.NetworkRules = append(r.NetworkRules, api.SessionRule{Destination: dest, Ports: ports, Transport: transport, Action: list.action})
		}
	}
	for _, l := range f.labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return r, usage("--label %q: want KEY=VALUE", l)
		}
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[key] = value
	}
	if f.policy != "" {
		text, err := os.ReadFile(f.policy)
		if err != nil {
			return r, err
		}
		// Checked here as well: here its mistakes have the file's name.
		if _, _, err := rules.ParseDocument(f.policy, text); err != nil {
			return r, err
		}
		r.Policy = api.PolicyString(string(text))
	}
	return r, nil
}

func newAttach(c *common) *cobra.Command {
	f := &sessionFlags{}
	cmd := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "Put a running container behind the firewall, and open a session for it",
		Long: `Put a running container behind the firewall.

CONTAINER is an id, a unique prefix of one, a name, pid:N or netns:PATH.
Without a session option nothing is allowed but what global rules allow.
Connections that were open before are cut and listed.`,
		Example: `  sudo weir attach web
  sudo weir attach web --allow-all --ttl 1h
  sudo weir attach web --ask
  sudo weir attach web --allow github.com:443 --allow '*.packages.example:443'
  sudo weir attach web --policy github.yaml`,
		Args: one,
		RunE: func(cmd *cobra.Command, args []string) error {
			wantSession := false
			for _, name := range []string{"ttl", "allow-all", "ask", "inspect", "policy", "allow", "deny", "session", "label"} {
				wantSession = wantSession || cmd.Flags().Changed(name)
			}
			request, err := f.request(args[0])
			if err != nil {
				return err
			}
			client, ctx := c.client(), cmd.Context()
			// Only what this command attached may it detach again.
			_, err = client.Attachment(ctx, args[0])
			var absent *api.Problem
			fresh := errors.As(err, &absent) && absent.Status == http.StatusNotFound
			a, err := client.Attach(ctx, args[0])
			if err != nil {
				return err
			}
			out := struct {
				api.Attachment
				Session *api.Session `json:"session,omitempty"`
			}{Attachment: a}
			if wantSession {
				request.Container = a.ContainerID
				s, err := client.CreateSession(ctx, request)
				if err != nil && fresh {
					return undoAttach(context.WithoutCancel(ctx), client, a, err)
				}
				if err != nil {
					return fmt.Errorf("%s stays attached as it was, its session was refused: %w", a.Name, err)
				}
				out.Session, out.SessionID = &s, s.ID
				if s.Current {
					out.Mode = s.Mode()
				}
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintf(w, "attached\t%s\t%s\n", a.Name, short(a.ContainerID))
				for _, text := range a.Warnings {
					fmt.Fprintf(w, "warning\t%s\n", text)
				}
				for _, conn := range a.ClosedConnections {
					fmt.Fprintf(w, "cut\t%s %s -> %s\n", conn.Transport, conn.Local, conn.Remote)
				}
				if s := out.Session; s != nil {
					for _, text := range s.Warnings {
						fmt.Fprintf(w, "warning\t%s\n", text)
					}
					fmt.Fprintf(w, "session\t%s\t%s\n", s.ID, describeSession(*s))
				} else if a.SessionID != "" {
					fmt.Fprintf(w, "session\t%s\tcurrent already: %s\n", a.SessionID, a.Mode)
				} else {
					fmt.Fprintf(w, "session\tnone\tonly global rules count; open one with: weir session create %s --allow DEST\n", a.Name)
				}
			})
		},
		ValidArgsFunction: completeRunning,
	}
	cmd.Flags().StringVar(&f.id, "session", "", "`ID` of the session; an existing one is replaced")
	f.register(cmd)
	return cmd
}

// completeRunning offers the containers that could be attached.
func completeRunning(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if len(args) == 0 {
		// What could be had is offered; a runtime that does not answer has no names.
		list, _ := container.Connect().List(cmd.Context())
		for _, found := range list {
			if found.Running && !found.HostNetwork {
				names = append(names, found.Name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// undoAttach takes an attach back whose session was refused, so that the
// command does all of what it was asked for or nothing.
func undoAttach(ctx context.Context, client *api.Client, a api.Attachment, refused error) error {
	if err := client.Detach(ctx, a.ContainerID); err != nil {
		return fmt.Errorf("%s is attached and denied by default: its session was refused (%w), and so was the detach: %w", a.Name, refused, err)
	}
	return fmt.Errorf("%s was not attached, its session was refused: %w", a.Name, refused)
}

func newDetach(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "detach CONTAINER", Short: "Give a container its network back", Args: one,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().Detach(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]string{"detached": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "detached\t%s\n", args[0])
			})
		},
	}
}

func newPs(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "ps", Short: "List attached containers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.client().Attachments(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "CONTAINER\tNAME\tSTATE\tSESSION\tMODE\tFLOWS\tDENIED")
				for _, a := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\n", short(a.ContainerID), a.Name, a.State, dash(a.SessionID), a.Mode, a.Flows, a.Denied)
				}
			})
		},
	}
}

// short cuts a container id to the twelve digits that docker shows.
func short(id string) string {
	if len(id) == 64 {
		return id[:12]
	}
	return id
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
