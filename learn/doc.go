// Package learn turns what a container was seen doing into a policy document
// that admits just that, and says what another policy would have made of it.
// It is pure: events in, text out; no I/O, no clock.
//
//	var log learn.Log
//	for _, e := range events {
//		log.Add(&e)
//	}
//	learned, err := learn.Learn(log.Observations(), learn.Options{Container: "web"})
//	os.Stdout.Write(learned.Text) // version: 1 ...
//
//	report := learn.Replay(policy, log.Observations(), container, now)
//	for _, c := range report.Denied { … } // what worked and would not any more
//
// # What becomes what
//
//	connection to a name      allow: NAME, its ports, its programs
//	connection to an address  allow: ADDRESS, its ports, its programs
//	lookup without either     allow: NAME, ports: "53": Weir answers DNS
//	                          itself, so that this opens the name and nothing else
//	request                   an endpoint for its host and port: protocol rest
//	                          with method and path, graphql with type, name and
//	                          root fields, websocket with path
//
// Programs are listed where the program of every observation is known. Parts
// of a path that are ids become "*": UUIDs, ULIDs, hashes, long numbers and
// tokens always, short numbers and hashes where they were seen to vary.
// Queries are not recorded, and so they are not restricted.
//
// Only what was allowed is learned from: what the address guard or a rule
// refused is never opened.
//
// # Invariants
//
//   - The text of a policy parses without errors, and it admits every
//     observation that is not listed in Left: it is tried before it is returned.
//   - The same observations give the same text.
//   - A container cannot write into the document anything but what a rule for
//     what it did needs: every value is quoted where YAML asks for it, and
//     comments hold counts, times and quoted text.
package learn
