// Package dnsmap is the DNS shim of a container and the table of the names
// that it learns.
//
// A [Server] answers every DNS query of one container, to whatever server it
// was sent. A name that the policy allows is asked for through an [Upstream],
// which all containers share; any other gets NXDOMAIN with Extended DNS Error
// 15 and goes nowhere. What the container was answered is noted in its own
// [Table], which later gives the addresses it connects to their names. The
// package decides nothing itself about names: that is rules.Policy.Decide at
// stage Resolve. It installs no redirection and opens no listeners.
//
//	upstream := &dnsmap.Upstream{}
//	table := &dnsmap.Table{}
//	server := &dnsmap.Server{Container: c, Policy: decide, Upstream: upstream, Table: table, Record: log.Record}
//	err := server.Serve(ctx, packetConn, listener)
//	...
//	names := table.Names(addr, time.Now())
//
// # What a name is
//
// The name asked for, never the target of a CNAME. Of an upstream answer only
// the CNAME chain that starts at that name, at most 16 long, and the records
// of the type asked for at its end are kept, at most 64; a longer chain or a
// loop is a failure. The authority section is dropped but for the SOA of a
// negative answer, the additional section always: a server cannot slip in
// addresses of other names. What was cut off is not sent to the client either,
// so it knows no address that the table does not know.
//
// Address records with a loopback or unspecified address are taken out, except
// for localhost itself: traffic to the container's own loopback is not
// captured, and no outside server gets to direct a client there. Any other
// address is judged when it is dialled.
//
// HTTPS and SVCB records lose their ECH configuration and their address hints;
// the client then asks for the addresses, and the table learns them. A record
// that calls one of these mandatory is dropped. Signatures (RRSIG) are not
// asked for, as they would not fit a changed answer: validation is left to the
// upstream server.
//
// # How long it counts
//
// TTLs are clamped in three places. The table keeps an answer for its TTL (at
// least a second, at most a day) plus a grace period of 60 s, or for as long
// as a flow holds it. The cache keeps it for at most an hour. The client is
// told at most 300 s, so that it asks again, and is judged again, soon after a
// policy changed or a table was lost. Time is measured on the monotonic clock:
// setting the wall clock neither ends nor prolongs anything.
//
// # What is answered here
//
// localhost and everything below it, names of containers on the same networks
// and their reverse names: these never go upstream, so they resolve without an
// allow rule, but not against a deny rule. .onion and .invalid are refused.
// So are classes other than IN, zone transfers and other types that are not
// for lookups, and names with bytes that could be taken for something else (a
// dot or a backslash inside a label, spaces, control and non-ASCII bytes).
//
// # Placeholders
//
// A name that the policy refuses, but a person could allow, is answered with an
// address out of 240.0.0.0/4 that stands for it in this container: see
// [Placeholders]. Nothing goes upstream. Once the name is allowed, [Server.Lookup]
// resolves it for what connected there. Questions of other types than A have an
// empty answer meanwhile.
//
// # Invariants
//
//   - A blocked name causes no upstream query, in no mode, of no type.
//   - Every decision is one event, recorded before the answer is sent. A DNS
//     event has the query's type in Method and 53 in Port.
//   - An address is in a container's table only because this container was
//     sent it in answer to its own question, and under the name it asked for, or
//     connected to the name's placeholder once that was allowed.
//   - Upstream sees a name in lower case, a type, and an OPT record of ours:
//     no option, flag or spelling of the client's.
//   - Everything is bounded: see [Limits], [Table] and [Upstream].
package dnsmap
