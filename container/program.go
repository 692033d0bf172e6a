package container

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of one [Programs.Find]; beyond them it is an error.
const (
	maxProcesses   = 1 << 16
	maxDescriptors = 1 << 20
	maxHolders     = 256
	maxAncestors   = 64
)

// Programs finds which program of one network namespace a socket belongs to.
// Safe for concurrent use; make with [OpenPrograms].
//
// It names the executable of whoever holds the socket. A program that is made
// to run foreign code (LD_PRELOAD, ptrace, a shell's arguments), and a socket
// that is handed over after it was looked at, are beyond it.
type Programs struct {
	// Inits returns the main processes of the containers that live in the
	// namespace. An executable counts only if one of their file systems has
	// that very file at that path, so that a mount namespace or chroot made
	// inside a container cannot lend a path to another file. None, or nil: the
	// namespace belongs to no container and paths are this process's own.
	Inits func() []int

	sockets *sockets
	netns   string // as readlink /proc/PID/ns/net says
	own     string // the pid namespace of this process
	host    string // the network namespace of this process
}

// Program is what holds a socket, as seen from inside the container.
type Program struct {
	PID  int    // of one holder, in the caller's pid namespace
	Path string // the executable
	// Ancestors are the executables of its parents, nearest first, up to the
	// container's main process or the last one that lives in the namespace. Of
	// several holders: those that all have.
	Ancestors []string
}

// OpenPrograms prepares for a namespace. ns may be closed afterwards.
func OpenPrograms(ns *os.File, inits func() []int) (*Programs, error) {
	id, err := netNSOf(ns)
	if err != nil {
		return nil, err
	}
	p := &Programs{Inits: inits, netns: fmt.Sprintf("net:[%d]", id.Ino)}
	if p.own, err = os.Readlink("/proc/self/ns/pid"); err != nil {
		return nil, fmt.Errorf("read own pid namespace: %w", err)
	}
	if p.host, err = os.Readlink(ownNetNS); err != nil {
		return nil, fmt.Errorf("read own network namespace: %w", err)
	}
	if p.sockets, err = openSockets(ns); err != nil {
		return nil, err
	}
	return p, nil
}

// Close releases the kernel socket.
func (p *Programs) Close() error { return p.sockets.close() }

// Find names the program that holds the socket of transport ("tcp" or "udp")
// from local to remote, as the container itself sees the two addresses: remote
// is the original destination. IPv4-mapped addresses equal IPv4 ones.
//
// It costs a walk over /proc, a few milliseconds on a busy machine. Whatever
// is not certain is an error: no such socket, closed or held by nobody, holders
// with different executables, a deleted or in-memory executable, one that the
// container does not have at that path, a process that ended meanwhile.
func (p *Programs) Find(ctx context.Context, transport string, local, remote netip.AddrPort) (Program, error) {
	prog, err := p.find(ctx, transport, local, remote)
	if err != nil {
		return Program{}, fmt.Errorf("program behind %s %s to %s: %w", transport, local, remote, err)
	}
	return prog, nil
}

func (p *Programs) find(ctx context.Context, transport string, local, remote netip.AddrPort) (Program, error) {
	before, err := p.sockets.find(ctx, transport, local, remote)
	if err != nil {
		return Program{}, err
	}
	links := map[string]bool{}
	for _, s := range before {
		links[fmt.Sprintf("socket:[%d]", s.inode)] = true
	}
	holders, err := p.holders(ctx, links)
	if err != nil {
		return Program{}, err
	}
	if len(holders) == 0 {
		return Program{}, errors.New("no process holds the socket")
	}
	view, err := p.view()
	if err != nil {
		return Program{}, err
	}
	defer view.close()
	var prog Program
	for i, h := range holders {
		path, err := view.executable(h.task)
		if err != nil {
			return Program{}, err
		}
		ancestors, err := p.ancestors(h.pid, view)
		if err != nil {
			return Program{}, err
		}
		if i == 0 {
			prog = Program{PID: h.pid, Path: path, Ancestors: ancestors}
			continue
		}
		if path != prog.Path {
			return Program{}, fmt.Errorf("held by different programs, %s and %s", prog.Path, path)
		}
		prog.Ancestors = slices.DeleteFunc(prog.Ancestors, func(a string) bool { return !slices.Contains(ancestors, a) })
	}
	// The same sockets still, in the same hands: otherwise what was read
	// between may be of others that came to their numbers.
	for _, h := range holders {
		if err := h.unchanged(); err != nil {
			return Program{}, err
		}
	}
	after, err := p.sockets.find(ctx, transport, local, remote)
	if err != nil {
		return Program{}, err
	}
	if !slices.Equal(before, after) {
		return Program{}, errors.New("the socket changed while its program was looked for")
	}
	return prog, nil
}

