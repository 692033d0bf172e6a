// Package policytest runs policy tests: files that state a situation and what
// must come of each request, to be kept beside the policies they are about.
//
//	now: 2026-05-01T12:00:00Z
//	sessions:
//	  - {id: s1, container: web, network_rules: [{destination: "*.example.com", ports: "443"}]}
//	cases:
//	  - name: the API is reachable
//	    request: {container: web, host: api.example.com, port: 443}
//	    expect: allow
//
// It decides nothing itself: sessions, layers and requests go through the very
// code that the daemon uses, names through the same table.
//
// A request with host and no address is a connection whose name is proven. A
// host that is an address is a connection to it without a name. With an
// address, the names are those of the dns section that still count, and the
// client claims the host (or sni, when it is given; "" is a hello without one).
// A request without method is about the connection alone: one that would be
// let in to be inspected counts as allowed.
//
// A case's would is what enforcement would have said: in audit mode
// (enforcement: audit) and learning mode (allow_all) it differs from expect.
//
// Invariants:
//   - An unknown key, a bad value or a case that could not be judged is an
//     error of the file, never a passed case.
//   - It needs no daemon, no network and no privileges.
package policytest
