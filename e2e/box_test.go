package e2e

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Box is a container of a test.
type Box struct {
	t        testing.TB
	Name, ID string
	env      []string // NAME=VALUE, for exec
}

// newBox starts a container that sleeps; args go before the image.
func newBox(t testing.TB, args ...string) *Box {
	t.Helper()
	b := &Box{t: t, Name: unique(t, "box")}
	out := run(t, "docker", append(append([]string{"run", "-d", "--name", b.Name, "--init"}, args...), clientImage, "sleep", "600")...)
	lines := strings.Fields(out)
	b.ID = lines[len(lines)-1]
	t.Cleanup(func() { try("docker", "rm", "-f", b.Name) })
	return b
}

// newNetwork makes a user-defined bridge network.
func newNetwork(t testing.TB, args ...string) string {
	t.Helper()
	name := unique(t, "net")
	run(t, "docker", append(append([]string{"network", "create"}, args...), name)...)
	t.Cleanup(func() { try("docker", "network", "rm", name) })
	return name
}

// exec runs a command inside and returns its output and whether it succeeded.
func (b *Box) exec(args ...string) (string, bool) {
	return b.pipe("", args...)
}

// pipe runs a command inside that reads input.
func (b *Box) pipe(input string, args ...string) (string, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all := []string{"exec", "-i"}
	for _, v := range b.env {
		all = append(all, "-e", v)
	}
	cmd := exec.CommandContext(ctx, "docker", append(append(all, b.Name), args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// sh runs a shell line inside.
func (b *Box) sh(line string) (string, bool) { return b.exec("sh", "-c", line) }

// curl fetches a URL inside, with a short time limit.
func (b *Box) curl(args ...string) (string, bool) {
	return b.exec(append([]string{"curl", "-sS", "--max-time", "5"}, args...)...)
}

// pid is the container's first process, as the host sees it.
func (b *Box) pid() string {
	return strings.TrimSpace(run(b.t, "docker", "inspect", "-f", "{{.State.Pid}}", b.Name))
}

// nsenter runs a host command in the container's network namespace.
func (b *Box) nsenter(args ...string) string {
	b.t.Helper()
	return run(b.t, "nsenter", append([]string{"-t", b.pid(), "-n"}, args...)...)
}
