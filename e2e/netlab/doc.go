// Package netlab is the network of the tests that attach something: a network
// namespace that plays the container, one that plays the world, with a server
// in it, and the host in between, which is a namespace of the test's own.
//
// It is for tests only and knows nothing of Weir; real containers, images and
// the binary are package e2e's.
//
//	func TestMain(m *testing.M) { netlab.Main(m.Run, nil) }
//
//	l := netlab.New(t)
//	// attach l.Ref(), allow netlab.ServerAddr
//	held, works := l.Dial()
//
// # Invariants
//
//   - The machine's own network is not touched: everything is made inside the
//     namespace that Main started the tests in, and ends with it.
//   - Every wait is bounded by Patience, and a test that needs root fails
//     without it; it is never skipped.
package netlab
