package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NetNSID identifies a network namespace while anything keeps it alive.
type NetNSID struct {
	Dev, Ino uint64
}

// String is "dev:ino".
func (id NetNSID) String() string { return fmt.Sprintf("%d:%d", id.Dev, id.Ino) }

// containerID is the identity of a namespace that no runtime knows.
func (id NetNSID) containerID() string { return fmt.Sprintf("netns:%d-%d", id.Dev, id.Ino) }

// OpenNetNS opens the container's network namespace and makes sure that it is
// the one that was found: same device and inode, and the main process has the
// same start time after the opening. The caller closes the file; its Fd, or
// /proc/self/fd/N, is the namespace for as long. Errors wrap [ErrGone] when
// the container has stopped or restarted since.
func (c Container) OpenNetNS() (*os.File, error) {
	if c.NetNS == "" {
		return nil, fmt.Errorf("open network namespace of %s: %w", c.Name, ErrNotRunning)
	}
	f, id, err := openNetNS(c.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of %s: %w", c.Name, err)
	}
	if id != c.NetNSID {
		f.Close()
		return nil, fmt.Errorf("%s now is namespace %s, was %s: %w; look the container up again", c.NetNS, id, c.NetNSID, ErrGone)
	}
	if c.PID != 0 {
		if p, err := readProcess(c.PID); err != nil || p.start != c.PIDStart {
			f.Close()
			return nil, fmt.Errorf("process %d of %s has ended: %w; look the container up again", c.PID, c.Name, ErrGone)
		}
	}
	return f, nil
}

// openNetNS opens a path that must be a network namespace.
func openNetNS(path string) (*os.File, NetNSID, error) {
	// O_NONBLOCK: a FIFO must not hold us up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, NetNSID{}, fmt.Errorf("%w: %w", ErrGone, err)
		}
		return nil, NetNSID{}, err
	}
	id, err := netNSOf(f)
	if err != nil {
		f.Close()
		return nil, NetNSID{}, err
	}
	return f, id, nil
}

// netNSAt says which network namespace a path is now.
func netNSAt(path string) (NetNSID, error) {
	f, id, err := openNetNS(path)
	if err != nil {
		return NetNSID{}, err
	}
	return id, f.Close()
}

func netNSOf(f *os.File) (NetNSID, error) {
	var st unix.Stat_t
	var sfs unix.Statfs_t
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return NetNSID{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return NetNSID{}, fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	// ioctl_nsfs(2)
	if sfs.Type != unix.NSFS_MAGIC {
		return NetNSID{}, fmt.Errorf("%s is not a namespace", f.Name())
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return NetNSID{}, fmt.Errorf("ask the kind of namespace %s: %w", f.Name(), err)
	}
	if kind != unix.CLONE_NEWNET {
		return NetNSID{}, fmt.Errorf("%s is a namespace, but not of networks", f.Name())
	}
	return NetNSID{Dev: uint64(st.Dev), Ino: st.Ino}, nil
}

// ownNetNS is the namespace of this process, read from the calling thread:
// /proc/self is the main thread, which may be at work in another one.
const ownNetNS = "/proc/thread-self/ns/net"

// isHostNetNS reports whether id is the namespace of the host's first process
// or of this one.
func isHostNetNS(id NetNSID) (bool, error) {
	for _, path := range []string{ownNetNS, "/proc/1/ns/net"} {
		host, err := netNSAt(path)
		if errors.Is(err, fs.ErrPermission) && path != ownNetNS {
			// An init with capabilities that this process was not given: then
			// our own namespace, from which connections are made, has to do.
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read the host's own namespace: %w", err)
		}
		if host == id {
			return true, nil
		}
	}
	return false, nil
}

// process is what /proc/PID/stat says.
type process struct {
	pid, ppid int
	start     uint64 // clock ticks since boot
}

// readProcess reads /proc/PID/stat; pid may be a thread's.
func readProcess(pid int) (process, error) {
	text, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return process{}, err
	}
	// The command may hold spaces and parentheses: what follows the last one counts.
	_, rest, ok := strings.Cut(string(text[max(strings.LastIndexByte(string(text), ')'), 0):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return process{}, fmt.Errorf("malformed %s", procPath(pid, "stat"))
	}
	ppid, err1 := strconv.Atoi(fields[1])
	start, err2 := strconv.ParseUint(fields[19], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return process{}, fmt.Errorf("malformed %s: %w", procPath(pid, "stat"), err)
	}
	return process{pid: pid, ppid: ppid, start: start}, nil
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

// processNetNS is the namespace of a process and the process's start time,
// both read from one and the same process.
func processNetNS(pid int) (NetNSID, uint64, error) {
	before, err := readProcess(pid)
	if err != nil {
		return NetNSID{}, 0, err
	}
	id, err := netNSAt(procPath(pid, "ns/net"))
	if err != nil {
		return NetNSID{}, 0, err
	}
	after, err := readProcess(pid)
	if err != nil || after.start != before.start {
		return NetNSID{}, 0, fmt.Errorf("process %d ended meanwhile: %w", pid, ErrGone)
	}
	return id, after.start, nil
}

var cgroupID = regexp.MustCompile(`[0-9a-f]{64}`)

// cgroupIDs are the container ids in a process's cgroup paths.
func cgroupIDs(pid int) ([]string, error) {
	text, err := os.ReadFile(procPath(pid, "cgroup"))
	if err != nil {
		return nil, err
	}
	return cgroupID.FindAllString(string(text), -1), nil
}

// readCapabilities reads what the bounding set of its main process has
// (capabilities(7)), and over which user namespace.
func (c *Container) readCapabilities() error {
	text, err := os.ReadFile(procPath(c.PID, "status"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		v, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		if err != nil {
			return fmt.Errorf("malformed %s: %w", procPath(c.PID, "status"), err)
		}
		users, err := os.Readlink(procPath(c.PID, "ns/user"))
		if err != nil {
			return err
		}
		own, err := os.Readlink("/proc/self/ns/user")
		if err != nil {
			return err
		}
		c.NetAdmin, c.NetRaw = set>>unix.CAP_NET_ADMIN&1 == 1, set>>unix.CAP_NET_RAW&1 == 1
		c.HostNetAdmin = c.NetAdmin && users == own
		return nil
	}
	return fmt.Errorf("malformed %s: no CapBnd", procPath(c.PID, "status"))
}

// netnsDirs are where ip-netns(8) keeps its names.
var netnsDirs = []string{"/run/netns/", "/var/run/netns/"}

// pathOfNetNS finds a path for a "DEV-INO" identity: a name of ip-netns(8), or
// a process that lives in it.
func pathOfNetNS(want string) (string, error) {
	paths, err := filepath.Glob("/run/netns/*")
	if err != nil {
		return "", err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return "", err
	}
	for _, path := range append(paths, processes...) {
		id, err := netNSAt(path)
		if err != nil {
			continue // it ended, or is none: neither is the one wanted
		}
		if id.containerID() == "netns:"+want {
			return path, nil
		}
	}
	return "", fmt.Errorf("no namespace netns:%s: %w; see \"ip netns list\"", want, ErrNotFound)
}
