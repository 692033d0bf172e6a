// Package web is the dashboard: pages, rendered on the server, that show what
// the API gives and change what the API changes. They are served beside the
// API on the same TCP listener, to browsers that have logged in with the token.
//
// What it does not do: decide anything, or reach the conductor past the API.
// Every page and every button is a call of the API's own handlers, in this
// process; the audit trail is read from its log. There is nothing to build:
// templates, one style sheet and the scripts under static/ are embedded as
// they are. What is in static/vendor comes from others; its README says what.
//
// Example:
//
//	server := &api.Server{...}
//	server.Dashboard = &web.Server{API: server.Client(), Log: log, Events: store.Events, Token: token, Activity: activity}
//	server.Serve(ctx, socket, tcp)
//
// Invariants:
//
//   - Nothing but the login page and its style is shown to who has not logged
//     in. The cookie is a random value that is known in memory only: the token
//     is never in one, and a restart logs everybody out.
//   - Host and Origin are checked before a request gets here; one that writes
//     has to name its origin.
//   - No page has script or style inside; the Content-Security-Policy refuses
//     both. What a container chose, names and paths, is text.
//   - A viewer holds nothing up: the audit log keeps its events for all viewers
//     together, a stream sends at most maxRows rows at a time and skips what is
//     too much, and one that does not read is dropped after sendPatience.
package web
