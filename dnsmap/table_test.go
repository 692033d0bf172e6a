package dnsmap

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func v4(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}) }

// TestTableAgainstModel compares the table with the plainest thing that says
// the same.
func TestTableAgainstModel(t *testing.T) {
	type pair struct {
		name string
		addr netip.Addr
	}
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		table := &Table{Now: c.Now}
		until := map[pair]time.Time{}
		held := map[pair]int{}
		var releases []func()
		var releasing []pair
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			p := pair{fmt.Sprintf("n%d.test", rapid.IntRange(0, 4).Draw(t, "name")), v4(rapid.IntRange(0, 4).Draw(t, "addr"))}
			switch rapid.SampledFrom([]string{"learn", "hold", "release", "wait"}).Draw(t, "op") {
			case "learn":
				ttl := time.Duration(rapid.SampledFrom([]int{0, 1, 30, 300, 1 << 31}).Draw(t, "ttl")) * time.Second
				table.Learn(p.name, p.addr, ttl)
				end := c.Now().Add(min(max(ttl, time.Second), 24*time.Hour) + time.Minute)
				if !until[p].After(c.Now()) && held[p] == 0 || end.After(until[p]) {
					until[p] = end
				}
			case "hold":
				release, ok := table.Hold(p.name, p.addr)
				live := until[p].After(c.Now()) || held[p] > 0
				if live && !ok || ok && until[p].IsZero() {
					t.Fatalf("Hold(%v) = %v", p, ok)
				}
				if ok {
					held[p]++
					releases, releasing = append(releases, release), append(releasing, p)
				}
			case "release":
				if len(releases) == 0 {
					continue
				}
				releases[0]()
				releases[0]() // again: nothing
				held[releasing[0]]--
				releases, releasing = releases[1:], releasing[1:]
			case "wait":
				c.advance(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
			}
			for i := range 5 {
				var want []string
				for j := range 5 {
					p := pair{fmt.Sprintf("n%d.test", j), v4(i)}
					if held[p] > 0 || until[p].After(c.Now()) {
						want = append(want, p.name)
					}
				}
				got := slices.Sorted(slices.Values(table.Names(v4(i), c.Now())))
				if !slices.Equal(got, want) {
					t.Fatalf("Names(%s) = %v, want %v", v4(i), got, want)
				}
			}
		}
	})
}

func TestTableIsBounded(t *testing.T) {
	c := newClock()
	table := &Table{Now: c.Now, MaxEntries: 100, MaxPerName: 10, MaxPerAddr: 5}
	release, ok := table.Hold("none.test", v4(1))
	if release(); ok {
		t.Error("held an entry that is not there")
	}
	for i := range 4000 {
		table.Learn("many.test", v4(i), time.Hour)
	}
	if n := len(table.Entries()); n != 10 {
		t.Errorf("%d addresses of one name", n)
	}
	if table.Names(v4(3999), c.Now()) == nil || table.Names(v4(0), c.Now()) != nil {
		t.Error("the latest addresses do not count, or the first still do")
	}
	for i := range 4000 {
		table.Learn(fmt.Sprintf("n%d.test", i), v4(0), time.Hour)
	}
	if n := len(table.Names(v4(0), c.Now())); n != 5 {
		t.Errorf("%d names of one address", n)
	}
	for i := range 4000 {
		table.Learn(fmt.Sprintf("n%d.test", i), v4(i), time.Hour)
	}
	if n := len(table.Entries()); n != 100 || table.count != 100 || len(table.expiry) != 100 || table.ages.Len() != 100 {
		t.Errorf("%d entries", n)
	}
}

func TestTableEvictsExpiredThenOldestNeverHeld(t *testing.T) {
	c := newClock()
	table := &Table{Now: c.Now, MaxEntries: 3}
	table.Learn("held.test", v4(1), 0)
	release, ok := table.Hold("held.test", v4(1))
	if !ok {
		t.Fatal("not held")
	}
	table.Learn("long.test", v4(2), time.Hour)
	table.Learn("short.test", v4(3), time.Second)
	c.advance(2 * time.Minute)
	table.Learn("a.test", v4(4), time.Hour) // takes the place of short.test
	if table.Names(v4(1), c.Now()) == nil || table.Names(v4(2), c.Now()) == nil || table.Names(v4(3), c.Now()) != nil {
		t.Error("not the expired entry was replaced")
	}
	table.Learn("b.test", v4(5), time.Hour) // takes the place of long.test
	if table.Names(v4(1), c.Now()) == nil || table.Names(v4(2), c.Now()) != nil || table.Names(v4(4), c.Now()) == nil {
		t.Error("not the oldest entry was replaced")
	}
	release()
	if got := table.Names(v4(1), c.Now()); got != nil {
		t.Errorf("released after its time: %v", got)
	}
}

