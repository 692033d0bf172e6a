package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// sweep takes away what runs that were killed have left: their routes would
// lead this run's packets to namespaces in which nobody answers. Names carry
// the pid of the run that made them; those of runs that live are left alone.
func sweep() {
	pid := regexp.MustCompile(`^(?:weir-[a-z0-9]+-|weo)([0-9]+)(?:-[0-9]+)?$`)
	for _, kind := range []struct{ list, remove string }{
		{"docker ps -a --format {{.Names}}", "docker rm -f"},
		{"docker network ls --format {{.Name}}", "docker network rm"},
		{"ip -br link", "ip link del"},
		{"ip netns list", "ip netns del"},
	} {
		list := strings.Fields(kind.list)
		out, err := exec.Command(list[0], list[1:]...).Output()
		if err != nil {
			continue // what does not answer has left nothing that could be removed
		}
		for line := range strings.Lines(string(out)) {
			name, _, _ := strings.Cut(strings.Fields(line + " -")[0], "@")
			m := pid.FindStringSubmatch(name)
			if m == nil {
				continue
			}
			if _, err := os.Stat("/proc/" + m[1]); err == nil {
				continue
			}
			remove := append(strings.Fields(kind.remove), name)
			if out, err := exec.Command(remove[0], remove[1:]...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "e2e: %s: %v: %s", strings.Join(remove, " "), err, out)
			}
		}
	}
}
