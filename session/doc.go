// Package session is the conductor: it keeps what is stored (sessions, rules,
// policies, attachments), what the runtimes say, and what runs for each
// attached container (capture, DNS, proxy) in step.
//
// It decides nothing about connections, which is package rules; it reads no
// packets, which is proxy and dnsmap; and it speaks no HTTP, which is api.
//
//	c, err := session.New(ctx, session.Config{Store: st, Log: trail, ...})
//	go c.Run(ctx, ready)
//	status, created, err := c.Attach(ctx, "web")
//	s, err := c.CreateSession(ctx, session.Spec{Container: "web", Rules: allowed})
//
// A change is stored first, then compiled, then it counts: for new connections
// at once, and live ones are judged again. A method that returns without an
// error has made its change count; one that fails has changed nothing, or says
// what it left.
//
// # Locks
//
// Taken in this order, and each held for as short as its line says:
//
//	attaching   while a capture is installed or removed
//	publishing  while the global layer is indexed
//	mu          while the store writes, and for everything in memory
//	usedMu      for a map access; the only one on the way of a connection
//
// Connections read their container's policy from an atomic pointer.
//
// # Invariants
//
//   - Only the current session counts, for rules and for learning mode. Its
//     rules expire with it, to the instant, whether or not anybody has noticed.
//   - Attachments are stored before anything is installed and forgotten after
//     everything is removed. Without the daemon, containers stay locked in.
//   - Containers that share a namespace are one attachment.
//   - Errors that are the caller's to mend are *Error with a Kind.
package session
