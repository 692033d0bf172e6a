// Package api is Weir's HTTP API, on the daemon's unix socket and by loopback
// TCP, and the Go client of it that the command line uses.
//
// It holds no state and decides nothing: routes translate between JSON and
// package session. openapi.json describes all of it and is compared with the
// code by a test (go test ./api -update writes it anew).
//
//	server := &api.Server{Conductor: c, Log: trail, Events: st.Events, Token: token, Logger: logger}
//	err := server.Serve(ctx, socket, tcp)
//
//	a, err := api.NewClient("").Attach(ctx, "web")
//
// Invariants:
//   - Callers on the socket are who the kernel says: root, or a member of the
//     group weir. Callers over TCP show a token, name this very listener in
//     Host, and do not act for another site. Writes have to be JSON.
//   - What a request says that nobody knows is an error, never passed over.
//   - Errors are RFC 9457 problem documents that name what was wrong.
//   - Lists are never null.
//   - An event stream that goes on with Last-Event-ID loses and repeats nothing.
package api
