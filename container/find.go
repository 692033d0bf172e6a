package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Find looks one container up by ref:
//
//   - a full id, else an exact name (a leading slash is dropped), else an id
//     prefix that only one container has, in this order, as Docker does;
//   - pid:N, the namespace of a process;
//   - netns:PATH, netns:NAME (of ip-netns(8)), netns:DEV-INO, or a path under
//     /run/netns or /var/run/netns.
//
// Errors wrap [ErrNotFound], [ErrNotRunning], [ErrHostNetwork] or
// [ErrUnreachable], or are an [*AmbiguousError]. With ErrNotRunning and
// ErrHostNetwork the container comes along, for its id and name.
func (r *Runtimes) Find(ctx context.Context, ref string) (Container, error) {
	var c Container
	var err error
	if arg, ok := strings.CutPrefix(ref, "pid:"); ok {
		c, err = r.findPID(ctx, arg)
	} else if path, ok := netnsPath(ref); ok {
		c, err = r.findNetNS(ctx, ref, path)
	} else {
		c, err = r.findNamed(ctx, ref)
	}
	if err != nil {
		return c, fmt.Errorf("find container %q: %w", ref, err)
	}
	if err := c.requireAttachable(); err != nil {
		return c, fmt.Errorf("container %q: %w", ref, err)
	}
	return c, nil
}

// netnsPath says whether ref is a namespace's, and its path or "DEV-INO".
func netnsPath(ref string) (string, bool) {
	for _, dir := range netnsDirs {
		if strings.HasPrefix(ref, dir) {
			return ref, true
		}
	}
	path, ok := strings.CutPrefix(ref, "netns:")
	return path, ok
}

func (r *Runtimes) findPID(ctx context.Context, arg string) (Container, error) {
	pid, err := strconv.Atoi(arg)
	if err != nil || pid <= 0 {
		return Container{}, fmt.Errorf("%q is not a process id; use pid:1234", arg)
	}
	if pid == 1 {
		// Also where this process may not look at init's namespaces.
		return Container{Name: "pid:1", Running: true, PID: 1, HostNetwork: true}, nil
	}
	id, start, err := processNetNS(pid)
	if isGone(err) {
		return Container{}, fmt.Errorf("no process %d: %w", pid, ErrNotFound)
	}
	if err != nil {
		return Container{}, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	c := Container{
		ID: id.containerID(), Name: "pid:" + strconv.Itoa(pid), Running: true,
		PID: pid, PIDStart: start, NetNS: procPath(pid, "ns/net"), NetNSID: id,
	}
	if err := c.readCapabilities(); err != nil {
		return Container{}, fmt.Errorf("capabilities of process %d: %w", pid, err)
	}
	return r.bare(ctx, c)
}

func (r *Runtimes) findNetNS(ctx context.Context, ref, path string) (Container, error) {
	switch {
	case path == "":
		return Container{}, errors.New("no path; use netns:/run/netns/NAME")
	case !strings.ContainsRune(path, '/'):
		if _, err := netNSAt(netnsDirs[0] + path); err != nil && isDevIno(path) {
			if path, err = pathOfNetNS(path); err != nil {
				return Container{}, err
			}
		} else {
			path = netnsDirs[0] + path
		}
	case !filepath.IsAbs(path):
		return Container{}, fmt.Errorf("%q is neither an absolute path nor a name of \"ip netns list\"", path)
	}
	id, err := netNSAt(path)
	if isGone(err) {
		return Container{}, fmt.Errorf("no namespace at %s: %w; see \"ip netns list\"", path, ErrNotFound)
	}
	if err != nil {
		return Container{}, fmt.Errorf("open namespace: %w", err)
	}
	return r.bare(ctx, Container{ID: id.containerID(), Name: ref, Running: true, NetNS: path, NetNSID: id})
}

func isDevIno(s string) bool {
	dev, ino, ok := strings.Cut(s, "-")
	_, err1 := strconv.ParseUint(dev, 10, 64)
	_, err2 := strconv.ParseUint(ino, 10, 64)
	return ok && err1 == nil && err2 == nil
}

// bare completes a namespace without a runtime: whether it is the host's, and
// which containers live in it.
func (r *Runtimes) bare(ctx context.Context, c Container) (Container, error) {
	host, err := isHostNetNS(c.NetNSID)
	if err != nil {
		return Container{}, err
	}
	if c.HostNetwork = host; host {
		return c, nil
	}
	var cgroups []string
	if c.PID != 0 {
		if cgroups, err = cgroupIDs(c.PID); err != nil {
			return Container{}, fmt.Errorf("cgroup of process %d: %w", c.PID, err)
		}
	}
	all, err := r.List(ctx)
	c.MembersErr = err
	for _, m := range all {
		if m.Running && m.NetNSID == c.NetNSID || slices.Contains(cgroups, m.ID) {
			c.Members = append(c.Members, Member{ID: m.ID, Name: m.Name, SharesNetNS: m.Running && m.NetNSID == c.NetNSID})
		}
	}
	return c, nil
}

// How well a reference fits; a better fit hides all lesser ones.
const (
	fitsPrefix = iota + 1
	fitsName
	fitsID
)

func fit(ref, id string, names []string) int {
	switch {
	case ref == id:
		return fitsID
	case slices.Contains(names, "/"+ref):
		return fitsName
	case strings.HasPrefix(id, ref):
		return fitsPrefix
	}
	return 0
}

func (r *Runtimes) findNamed(ctx context.Context, ref string) (Container, error) {
	name := strings.TrimPrefix(ref, "/")
	if name == "" {
		return Container{}, errors.New("no name given; use an id, a name, pid:N or netns:PATH")
	}
	live := r.live()
	if len(live) == 0 {
		return Container{}, r.none()
	}
	best := 0
	var candidates []Candidate
	var where *runtime
	var failed []error
	for _, rt := range live {
		items, err := rt.list(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for _, s := range items {
			f := fit(name, s.ID, s.Names)
			if f == 0 || f < best {
				continue
			}
			if f > best {
				best, candidates = f, nil
			}
			candidates = append(candidates, Candidate{ID: s.ID, Name: nameOf(s.Names), Runtime: rt.socket})
			where = rt
		}
	}
	switch {
	case len(candidates) > 1:
		return Container{}, &AmbiguousError{Ref: ref, Candidates: candidates}
	case len(candidates) == 0 && len(failed) > 0:
		return Container{}, errors.Join(failed...)
	case len(candidates) == 0:
		return Container{}, fmt.Errorf("no container has this id or name: %w; see \"%s ps\"", ErrNotFound, runtimeCommand(live[0].socket))
	case best == fitsPrefix && len(failed) > 0:
		// The runtime that did not answer may have a container of this name.
		return Container{}, fmt.Errorf("a prefix cannot be told apart while a runtime does not answer; use the full id %s: %w", candidates[0].ID, errors.Join(failed...))
	}
	return where.inspect(ctx, candidates[0].ID)
}

// nameOf is the container's own name among those that links to it add.
func nameOf(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); !strings.ContainsRune(n, '/') {
			return n
		}
	}
	return ""
}

