// Package selftest attacks a live daemon from a throw-away network namespace,
// the way root in a container would, and looks whether anything reaches a
// second one that plays the outside.
//
//	report, err := selftest.Run(ctx, api.NewClient(""))
//	for _, r := range report { fmt.Println(r.Attack, r.Held, r.Detail) }
//
// It makes two namespaces and a bridge between them, attaches one to the
// daemon as it would a container, and removes everything again. All traffic
// stays on the bridge. It needs root.
//
// Invariants:
//   - An attack counts as held only when the canary saw nothing of it and the
//     canary was seen to see what is allowed, and when it is on record: each
//     has an event of its own, but those whose packets the kernel drops without
//     asking anybody, which the results say.
//   - Nothing is left behind, also when it is interrupted.
package selftest
