package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newCA(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ca", Short: "The authority that signs what inspected connections are shown",
		Long: `Weir opens TLS only where a policy's endpoint asks to look inside. The programs
in the container then see a certificate of Weir's own authority, and have to
trust it. The authority's key never enters a container.`,
	}
	cmd.AddCommand(caShow(c), caInstall(c), caUninstall(c))
	return cmd
}

func caShow(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the authority's certificate (PEM)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := c.client().CA(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), a, func(w io.Writer) { fmt.Fprint(w, a.PEM) })
		},
	}
}

func caInstall(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "install CONTAINER", Short: "Add the authority to a container's own list, and print what other runtimes need",
		Args: one, ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := c.client().InstallCA(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), t, func(w io.Writer) {
				for _, file := range t.Changed {
					fmt.Fprintf(w, "# changed %s\n", file)
				}
				fmt.Fprintln(w, "# Programs with a list of their own need these where they are started:")
				for _, v := range t.Environment {
					fmt.Fprintf(w, "export %s=%q\t# %s\n", v.Name, v.Value, v.For)
				}
			})
		},
	}
}

func caUninstall(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "uninstall CONTAINER", Short: "Take the authority out of a container again", Args: one,
		ValidArgsFunction: c.completeContainers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.client().UninstallCA(cmd.Context(), args[0]); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), map[string]string{"uninstalled": args[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "uninstalled\t%s\n", args[0])
			})
		},
	}
}
