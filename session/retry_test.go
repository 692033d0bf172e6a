package session

import (
	"testing"
	"time"
	"weir/e2e/netlab"
)

// What could not be attached when it started is attached later; what was to be
// detached is detached; and what failed at nothing is left alone.
func TestWhatFailedIsTriedAgain(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	s := d.attach(l)
	d.session(t, "s", l.Ref(), time.Hour)
	lose := func() *attachment {
		t.Helper()
		a, err := d.attachment(ctx, s.ContainerID)
		if err != nil {
			t.Fatal(err)
		}
		d.attaching.Lock()
		defer d.attaching.Unlock()
		d.dropForTakeover(a) // the kernel's part is left
		return a
	}
	waiting := func() bool {
		t.Helper()
		list := d.Attachments()
		return len(list) == 1 && list[0].Waiting
	}

	lose()
	d.retry(ctx)
	if !waiting() {
		t.Error("one that did not fail was tried again")
	}
	d.fail(s.ContainerID, true)
	d.retry(ctx)
	if list := d.Attachments(); len(list) != 1 || list[0].Waiting || list[0].Session != "s" {
		t.Errorf("not attached again: %+v", list)
	}

	a := lose()
	record, err := d.store.Attachments(ctx)
	if err != nil || len(record) != 1 {
		t.Fatal(record, err)
	}
	record[0].Desired = "detached"
	d.leaving(a, record[0])
	d.retry(ctx)
	if list := d.Attachments(); len(list) != 0 {
		t.Errorf("not detached: %+v", list)
	}
	if _, works := l.Dial(); !works {
		t.Error("the container is still locked in")
	}
}
