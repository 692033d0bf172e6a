// Package proxy is the data path of one container: it accepts the connections
// that the container's namespace redirects to Weir's listener, finds out what
// they are, asks the policy, and passes the bytes or refuses. It relays
// datagrams, too.
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
//	go srv.ServeUDP(ctx, attachment.UDP())
//	...
//	current.Store(changed)
//	srv.Rejudge()
//
// Read conn.go first: it is one connection from top to bottom. association.go is
// the same for UDP.
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
//   - A refusal is a reset, at once; over UDP "port unreachable".
//   - A direction that ended is closed in that direction only; a reset on one
//     side becomes a reset on the other.
//
// # Asking
//
// A connection that nothing but the default refuses is held where a person can
// be asked (Server.Ask), after its first message was heard and before anything
// of it is dialled. One to an address that only stands for a name
// (Server.StandsFor) is judged, and asked about, by that name; when it may go on,
// the name is resolved, its address judged like every other, and dialled. What a
// person allowed for one connection is a rule below all others for it alone:
// each later judgement of it counts that rule in. See ask.go.
//
// # UDP
//
// What a client socket exchanges with one destination is an association. It is
// judged when its first datagram comes, on the address and the names that the
// container resolved to it: nothing in a datagram is looked at. It ends when it
// was idle for Limits.UDPIdle, with one event. A refused one is remembered for
// five seconds, or until the policy changes: its further datagrams are refused
// without an event, and the next event says how many.
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
// # What happens to an inspected connection
//
// A Relay serves it: relay.go is the connection, exchange.go one request and
// its event, judge.go what is asked of the policy. http1.go and forward.go
// speak HTTP/1, http2.go HTTP/2, websocket.go what an upgrade leads to; head.go
// and body.go read HTTP/1 by the letter.
//
//   - What leaves is written anew from what was judged: the canonical target,
//     the judged name as authority, one framing of the body. A request that two
//     servers could read in two ways is answered 400, and its connection
//     closed: bare LF, obs-fold, NUL, a length that is no plain number or comes
//     twice or beside Transfer-Encoding, a malformed chunk, a field like
//     Content_Length.
//   - The authority of every request is the judged name, with the connection's
//     port or none; anything else is answered 421. CONNECT is refused.
//   - A field that overrides the method (X-HTTP-Method-Override,
//     X-HTTP-Method, X-Method-Override) asks for a second judgement, by the
//     method it names; both have to allow. Form fields such as _method are not
//     looked at.
//   - Bodies stream, whatever their size, unless a rule has to know the GraphQL
//     operations in them; then they are read up to the endpoint's limit and
//     written anew. Signatures over such a body do not survive that.
//   - The client's side speaks what the server's side does (ALPN). A WebSocket
//     is opened over HTTP/1.1 and without compression; its pings are answered
//     on each side.
//   - The server proves the judged name before it gets a byte of a request. If
//     it cannot, the answer is 502 and the event a denial; a server that is
//     merely out of reach is 502 too, and no denial.
//   - A refusal is JSON, on a GraphQL endpoint a GraphQL error, and to gRPC a
//     response that consists of a trailer, with HTTP status 200: only there do
//     gRPC clients look for a message.
//   - Every request is one event, and every GraphQL operation on a WebSocket;
//     other messages on it have one when they are denied, or would have been.
//     Events hold neither queries of URLs, variables, documents nor fields.
//
// # What is refused as broken
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
