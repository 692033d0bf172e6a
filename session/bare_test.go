package session

import (
	"testing"
	"time"
	"weir/e2e/netlab"
)

// A name that leads to another namespace than when it was attached does not
// stand for the one that is attached.
func TestANameThatIsUsedAgainIsAnotherNamespace(t *testing.T) {
	l := netlab.New(t)
	d := start(t, t.TempDir(), &netlab.Clock{})
	ctx := t.Context()
	first := d.attach(l)
	d.session(t, "first", l.Ref(), time.Hour)
	// Attached, it lives on without its name, and keeps its number.
	netlab.Run(t, "ip", "netns", "del", l.Box)
	if s, err := d.Attachment(ctx, l.Ref()); err != nil || s.ContainerID != first.ContainerID {
		t.Errorf("a namespace without its name: %+v, %v", s, err)
	}
	netlab.Run(t, "ip", "netns", "add", l.Box)
	if s, err := d.Attachment(ctx, l.Ref()); kind(err) != NotFound {
		t.Errorf("the name of another namespace leads to %+v, %v", s, err)
	}
	s, err := d.CreateSession(ctx, Spec{ID: "second", Container: l.Ref(), TTL: time.Hour})
	if err != nil || s.Container == first.ContainerID {
		t.Errorf("a session for the new namespace is one of %s: %v", s.Container, err)
	}
	second, created, err := d.Attach(ctx, l.Ref())
	if err != nil || !created || second.ContainerID == first.ContainerID || second.Session != "second" {
		t.Errorf("attached: %+v, created %v, %v", second, created, err)
	}
	if err := d.Detach(ctx, l.Ref()); err != nil {
		t.Fatal(err)
	}
	list := d.Attachments()
	if len(list) != 1 || list[0].ContainerID != first.ContainerID || list[0].Session != "first" {
		t.Errorf("after the detach of the second: %+v", list)
	}
	if err := d.Detach(ctx, first.ContainerID); err != nil {
		t.Fatal(err)
	}
	// The kernel may give the numbers of both to somebody else now.
	if list := d.Sessions(); len(list) != 0 {
		t.Errorf("sessions of namespaces that nothing holds: %+v", list)
	}
}
