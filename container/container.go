package container

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Errors that [Runtimes.Find] and its kin return wrapped; use errors.Is.
var (
	// ErrNotFound: no runtime knows the reference.
	ErrNotFound = errors.New("container not found")
	// ErrNotRunning: the container exists and has no namespace now.
	ErrNotRunning = errors.New("container is not running")
	// ErrHostNetwork: the network namespace is the host's own.
	ErrHostNetwork = errors.New("uses the host's own network")
	// ErrUnreachable: a container runtime could not be asked.
	ErrUnreachable = errors.New("container runtime not reachable")
	// ErrGone: the process or namespace is no longer the one that was found.
	ErrGone = errors.New("container is gone")
)

// AmbiguousError says that a reference fits several containers.
type AmbiguousError struct {
	Ref        string
	Candidates []Candidate
}

// Candidate is one container that an ambiguous reference fits.
type Candidate struct {
	ID, Name string
	Runtime  string // socket
}

// Error lists every candidate.
func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q fits %d containers:", e.Ref, len(e.Candidates))
	for i, c := range e.Candidates {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %s (%s, at %s)", c.Name, c.ID, c.Runtime)
	}
	b.WriteString("; use one of these ids")
	return b.String()
}

// Container is one container, or one network namespace without a runtime, as
// it was when it was looked at.
type Container struct {
	ID      string // full runtime id, or "netns:DEV-INO" without a runtime
	Name    string // without a leading slash; the reference without a runtime
	Image   string
	Labels  map[string]string
	Runtime string // the runtime's socket; "" without a runtime

	Running   bool
	StartedAt time.Time // zero without a runtime

	// PID is the main process, in the caller's pid namespace; 0 when not
	// running and for netns:PATH. PIDStart is its start time in clock ticks
	// since boot (proc_pid_stat(5), field 22).
	PID      int
	PIDStart uint64

	NetNS   string  // path that opens the namespace while it lives
	NetNSID NetNSID // zero when not running
	// Problem: the container runs, but its process could not be looked at;
	// NetNS and what follows from it are empty.
	Problem error
	// HostNetwork: the namespace is the host's, or the container asks for it.
	HostNetwork bool

	NetworkMode string // as configured: "bridge", "container:ID", a network's name
	Networks    []Network

	CapAdd     []string // as configured, without "CAP_"
	Privileged bool
	HostPID    bool // shares the host's pid namespace
	// NetAdmin and NetRaw: the main process's bounding set has the capability,
	// so a root process of the container can use it.
	NetAdmin, NetRaw bool
	// HostNetAdmin: it has NET_ADMIN in this process's own user namespace, the
	// host's. By the number that its namespace has for the host's it can make
	// interfaces on those of the host (IFLA_LINK_NETNSID, rtnetlink(7)).
	HostNetAdmin bool

	// RuntimeSockets are the paths inside the container at which a container
	// runtime's socket can be reached.
	RuntimeSockets []string
	// HostSockets are other unix sockets of the host mounted into the
	// container, as paths inside it.
	HostSockets []string

	// Members are the containers that pid:N or netns:PATH belongs to.
	// MembersErr says which runtimes could not be asked.
	Members    []Member
	MembersErr error
}

// Member is a runtime's container that a bare process or namespace belongs to.
type Member struct {
	ID, Name string
	// SharesNetNS: its main process lives in that namespace. False: only the
	// process's cgroup is the container's (a namespace nested inside it).
	SharesNetNS bool
}

// Network is one network that a container is connected to.
type Network struct {
	Name, ID string
	Driver   string
	// Bridge is the host's bridge interface; "" when there is none.
	Bridge string
	// UserDefined networks have the runtime's own DNS; the default one does not.
	UserDefined bool
	// Internal networks have no way out.
	Internal bool
	Addrs    []netip.Addr // IPv4 first
	Gateways []netip.Addr
	// Names are what the network's DNS answers for this container, in lower
	// case: its name, aliases and short id.
	Names []string
	// Links are names that only this container has for others on the network:
	// alias to container name, in lower case.
	Links map[string]string
}

// ShortID is the first 12 characters of a runtime's id, as its commands print
// it, or the whole of any other id.
func (c Container) ShortID() string {
	if c.Runtime != "" && len(c.ID) > 12 {
		return c.ID[:12]
	}
	return c.ID
}

// Warnings says, one line each, what about this container weakens a firewall
// around it.
func (c Container) Warnings() []string {
	var w []string
	if c.Privileged {
		w = append(w, "privileged: its root can leave the container altogether")
	}
	if c.NetAdmin {
		w = append(w, "has NET_ADMIN: its root can remove the redirection inside its namespace (the lock on the host's side still holds)")
		if c.HostNetAdmin {
			w = append(w, "has NET_ADMIN and shares the host's user namespace: its root can give itself new interfaces on the host's (macvlan, WireGuard), "+
				"past both locks for the moment until each is seen and removed; drop the capability, or give the container a user namespace of its own")
		}
		for _, n := range c.Networks {
			if n.UserDefined {
				w = append(w, fmt.Sprintf("has NET_ADMIN on network %q with embedded DNS: until a removed redirection is put back, names can be asked past the firewall", n.Name))
				break
			}
		}
	}
	if c.HostPID {
		w = append(w, "shares the host's pid namespace: it sees the host's processes")
	}
	for _, p := range c.RuntimeSockets {
		w = append(w, fmt.Sprintf("a container runtime's socket is mounted at %s: it can start containers outside this firewall", p))
	}
	for _, p := range c.HostSockets {
		w = append(w, fmt.Sprintf("a socket of the host is mounted at %s: whatever listens there can be reached past this firewall", p))
	}
	return w
}

// requireAttachable says why no firewall can be put around c, if so.
func (c Container) requireAttachable() error {
	switch {
	case c.HostNetwork:
		return fmt.Errorf("%s %w: a firewall around it would be one around the host; give the container a network of its own", c.Name, ErrHostNetwork)
	case !c.Running:
		return fmt.Errorf("%s: %w; start it first: %s start %s", c.Name, ErrNotRunning, runtimeCommand(c.Runtime), c.Name)
	case c.Problem != nil:
		return c.Problem
	}
	return nil
}
