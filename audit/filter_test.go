package audit

import (
	"testing"
	"time"
)

func TestFilterMatch(t *testing.T) {
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	e := Event{ID: 10, Time: at, Type: HTTP, ContainerID: "abc", ContainerName: "web", SessionID: "s1",
		Verdict: "deny", Host: "api.example.com", Address: "2001:db8::A"}
	for _, c := range []struct {
		name string
		f    Filter
		want bool
	}{
		{"zero", Filter{}, true},
		{"container id", Filter{Container: "abc"}, true},
		{"container name", Filter{Container: "web"}, true},
		{"part of a container id", Filter{Container: "ab"}, false},
		{"container name in another case", Filter{Container: "Web"}, false},
		{"verdict", Filter{Verdict: "deny"}, true},
		{"other verdict", Filter{Verdict: "allow"}, false},
		{"type", Filter{Type: HTTP}, true},
		{"other type", Filter{Type: DNS}, false},
		{"host", Filter{Host: "API.example.com"}, true},
		{"address", Filter{Host: "2001:DB8::a"}, true},
		{"parent of the host", Filter{Host: "example.com"}, false},
		{"session", Filter{SessionID: "s1"}, true},
		{"other session", Filter{SessionID: "s"}, false},
		{"since then", Filter{Since: at}, true},
		{"since later", Filter{Since: at.Add(1)}, false},
		{"after it", Filter{Cursor: 10}, false},
		{"after the one before", Filter{Cursor: 9}, true},
		{"newest, before it", Filter{Cursor: 10, Newest: true}, false},
		{"newest, before the one after", Filter{Cursor: 11, Newest: true}, true},
		{"all but one condition", Filter{Container: "web", Verdict: "deny", Type: DNS}, false},
	} {
		if got := c.f.Match(&e); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	// ſ and K fold to s and k in Unicode, and must not here: SQLite would not.
	if (Filter{Host: "kiosk"}).Match(&Event{Host: "\u212aiosk"}) {
		t.Error("letters outside ASCII were folded")
	}
}

func TestFilterPage(t *testing.T) {
	for limit, want := range map[int]int{-1: DefaultLimit, 0: DefaultLimit, 7: 7, MaxLimit + 1: MaxLimit} {
		if got := (Filter{Limit: limit}).Page(); got != want {
			t.Errorf("Page with limit %d = %d, want %d", limit, got, want)
		}
	}
}
