package selftest

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weir/api"
)

// expected is an event that an attack has to leave: one of this kind with the
// verdict deny. Empty fields are not compared.
type expected struct {
	kind      string
	transport string
	address   string
	host      string
	reason    string // a part of it
}

// refusal is the event of a connection that was denied.
func refusal(transport string, to netip.Addr) expected {
	return expected{kind: "connect", transport: transport, address: to.String()}
}

func (e expected) String() string {
	return strings.Join(strings.Fields(strings.Join([]string{e.kind, e.transport, e.address, e.host}, " ")), " ")
}

// in finds the event on a page; 0 if it is not there.
func (e expected) in(page api.EventPage) int64 {
	same := func(want, is string) bool { return want == "" || want == is }
	for _, one := range page.Items {
		if string(one.Type) == e.kind && one.Verdict == "deny" && same(e.transport, one.Transport) && same(e.address, one.Address) &&
			same(e.host, one.Host) && strings.Contains(one.Reason, e.reason) {
			return one.ID
		}
	}
	return 0
}

// trail is the record of one container, read on as it grows.
type trail struct {
	client    *api.Client
	container string
	after     string // id of the last event that is not looked at any more
}

// unrecorded is how long an event is waited for: a daemon that records nothing
// at all is to be found out within the time that the whole test has.
const unrecorded = 1500 * time.Millisecond

// skip leaves behind what is recorded by now: it says nothing about what comes.
func (t *trail) skip(ctx context.Context) error {
	for {
		page, err := t.page(ctx)
		if err != nil || len(page.Items) == 0 {
			return err
		}
		t.after = strconv.FormatInt(page.Items[len(page.Items)-1].ID, 10)
	}
}

func (t *trail) page(ctx context.Context) (api.EventPage, error) {
	return t.client.Events(ctx, api.EventQuery{Container: t.container, Cursor: t.after, Limit: 1000})
}

// record looks up what the daemon recorded of an attack that it stopped.
func (t *trail) record(ctx context.Context, want expected) (event int64, detail string, held bool) {
	if want == (expected{}) {
		return 0, "nothing reached the outside; packets of this kind are dropped without an event", true
	}
	for deadline := time.Now().Add(unrecorded); ; {
		page, err := t.page(ctx)
		if err != nil {
			return 0, "the attack was stopped; whether it is on record is not known: " + err.Error(), false
		}
		if id := want.in(page); id > 0 {
			return id, fmt.Sprintf("nothing reached the outside; on record: %s, denied", want), true
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return 0, fmt.Sprintf("the attack was stopped, but is not on record: no event %s, denied", want), false
		}
		<-time.After(20 * time.Millisecond)
	}
}
