package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// sweep takes away what runs that were killed have left: their routes would
// lead this run's packets to namespaces in which nobody answers. Names carry
// the pid of the run that made them; those of runs that live are left alone.
func sweep() {
	orphans()
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

// orphans ends the daemons of runs that were killed. Each would go on
// answering, and attaching whatever starts with a label.
func orphans() {
	binary := regexp.MustCompile(`/weir-e2e[0-9]+/weir[^/]*$`)
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return
	}
	for _, process := range processes {
		exe, err := os.Readlink(process + "/exe")
		if err != nil || !binary.MatchString(strings.TrimSuffix(exe, " (deleted)")) {
			continue
		}
		status, err := os.ReadFile(process + "/status")
		if err != nil || !strings.Contains(string(status), "\nPPid:\t1\n") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "e2e: ends daemon %d of a run that was killed\n", pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: daemon %d: %v\n", pid, err)
		}
	}
}
