package selftest

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
)

// Without a firewall every attack gets somewhere: else its silence behind one
// would mean nothing.
func TestAttacksWorkWhereNothingStopsThem(t *testing.T) {
	l, err := newLab()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	aim := target{lab: l, canary: address(l.run, 3), canary6: address6(l.run, 3), host: address(l.run, 1), open: port}
	inOutside := func(f func() error) error { return onThread(l.outsideNS, f) }
	onHost := func(f func() error) error { return onThread(netns.None(), f) }
	for _, at := range []netip.Addr{aim.canary, aim.canary6} {
		if err := l.serve(inOutside, netip.AddrPortFrom(at, port)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.serve(onHost, netip.AddrPortFrom(aim.host, port)); err != nil {
		t.Fatal(err)
	}
	watch, err := l.watch()
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range attacks(aim) {
		if strings.Contains(one.name, "metadata") {
			continue // nobody is there
		}
		watch.take(t.Context())
		var got bool
		err := onThread(l.insideNS, func() (err error) { got, err = one.try(); return })
		if packets := watch.take(t.Context()); err != nil || !got && packets == 0 {
			t.Errorf("%s: answered %v, %d packets, %v", one.name, got, packets, err)
		}
	}
}
