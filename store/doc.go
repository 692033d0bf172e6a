// Package store is Weir's memory: sessions and their rules, global rules and
// policy documents, attachments, the names that containers learned, and the
// audit trail, in one SQLite file. It is the only package that speaks SQL.
//
// It decides nothing and is never on the path of a connection: policies are
// compiled from what it returns and kept in memory by others. It does not
// parse policy documents; it keeps their text.
//
//	st, err := store.Open(ctx, "/var/lib/weir/weir.db")
//	...
//	defer st.Close()
//	s, err := st.PutSession(ctx, store.Session{SessionState: state}, now)
//
// Times are kept in microseconds and returned in UTC; what Put and Add return
// is what a later read returns.
//
// Durability: the file is in WAL mode. Whatever a method has returned from
// without an error survives a kill of the process. Sessions, rules, policies
// and attachments are also synced to disk before the method returns and
// survive a loss of power; after a loss of power the last events may be
// missing (never in the middle), because syncing every batch would make
// recording, and with it every flow, wait for the disk.
//
// Invariants:
//   - One process at a time: a lock file beside the database, held while open.
//   - The file is readable by its owner only.
//   - Sequence numbers of sessions and rule ids are never given out twice.
//   - A session that ended, expired (Sweep) or was deleted has left no rule and
//     no policy text behind, in the same transaction.
//   - All methods are safe for concurrent use. Writes take turns; reads do not
//     wait for them and see one moment each.
//   - Errors name the file and, where there is one, the next thing to do.
package store
