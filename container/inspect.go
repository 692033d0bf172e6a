package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// networkFacts is what does not change about a network while it exists.
type networkFacts struct {
	driver, bridge string
	internal       bool
}

// maxNetworkFacts bounds what is remembered of networks, many of them long gone.
const maxNetworkFacts = 1024

// list asks for the short form of all containers, stopped ones too.
func (rt *runtime) list(ctx context.Context) ([]container.Summary, error) {
	res, err := call(ctx, rt, func(ctx context.Context, cli *client.Client) (client.ContainerListResult, error) {
		return cli.ContainerList(ctx, client.ContainerListOptions{All: true})
	})
	return res.Items, err
}

func (rt *runtime) raw(ctx context.Context, id string) (container.InspectResponse, error) {
	res, err := call(ctx, rt, func(ctx context.Context, cli *client.Client) (client.ContainerInspectResult, error) {
		return cli.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	})
	if err == nil && (res.Container.State == nil || res.Container.Config == nil || res.Container.HostConfig == nil || res.Container.NetworkSettings == nil) {
		return container.InspectResponse{}, &UnreachableError{Socket: rt.socket, Timeout: rt.owner.timeout(), Err: fmt.Errorf("incomplete answer about %s", id)}
	}
	return res.Container, err
}

// inspect reads everything about one container. Its namespace is read from
// /proc between two equal answers of the runtime, so that the process id
// cannot have been another process's meanwhile; where that fails, Problem
// says why.
func (rt *runtime) inspect(ctx context.Context, id string) (Container, error) {
	in, err := rt.raw(ctx, id)
	if err != nil {
		return Container{}, err
	}
	var c Container
	for range 3 {
		if c, err = rt.convert(ctx, in); err != nil || !c.Running {
			return c, err
		}
		err = c.readProcess()
		again, errAgain := rt.raw(ctx, id)
		if errAgain != nil {
			return Container{}, errAgain
		}
		if again.State.Pid == in.State.Pid && again.State.StartedAt == in.State.StartedAt && again.State.Running {
			if err != nil {
				c.Problem = fmt.Errorf("main process %d of %s, as told by %s: %w", c.PID, c.Name, rt.socket, err)
			}
			return c, nil
		}
		in = again
	}
	c.Problem = fmt.Errorf("%s keeps restarting; see \"%s logs %s\": %w", c.Name, runtimeCommand(rt.socket), c.Name, ErrNotRunning)
	return c, nil
}

// readProcess fills what /proc knows of the main process.
func (c *Container) readProcess() error {
	id, start, err := processNetNS(c.PID)
	if err != nil {
		return err
	}
	// A runtime in another pid namespace (or on another machine) speaks of
	// other processes: then the cgroup names another container.
	ids, err := cgroupIDs(c.PID)
	if err != nil {
		return err
	}
	if len(ids) > 0 && !slices.Contains(ids, c.ID) {
		return errors.New("that process is not this container's; is the runtime in another pid namespace?")
	}
	host, err := isHostNetNS(id)
	if err != nil {
		return err
	}
	if err := c.readCapabilities(); err != nil {
		return err
	}
	c.NetNSID, c.PIDStart = id, start
	c.NetNS = procPath(c.PID, "ns/net")
	c.HostNetwork = c.HostNetwork || host
	return nil
}

