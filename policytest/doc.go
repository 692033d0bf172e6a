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
// # Requests
//
// A request with host and no address is a connection whose name is proven. A
// host that is an address is a connection to it without a name. With an
// address, the names are those of the dns section that still count, and the
// client claims the host (or sni, when it is given; "" is a hello without one).
// The port is 443 and the transport tcp when absent; on port 80 the client
// speaks HTTP in clear, elsewhere TLS. A binary that is absent could not be
// found: rules that list binaries do not match.
//
// A request without method is about the connection alone: one that would be
// let in to be inspected counts as allowed. With method, target, headers and
// body, it is a request as the relay sees it: a Host that is not the
// connection's is refused, and a header that overrides the method is judged as
// well. raw is the same as bytes, one request or several behind one another,
// of which all have to be allowed. raw without any CR, such as a block of YAML
// (raw: |), has its lines ended with CR LF before it is read.
//
// # Sessions, rules, time
//
// Sessions stand in the order of creation. One without created_at is there
// from the beginning, one without expires_at to the end; one with the id of
// a live one replaces it and keeps its place. A lookup without at happened at
// now. A case's rule is the rule's place in its layer, from 0: rules by
// themselves first, then those of the policy document in the order of its text.
// A case's layer may be guard, too: the address guard.
//
// A case's would is what enforcement would have said: in audit mode
// (enforcement: audit) and learning mode (allow_all) it differs from expect.
//
// Invariants:
//   - An unknown key, a key that is there twice, a bad value or a case that
//     could not be judged is an error of the file, never a passed case.
//   - It needs no daemon, no network and no privileges.
package policytest
