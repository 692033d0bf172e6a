package web

import (
	"testing"
	"time"

	"weir/audit"
)

func TestActivityRemembersAMinute(t *testing.T) {
	var a Activity
	start := time.Unix(1_800_000_000, 0)
	event := func(after time.Duration, kind audit.Type, verdict string) audit.Event {
		return audit.Event{Time: start.Add(after), Type: kind, Verdict: verdict}
	}
	a.Count([]audit.Event{event(0, audit.Connect, "allow"), event(500*time.Millisecond, audit.DNS, "deny"), event(time.Second, audit.Connect, "deny"), event(time.Second, audit.Lifecycle, "")})
	list := a.last(start.Add(2 * time.Second))
	if got := list[window-2]; len(list) != window || got.allowed != 1 || got.denied != 1 || got.flows != 1 {
		t.Errorf("%+v", list)
	}
	if got := list[window-1]; got.allowed != 0 || got.denied != 1 || got.flows != 1 {
		t.Errorf("%+v", got)
	}
	// The second that is not over is not shown.
	if got := a.last(start.Add(time.Second))[window-1]; got.denied != 1 || got.at != start.Unix() {
		t.Errorf("%+v", got)
	}
	// A minute later it is forgotten; what comes late is not counted as new.
	a.Count([]audit.Event{event(61*time.Second, audit.Connect, "allow"), event(0, audit.Connect, "allow")})
	sum := 0
	for _, s := range a.last(start.Add(62 * time.Second)) {
		sum += s.allowed + s.denied
	}
	if got := a.last(start.Add(62 * time.Second))[window-1]; got.allowed != 1 || sum != 1 {
		t.Errorf("%+v, %d in all", got, sum)
	}
}

func TestPlotFitsItsFrame(t *testing.T) {
	seconds := make([]second, window)
	seconds[3] = second{allowed: 1, denied: 5000}
	seconds[7] = second{allowed: 900}
	p := newPlot(seconds)
	if p.Most != 5001 || p.Width != window*columnWidth || len(p.Bars) != 2 {
		t.Fatalf("%+v", p)
	}
	for _, b := range p.Bars {
		if b.DeniedY+b.Denied != plotHeight || b.AllowedY < 0 || b.X+columnWidth > p.Width || b.AllowedCount > 0 && b.Allowed == 0 {
			t.Errorf("%+v", b)
		}
	}
}

func TestSpansAndSizes(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0 s", -time.Hour: "0 s", 59 * time.Second: "59 s", 90 * time.Second: "1 min", 3 * time.Hour: "3 h", 90 * time.Minute: "1 h 30 min", 72 * time.Hour: "3 days"} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 15_300: "15 kB", 999_999: "1.0 MB", 7_250_000_000: "7.2 GB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