// holder is one process with the socket open.
type holder struct {
	pid   int // process
	task  int // the thread whose descriptors were looked at
	start uint64
	fd    string // path under /proc
	link  string
}

func (h holder) unchanged() error {
	now, err := readProcess(h.pid)
	if err != nil || now.start != h.start {
		return fmt.Errorf("process %d ended meanwhile: %w", h.pid, ErrGone)
	}
	if link, err := os.Readlink(h.fd); err != nil || link != h.link {
		return fmt.Errorf("process %d closed the socket meanwhile: %w", h.pid, ErrGone)
	}
	return nil
}

// holders walks the processes that could hold a socket of the namespace.
//
// These are more than those that live in it: a process can leave it after it
// has made the socket. Left out are only init and those in this process's own
// network and pid namespaces, where nobody gets to from a container.
func (p *Programs) holders(ctx context.Context, links map[string]bool) ([]holder, error) {
	pids, err := numbers("/proc")
	if err != nil {
		return nil, err
	}
	if len(pids) > maxProcesses {
		return nil, fmt.Errorf("more than %d processes to look at", maxProcesses)
	}
	budget := maxDescriptors
	var found []holder
	for _, pid := range pids {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("look through processes: %w", context.Cause(ctx))
		}
		if !p.candidate(pid) {
			continue
		}
		proc, err := readProcess(pid)
		if err != nil {
			if isGone(err) {
				continue
			}
			return nil, err
		}
		for _, task := range descriptorTables(pid) {
			h, err := holds(pid, task, proc.start, links, &budget)
			if err != nil {
				return nil, err
			}
			if h != nil {
				found = append(found, *h)
			}
		}
		if len(found) > maxHolders {
			return nil, fmt.Errorf("more than %d processes hold the socket", maxHolders)
		}
	}
	return found, nil
}

// candidate says whether a process must be looked at. One whose namespaces
// cannot be read has ended or is a zombie: it holds nothing.
func (p *Programs) candidate(pid int) bool {
	if pid == 1 {
		return false
	}
	net, err := os.Readlink(procPath(pid, "ns/net"))
	if err != nil {
		// A leader that ended while its threads go on: look at these.
		return true
	}
	if net == p.netns || net != p.host {
		return true
	}
	ns, err := os.Readlink(procPath(pid, "ns/pid"))
	return err != nil || ns != p.own
}

// descriptorTables are the threads of a process that have descriptors of their
// own: its leader, and those that left the common table (unshare(2),
// CLONE_FILES), which kcmp(2) tells.
func descriptorTables(pid int) []int {
	tasks, err := numbers(procPath(pid, "task"))
	if err != nil || len(tasks) <= 1 {
		return []int{pid}
	}
	tables := []int{pid}
	for _, t := range tasks {
		if t == pid {
			continue
		}
		const kcmpFiles = 2
		same, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(t), kcmpFiles, 0, 0, 0)
		if errno != 0 || same != 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

// holds looks through one descriptor table.
func holds(pid, task int, start uint64, links map[string]bool, budget *int) (*holder, error) {
	dir := procPath(task, "fd")
	fds, err := numbers(dir)
	if err != nil {
		if isGone(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("look through descriptors (needs root): %w", err)
	}
	if *budget -= len(fds); *budget < 0 {
		return nil, fmt.Errorf("more than %d descriptors to look at", maxDescriptors)
	}
	for _, fd := range fds {
		path := dir + "/" + strconv.Itoa(fd)
		link, err := os.Readlink(path)
		if err == nil && links[link] {
			return &holder{pid: pid, task: task, start: start, fd: path, link: link}, nil
		}
	}
	return nil, nil
}

// numbers are the entries of a directory that are numbers.
func numbers(dir string) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	ns := make([]int, 0, len(names))
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			ns = append(ns, n)
		}
	}
	return ns, nil
}