func (r *Runtimes) none() error {
	var sockets []string
	for _, rt := range r.all {
		sockets = append(sockets, rt.socket)
	}
	return fmt.Errorf("%w: none of %s exists; start docker or podman, name its socket in the configuration, or use pid:N or netns:PATH", ErrUnreachable, strings.Join(sockets, ", "))
}

// List returns the containers of all runtimes, stopped ones too (these without
// networks and process). What could be had comes along with an error about
// the runtimes that could not be asked; no runtime at all is no error.
func (r *Runtimes) List(ctx context.Context) ([]Container, error) {
	var all []Container
	var failed []error
	for _, rt := range r.live() {
		cs, err := rt.containers(ctx)
		if err != nil {
			failed = append(failed, err)
		}
		all = append(all, cs...)
	}
	return all, errors.Join(failed...)
}

// Sharing returns the running containers that live in a namespace.
func (r *Runtimes) Sharing(ctx context.Context, id NetNSID) ([]Container, error) {
	all, err := r.List(ctx)
	return slices.DeleteFunc(all, func(c Container) bool { return !c.Running || c.NetNSID != id }), err
}

// containers lists and inspects one runtime's containers.
func (rt *runtime) containers(ctx context.Context) ([]Container, error) {
	items, err := rt.list(ctx)
	if err != nil {
		return nil, err
	}
	var all []Container
	for _, s := range items {
		if s.State != "running" && s.State != "paused" {
			all = append(all, Container{
				ID: s.ID, Name: nameOf(s.Names), Image: s.Image, Labels: s.Labels,
				Runtime: rt.socket, NetworkMode: s.HostConfig.NetworkMode,
			})
			continue
		}
		c, err := rt.inspect(ctx, s.ID)
		if errors.Is(err, ErrNotFound) {
			continue // removed since the list was made
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
