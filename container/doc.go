// Package container finds, inspects and watches containers, and finds the
// program behind a socket.
//
// It speaks to Docker and to Podman's compatible socket, and needs neither for
// namespaces that are given as pid:N or netns:PATH. It decides nothing and
// changes nothing in a namespace: rules belong to package rules, redirection
// to package redirect.
//
//	runtimes := container.Connect()           // Docker's and Podman's usual sockets
//	c, err := runtimes.Find(ctx, "web")       // id, unique prefix, name, pid:N, netns:PATH
//	if err != nil { return err }              // errors.Is(err, container.ErrNotFound) ...
//	ns, err := c.OpenNetNS()                  // that very namespace, or an error
//
// # Identity
//
// A container is its full id together with its start time; a namespace is its
// (device, inode) pair. Names, prefixes and process ids are resolved once, by
// [Runtimes.Find]; what it returns carries the start time of the main process
// in kernel ticks, and [Container.OpenNetNS] and [OpenRoot] compare it after
// opening, so that a reused process id is an error and never another
// container. Containers that share a namespace have equal [Container.NetNSID]s.
//
// # Invariants
//
//   - Every call to a runtime has a deadline (Runtimes.Timeout); its error names
//     the socket and the next step.
//   - A runtime that cannot be asked is an error, never "not found".
//   - [Runtimes.Watch] begins every connection with the full list and repeats it,
//     so that a lost event is repaired; events of one container keep their order.
//   - [Programs.Find] answers only when every holder of the socket runs the same
//     executable and that file is what the container itself has at that path.
//   - [Root] never leaves the container's file system, whatever its symlinks say.
package container