// convert is what the runtime's answer says, without /proc.
func (rt *runtime) convert(ctx context.Context, in container.InspectResponse) (Container, error) {
	c := Container{
		ID:          in.ID,
		Name:        strings.TrimPrefix(in.Name, "/"),
		Image:       in.Config.Image,
		Labels:      in.Config.Labels,
		Runtime:     rt.socket,
		Running:     in.State.Running && in.State.Pid > 0,
		NetworkMode: string(in.HostConfig.NetworkMode),
		HostNetwork: in.HostConfig.NetworkMode == network.NetworkHost,
		Privileged:  in.HostConfig.Privileged,
		HostPID:     in.HostConfig.PidMode.IsHost(),
	}
	if t, err := time.Parse(time.RFC3339Nano, in.State.StartedAt); err == nil && t.Year() > 1 {
		c.StartedAt = t.UTC()
	}
	if c.Running {
		c.PID = in.State.Pid
	}
	for _, name := range in.HostConfig.CapAdd {
		c.CapAdd = append(c.CapAdd, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	}
	for _, m := range in.Mounts {
		rt.mount(&c, m.Source, m.Destination)
	}
	for _, name := range slices.Sorted(maps.Keys(in.NetworkSettings.Networks)) {
		ep := in.NetworkSettings.Networks[name]
		if ep == nil || ep.NetworkID == "" {
			continue // configured, not connected
		}
		n, err := rt.network(ctx, c, name, ep)
		if err != nil {
			return Container{}, err
		}
		c.Networks = append(c.Networks, n)
	}
	return c, nil
}

func (rt *runtime) network(ctx context.Context, c Container, name string, ep *network.EndpointSettings) (Network, error) {
	facts, err := rt.networkFacts(ctx, name, ep.NetworkID)
	if err != nil {
		return Network{}, err
	}
	n := Network{
		Name: name, ID: ep.NetworkID,
		Driver: facts.driver, Bridge: facts.bridge, Internal: facts.internal,
		UserDefined: name != network.NetworkBridge && name != network.NetworkHost && name != network.NetworkNone &&
			(name != "podman" || runtimeCommand(rt.socket) != "podman"),
	}
	for _, a := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
		if a.IsValid() {
			n.Addrs = append(n.Addrs, a.Unmap())
		}
	}
	for _, a := range []netip.Addr{ep.Gateway, ep.IPv6Gateway} {
		if a.IsValid() {
			n.Gateways = append(n.Gateways, a.Unmap())
		}
	}
	for _, s := range slices.Concat([]string{c.Name, c.ShortID()}, ep.Aliases, ep.DNSNames) {
		if s = strings.ToLower(strings.TrimSuffix(s, ".")); s != "" && !slices.Contains(n.Names, s) {
			n.Names = append(n.Names, s)
		}
	}
	for _, link := range ep.Links {
		target, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = target
		}
		if n.Links == nil {
			n.Links = map[string]string{}
		}
		n.Links[strings.ToLower(filepath.Base(alias))] = strings.ToLower(strings.TrimPrefix(target, "/"))
	}
	return n, nil
}

// networkFacts asks once per network.
func (rt *runtime) networkFacts(ctx context.Context, name, id string) (networkFacts, error) {
	rt.mu.Lock()
	facts, ok := rt.networks[id]
	rt.mu.Unlock()
	if ok {
		return facts, nil
	}
	res, err := call(ctx, rt, func(ctx context.Context, cli *client.Client) (client.NetworkInspectResult, error) {
		return cli.NetworkInspect(ctx, id, client.NetworkInspectOptions{})
	})
	switch {
	case errors.Is(err, ErrNotFound):
		return networkFacts{}, nil // removed meanwhile: nothing to know about it
	case err != nil:
		return networkFacts{}, fmt.Errorf("inspect network %q: %w", name, err)
	}
	facts = networkFacts{driver: res.Network.Driver, internal: res.Network.Internal}
	if facts.driver == network.NetworkBridge {
		facts.bridge = bridgeOf(res.Network.Network)
	}
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.networks == nil || len(rt.networks) >= maxNetworkFacts {
		rt.networks = map[string]networkFacts{}
	}
	rt.networks[id] = facts
	return facts, nil
}

// bridgeOf is the interface behind a bridge network, if this host has it:
// Docker names it in the options or after the network's id.
func bridgeOf(n network.Network) string {
	names := []string{n.Options["com.docker.network.bridge.name"]}
	if len(n.ID) >= 12 {
		names = append(names, "br-"+n.ID[:12])
	}
	for _, name := range names {
		if name == "" || strings.ContainsRune(name, '/') {
			continue
		}
		if _, err := os.Stat("/sys/class/net/" + name + "/bridge"); err == nil {
			return name
		}
	}
	return ""
}

// mount notes the host's sockets that a mount brings into the container.
func (rt *runtime) mount(c *Container, source, destination string) {
	if source == "" {
		return
	}
	info, err := os.Stat(source)
	if err != nil {
		return // gone or not on this host: nothing to reach through it
	}
	known := append(DefaultSockets(), "/run/containerd/containerd.sock", "/run/crio/crio.sock")
	for _, other := range rt.owner.all {
		known = append(known, other.socket)
	}
	if info.Mode().Type() == fs.ModeSocket {
		for _, k := range known {
			if ki, err := os.Stat(k); err == nil && os.SameFile(ki, info) {
				c.RuntimeSockets = append(c.RuntimeSockets, destination)
				return
			}
		}
		if base := filepath.Base(source); base == "docker.sock" || base == "podman.sock" {
			c.RuntimeSockets = append(c.RuntimeSockets, destination)
			return
		}
		c.HostSockets = append(c.HostSockets, destination)
		return
	}
	if !info.IsDir() {
		return
	}
	// A directory: is a known socket below it?
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return
	}
	for _, k := range known {
		sock, err := filepath.EvalSymlinks(k)
		if err != nil {
			continue
		}
		if rel, err := filepath.Rel(real, sock); err == nil && filepath.IsLocal(rel) {
			inside := filepath.Join(destination, rel)
			if !slices.Contains(c.RuntimeSockets, inside) {
				c.RuntimeSockets = append(c.RuntimeSockets, inside)
			}
		}
	}
}

// isGone reports errors of reading a process that has ended.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, ErrGone)
}
