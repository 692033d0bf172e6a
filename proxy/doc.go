// Package proxy is the data path of one container: it accepts the connections
// that the container's namespace redirects to Weir's listener, finds out what
// they are, asks the policy, and passes the bytes or refuses.
//
// It decides nothing itself: every verdict comes from (*rules.Policy).Decide.
// It resolves nothing, opens no namespaces and knows no database: names,
// programs, dialling and recording are functions that the Server is given.
//
//	srv := &proxy.Server{
//		Container:   rules.Container{ID: id, Name: "web"},
//		Policy:      current.Load,
//		Names:       table.Names,
//		OriginalDst: redirect.OriginalDst,
//		Record:      log.Record,
//	}
//	go srv.Serve(ctx, attachment.TCP())
//	...
//	current.Store(changed)
//	srv.Rejudge()
//
// Read conn.go first: it is one connection from top to bottom.
//
// # Invariants
//
//   - Nothing of a client reaches the outside before a decision allowed it on
//     the facts known then. A client that stays silent may be connected on the
//     strength of "it said nothing", but its first bytes are looked at and
//     judged, whenever they come, before any of them is passed on.
//   - The address that was judged is the address that is dialled, and never a
//     loopback, unspecified or multicast one.
//   - Every connection yields exactly one audit event when it ends, whatever
//     ended it: refusal, failed dial, normal close, a changed policy, Kill, a
//     panic. Connections over a limit are the exception: they are counted, and
//     one event a second and limit says how many were refused. Live
//     connections are seen through Flows.
//   - A connection keeps its place under Limits.Connections until its event is
//     recorded, so that a recorder that cannot keep up slows the container
//     down and loses nothing.
//   - A refusal is a reset, at once.
//   - A direction that ended is closed in that direction only; a reset on one
//     side becomes a reset on the other.
//
// # What is read of a connection that is not inspected
//
// One ClientHello or the head of one HTTP request, at most Limits.PeekBytes,
// and only where the policy needs a name to be confirmed. What follows is
// passed on unread: later requests on a connection that is kept alive are not
// looked at, so a server that is itself an open proxy is a way out for
// whoever may speak clear HTTP to it. An inspected endpoint judges every
// request.
//
// Refused as broken, because the name that counts cannot be confirmed:
// malformed and over-long hellos and heads, hellos with the
// encrypted_client_hello extension (RFC 9849; the GREASE form, which browsers
// send unasked, cannot be told from the real one), repeated Host fields,
// HTTP/0.9, clear-text HTTP/2, with prior knowledge or by upgrade, and
// CONNECT or absolute-form requests for another authority than the
// connection's own. Rules for addresses do not need a name and are not
// affected.
package proxy
