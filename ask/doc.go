// Package ask keeps the questions that are put to people about held flows: who
// waits for which answer, for how long, and how many may.
//
// It decides nothing by itself, makes no rules and knows no connections. Whoever
// holds a flow asks, and waits for one Reply; whoever answers claims the
// question first, so that two people cannot answer it at once.
//
//	book := &ask.Book{Tell: record}
//	w, err := book.Ask(ask.Question{Container: c, Host: "api.example", Port: 443, ...})
//	defer w.Leave()
//	reply := <-w.Reply
//
//	q, err := book.Claim(id)
//	...                                 // make the rule
//	book.Answer(id, ask.Reply{Allow: true, Reason: "allowed once by root"})
//
// # Invariants
//
//   - Whoever waits gets exactly one Reply, at the latest when the question
//     expires, unless it leaves before.
//   - Flows that want the same, of the same container and program, share one
//     question, and its time.
//   - What was denied, or not answered in time, is not asked again for a while.
//   - Everything is bounded; see Limits. What does not fit is refused at once,
//     with an error that says what is full.
package ask