// ancestors climbs from a process to its container's main process, or as far
// as the network namespace goes: the parent of that is the runtime's shim.
func (p *Programs) ancestors(pid int, v *view) ([]string, error) {
	var paths []string
	for range maxAncestors {
		if slices.Contains(v.inits, pid) {
			return paths, nil
		}
		child, err := readProcess(pid)
		if err != nil {
			return nil, fmt.Errorf("ancestors: process %d: %w", pid, err)
		}
		if child.ppid <= 1 {
			return paths, nil
		}
		parent, err := readProcess(child.ppid)
		if err != nil {
			return nil, fmt.Errorf("ancestors: process %d: %w", child.ppid, err)
		}
		net, err := os.Readlink(procPath(parent.pid, "ns/net"))
		if err != nil {
			return nil, fmt.Errorf("ancestors: process %d: %w", parent.pid, err)
		}
		// The number of a parent that ended goes to nobody before its child
		// has another parent.
		again, err := readProcess(pid)
		if err != nil || again.start != child.start || again.ppid != parent.pid {
			return nil, fmt.Errorf("ancestors of process %d changed meanwhile: %w", pid, ErrGone)
		}
		if net != p.netns {
			return paths, nil
		}
		path, err := v.executable(parent.pid)
		if err != nil {
			return nil, fmt.Errorf("ancestors: %w", err)
		}
		paths = append(paths, path)
		pid = parent.pid
	}
	return nil, fmt.Errorf("process %d has more than %d ancestors", pid, maxAncestors)
}

// view is the file systems against which executables are checked.
type view struct {
	inits []int
	roots []viewRoot
}

type viewRoot struct {
	fd   int
	path string // where the root lies in its mount namespace: "/" unless the runtime only chroots
}

func (p *Programs) view() (*view, error) {
	v := &view{}
	paths := []string{"/"}
	if p.Inits != nil {
		v.inits = slices.Clone(p.Inits())
	}
	if len(v.inits) > 0 {
		paths = nil
	}
	for _, pid := range v.inits {
		// Its number may be another process's by now.
		if net, err := os.Readlink(procPath(pid, "ns/net")); err != nil || net != p.netns {
			continue
		}
		paths = append(paths, procPath(pid, "root"))
	}
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			v.close()
			return nil, fmt.Errorf("open the container's root %s: %w", path, err)
		}
		root := viewRoot{fd: fd, path: "/"}
		if path != "/" {
			if root.path, err = os.Readlink(path); err != nil {
				root.path = "/"
			}
		}
		v.roots = append(v.roots, root)
	}
	if len(v.roots) == 0 {
		return nil, fmt.Errorf("the container's main process: %w", ErrGone)
	}
	return v, nil
}

func (v *view) close() {
	for _, r := range v.roots {
		unix.Close(r.fd)
	}
}

// executable is the path of a process's executable inside the container.
func (v *view) executable(pid int) (string, error) {
	link := procPath(pid, "exe")
	path, err := os.Readlink(link)
	if err != nil {
		return "", fmt.Errorf("executable of process %d: %w", pid, err)
	}
	// What the kernel appends to a file that has no name any more; memfd_create(2)
	// files never have one.
	if strings.HasSuffix(path, " (deleted)") || strings.HasPrefix(path, "/memfd:") {
		return "", fmt.Errorf("executable of process %d is not on disk: %s", pid, path)
	}
	var is unix.Stat_t
	if err := unix.Stat(link, &is); err != nil {
		return "", fmt.Errorf("executable of process %d: %w", pid, err)
	}
	for _, r := range v.roots {
		inside := path
		if r.path != "/" {
			rest, ok := strings.CutPrefix(path, r.path+"/")
			if !ok {
				continue
			}
			inside = "/" + rest
		}
		fd, err := unix.Openat2(r.fd, inside, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			continue
		}
		var has unix.Stat_t
		err = unix.Fstat(fd, &has)
		unix.Close(fd)
		if err == nil && has.Dev == is.Dev && has.Ino == is.Ino {
			return inside, nil
		}
	}
	return "", fmt.Errorf("executable of process %d, %s, is not the file that the container has at this path", pid, path)
}
