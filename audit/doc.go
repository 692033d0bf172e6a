// Package audit is the record of what happened: one [Event] for every decision
// and for everything else a person would want to look back at.
//
// A [Log] takes events from the data path, gives them their ids, has them
// stored in batches, and lets any number of viewers follow along:
//
//	l := audit.NewLog(audit.Config{Append: st.AppendEvents, Events: st.Events, Last: last})
//	go l.Serve()
//	id := l.Record(audit.Event{Type: audit.Connect, Verdict: "deny", Reason: "no rule matched"})
//	sub := l.Subscribe(audit.Filter{Cursor: l.Last(), Verdict: "deny"})
//	events, err := sub.Next(ctx)
//	...
//	err = l.Shutdown(ctx)
//
// An event can be rendered as JSON ([NewEncoder]), as one line for a terminal
// ([Line]) and in the Open Cybersecurity Schema Framework ([OCSF]).
//
// The package does not store anything itself and knows no database: storing
// and reading back are functions that it is given.
//
// Invariants:
//   - Ids grow strictly, over the life of an installation and in the order in
//     which events are stored, so that "everything after id N" never misses one.
//   - No event is dropped to make room: when the queue is full, Record waits.
//   - A viewer sees only what is stored, each event once, in order. A slow
//     viewer costs the data path nothing: nothing is kept for it.
//   - No control character of an event reaches a terminal through Line or
//     NewEncoder.
package audit