func TestTableFullOfHeldEntriesLearnsNothing(t *testing.T) {
	table := &Table{MaxEntries: 2}
	for i := range 2 {
		table.Learn("a.test", v4(i), time.Second)
		if _, ok := table.Hold("a.test", v4(i)); !ok {
			t.Fatal("not held")
		}
	}
	table.Learn("b.test", v4(9), time.Hour)
	if got := table.Names(v4(9), time.Now()); got != nil {
		t.Errorf("learned %v beyond the limit", got)
	}
	if n := len(table.Entries()); n != 2 {
		t.Errorf("%d entries", n)
	}
}

func TestTableFormsOfAnAddress(t *testing.T) {
	table := &Table{}
	table.Learn("a.test", netip.MustParseAddr("::ffff:203.0.113.7"), time.Minute)
	table.Learn("b.test", netip.MustParseAddr("fe80::1%eth0"), time.Minute)
	now := time.Now()
	if table.Names(netip.MustParseAddr("203.0.113.7"), now) == nil || table.Names(netip.MustParseAddr("fe80::1"), now) == nil {
		t.Error("an address is not found by value")
	}
}

func TestTableWallClockJump(t *testing.T) {
	now := time.Now()
	table := &Table{Now: func() time.Time { return now }}
	table.Learn("a.test", v4(1), time.Minute)
	for _, jump := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		jumped := setWall(now, jump)
		if jumped.Sub(now) != 0 || jumped.Round(0).Sub(now.Round(0)) != jump {
			t.Fatalf("the clock was not set: %v to %v", now, jumped)
		}
		if table.Names(v4(1), jumped.Add(119*time.Second)) == nil {
			t.Errorf("clock set by %v: expired within TTL and grace", jump)
		}
		if table.Names(v4(1), jumped.Add(120*time.Second)) != nil {
			t.Errorf("clock set by %v: counts after TTL and grace", jump)
		}
	}
}

// setWall returns t as time.Now gives it after somebody set the wall clock by
// d: the monotonic reading stays. It knows time.Time's layout; the test above
// checks what came out.
func setWall(t time.Time, d time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(d/time.Second) << 30
	return t
}

func TestTableSurvivesARestart(t *testing.T) {
	c := newClock()
	before := &Table{Now: c.Now}
	before.Learn("a.test", v4(1), 10*time.Minute)
	before.Learn("b.test", v4(2), time.Second)
	saved := before.Entries()
	c.advance(5 * time.Minute)

	after := &Table{Now: c.Now}
	saved = append(saved, Entry{Name: "far.test", Addr: v4(3), Expires: c.Now().AddDate(9, 0, 0)}, Entry{Name: "x.test", Expires: c.Now().Add(time.Hour)})
	after.Restore(saved)
	if diff := cmp.Diff([]string{"a.test"}, after.Names(v4(1), c.Now())); diff != "" {
		t.Error(diff)
	}
	if got := after.Names(v4(2), c.Now()); got != nil {
		t.Errorf("expired meanwhile: %v", got)
	}
	c.advance(5*time.Minute + 59*time.Second)
	if after.Names(v4(1), c.Now()) == nil {
		t.Error("lost before its time")
	}
	c.advance(time.Second)
	if after.Names(v4(1), c.Now()) != nil {
		t.Error("counts longer than was promised")
	}
	c.advance(25 * time.Hour)
	if after.Names(v4(3), c.Now()) != nil {
		t.Error("an expiry beyond the longest TTL was believed")
	}
}

func TestTableLookupDoesNotAllocate(t *testing.T) {
	table := &Table{}
	table.Learn("a.test", v4(1), time.Hour)
	table.Learn("b.test", v4(1), time.Hour)
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { table.Names(v4(1), now) }); n != 0 {
		t.Errorf("%v allocations per lookup", n)
	}
}
