package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weir/api"
)

// hookTimeout is how long the hook of a container's start may take, in seconds.
const hookTimeout = 30

// restartPatience is how long a container's start waits for a daemon that is not
// there, or just ends: one that is upgraded or restarted is back by then.
const restartPatience = 10 * time.Second

func newOCIRuntime(c *common) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "oci-runtime [--runtime PATH] [--socket PATH] -- ARGS...",
		Short: "Run containers that are attached before their first instruction",
		Long: `An OCI runtime that wraps another one (runc): each container that it creates is
attached by the daemon in the createRuntime stage, when its network is there
and nothing of it has run yet. Without the daemon such a container does not
start; one that is upgraded or restarted is waited for, up to 10 seconds. Register it with Docker in /etc/docker/daemon.json:

  {"runtimes": {"weir": {"path": "/usr/local/bin/weir", "runtimeArgs": ["oci-runtime", "--"]}}}

and start a container with: docker run --runtime weir ...`,
		Args:   cobra.ArbitraryArgs,
		Hidden: true,
	}
	runtime := cmd.Flags().String("runtime", "runc", "the runtime that does the work")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if bundle, ok := createdBundle(args); ok {
			if err := addHook(bundle, c.socket); err != nil {
				return err
			}
		}
		path, err := exec.LookPath(*runtime)
		if err != nil {
			return fmt.Errorf("%w; name the wrapped runtime with --runtime", err)
		}
		return syscall.Exec(path, append([]string{path}, args...), os.Environ())
	}
	return cmd
}

// createdBundle finds the bundle directory in a runtime's command line when
// that creates a container (runc(8): create and run).
func createdBundle(args []string) (bundle string, creates bool) {
	i := slices.IndexFunc(args, func(a string) bool { return a == "create" || a == "run" })
	if i < 0 {
		return "", false
	}
	bundle = "."
	for n, a := range args[i:] {
		for _, flag := range []string{"--bundle", "-bundle", "-b"} {
			if value, ok := strings.CutPrefix(a, flag+"="); ok {
				bundle = value
			} else if a == flag && i+n+1 < len(args) {
				bundle = args[i+n+1]
			}
		}
	}
	return bundle, true
}

// addHook has the bundle's container attached in the createRuntime stage, as
// its last hook: those before it set up the network. See the OCI runtime
// specification, config.md, "POSIX-platform Hooks".
func addHook(bundle, socket string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	path := filepath.Join(bundle, "config.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// Everything else is kept as it is, numbers included.
	var config, hooks map[string]json.RawMessage
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if h, ok := config["hooks"]; ok {
		if err := json.Unmarshal(h, &hooks); err != nil {
			return fmt.Errorf("%s: hooks: %w", path, err)
		}
	}
	if hooks == nil {
		hooks = map[string]json.RawMessage{}
	}
	var stage []json.RawMessage
	if h, ok := hooks["createRuntime"]; ok {
		if err := json.Unmarshal(h, &stage); err != nil {
			return fmt.Errorf("%s: hooks.createRuntime: %w", path, err)
		}
	}
	hook, err := json.Marshal(map[string]any{
		"path": self, "args": []string{"weir", "--socket", socket, "oci-hook"}, "timeout": hookTimeout,
	})
	if err != nil {
		return err
	}
	stage = append(stage, hook)
	if hooks["createRuntime"], err = json.Marshal(stage); err != nil {
		return err
	}
	if config["hooks"], err = json.Marshal(hooks); err != nil {
		return err
	}
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return replaceFile(path, text, info.Mode().Perm())
}

// replaceFile writes a file in one step.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".weir-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func newOCIHook(c *common) *cobra.Command {
	return &cobra.Command{
		Use: "oci-hook", Short: "Attach the container whose state is on standard input (an OCI createRuntime hook)",
		Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var state struct {
				ID  string `json:"id"`
				PID int    `json:"pid"`
			}
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&state); err != nil {
				return fmt.Errorf("container state on standard input: %w", err)
			}
			if err := attachStarting(cmd.Context(), c.client(), state.ID, state.PID); err != nil {
				return fmt.Errorf("container %s does not start without its firewall: %w", state.ID, err)
			}
			return nil
		},
	}
}

// attachStarting has the daemon attach a container, once there is one.
func attachStarting(ctx context.Context, client *api.Client, id string, pid int) error {
	for deadline := time.Now().Add(restartPatience); ; {
		_, err := client.AttachStarting(ctx, id, pid)
		if err == nil || !restarting(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// restarting reports whether an error may be that of a daemon that is being
// replaced: it is not there, or has ended before it answered, or says that it
// cannot answer now. Asking again is safe: attaching twice is attaching once.
func restarting(err error) bool {
	var problem *api.Problem
	if errors.As(err, &problem) {
		return problem.Status == http.StatusServiceUnavailable
	}
	return slices.ContainsFunc([]error{api.ErrNoDaemon, io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE},
		func(one error) bool { return errors.Is(err, one) })
}
