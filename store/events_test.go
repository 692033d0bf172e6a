package store

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

// fill gives every field of v, however deep, a value of its own.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d \x00\n\x1b\xff é", *n))
	case reflect.Int64:
		v.SetInt(int64(*n) << 33)
	case reflect.Uint16:
		v.SetUint(uint64(60000 + *n))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.UnixMicro(int64(*n)).UTC()))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	default:
		panic("no value for " + v.Kind().String())
	}
}

// A field that is added to Event and forgotten here fails this test.
func TestEventRoundTrip(t *testing.T) {
	s := fresh(t)
	var full audit.Event
	n := 0
	fill(reflect.ValueOf(&full).Elem(), &n)
	// JSON, in which these are kept, has no invalid UTF-8.
	clean := func(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
	full.Would = &audit.Would{Verdict: clean(full.Would.Verdict), RuleID: clean(full.Would.RuleID), Reason: clean(full.Would.Reason)}
	for i, op := range full.Operations {
		full.Operations[i] = graphql.Operation{Type: clean(op.Type), Name: clean(op.Name), Fields: []string{clean(op.Fields[0]), "b"}, Persisted: clean(op.Persisted)}
	}
	empty := audit.Event{ID: full.ID + 1, Time: time.UnixMicro(0).UTC()}
	for range 2 { // the second time it is a retry, and does nothing
		if err := s.AppendEvents(t.Context(), []audit.Event{full, empty}); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	if d := cmp.Diff([]audit.Event{full, empty}, must[[]audit.Event](t)(s.Events(t.Context(), audit.Filter{}))); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if last := must[int64](t)(s.LastEventID(t.Context())); last != empty.ID {
		t.Errorf("last id %d, want %d", last, empty.ID)
	}
}

func TestAppendIsAllOrNothing(t *testing.T) {
	s := fresh(t)
	good := audit.Event{ID: noon.UnixMicro(), Time: noon}
	bad := audit.Event{ID: noon.UnixMicro() + 1, Time: noon.Add(time.Second)}
	if err := s.AppendEvents(t.Context(), []audit.Event{good, bad}); err == nil || !strings.Contains(err.Error(), "older than its time") {
		t.Errorf("AppendEvents = %v, want the bad id refused", err)
	}
	if got := must[[]audit.Event](t)(s.Events(t.Context(), audit.Filter{})); len(got) != 0 {
		t.Errorf("%d events of a refused batch are stored", len(got))
	}
	if last := must[int64](t)(s.LastEventID(t.Context())); last != 0 {
		t.Errorf("last id of an empty store is %d", last)
	}
}

// The store and Filter.Match must select the same, page by page.
func TestEventsAgreeWithMatch(t *testing.T) {
	s := fresh(t)
	rapid.Check(t, func(t *rapid.T) {
		if _, err := s.writer.Exec(`DELETE FROM events; DELETE FROM event_containers`); err != nil {
			t.Fatal(err)
		}
		hosts := rapid.SampledFrom([]string{"", "a.test", "A.Test", "192.0.2.1", "\u212a.test", "k.test"})
		containers := rapid.SampledFrom([]string{"", "id1", "id2", "web"})
		verdicts := rapid.SampledFrom([]string{"", "allow", "deny"})
		types := rapid.SampledFrom([]audit.Type{"", audit.DNS, audit.HTTP})
		sessions := rapid.SampledFrom([]string{"", "s1"})
		base := noon.Truncate(time.Microsecond).UTC()
		var events []audit.Event
		for i := range rapid.IntRange(0, 60).Draw(t, "events") {
			at := base.Add(time.Duration(i) * time.Millisecond)
			events = append(events, audit.Event{
				ID: at.UnixMicro(), Time: at.Add(-time.Duration(rapid.IntRange(0, 3).Draw(t, "late")) * time.Millisecond),
				Type: types.Draw(t, "type"), Verdict: verdicts.Draw(t, "verdict"), SessionID: sessions.Draw(t, "session"),
				ContainerID: containers.Draw(t, "container"), ContainerName: containers.Draw(t, "name"),
				Host: hosts.Draw(t, "host"), Address: hosts.Draw(t, "address"),
			})
		}
		if err := s.AppendEvents(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			f := audit.Filter{
				Container: containers.Draw(t, "f.container"), Verdict: verdicts.Draw(t, "f.verdict"), Type: types.Draw(t, "f.type"),
				Host: hosts.Draw(t, "f.host"), SessionID: sessions.Draw(t, "f.session"),
				Newest: rapid.Bool().Draw(t, "f.newest"), Limit: rapid.IntRange(1, 8).Draw(t, "f.limit"),
			}
			if rapid.Bool().Draw(t, "f.since?") {
				f.Since = base.Add(time.Duration(rapid.IntRange(0, 60_000_000).Draw(t, "f.since")))
			}
			var want, got []audit.Event
			for i := range events {
				if f.Match(&events[i]) {
					want = append(want, events[i])
				}
			}
			if f.Newest {
				for i, j := 0, len(want)-1; i < j; i, j = i+1, j-1 {
					want[i], want[j] = want[j], want[i]
				}
			}
			for {
				page, err := s.Events(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page...)
				if len(page) < f.Page() {
					break
				}
				f.Cursor = page[len(page)-1].ID
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("%+v (-want +got):\n%s", f, d)
			}
		}
	})
}

// A page of a container's events must come from the index, in order.
func TestQueryPlans(t *testing.T) {
	s := fresh(t)
	if err := s.AppendEvents(t.Context(), made(1, noon)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ where, want string }{
		{`e.container = 1`, "events_container"},
		{`e.container = 1 AND e.id > 5`, "events_container"},
		{`e.container = 1 AND e.verdict = 'deny'`, "events_denied"},
		{`e.id >= 5 AND e.time >= 5`, "INTEGER PRIMARY KEY"},
	} {
		rows, err := s.readers.Query(`EXPLAIN QUERY PLAN SELECT ` + eventColumns + eventTables + ` WHERE ` + c.where + ` ORDER BY e.id LIMIT 10`)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var a, b, d int
			var text string
			if err := rows.Scan(&a, &b, &d, &text); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, text)
		}
		rows.Close()
		all := strings.Join(plan, "; ")
		if !strings.Contains(all, c.want) || strings.Contains(all, "TEMP B-TREE") {
			t.Errorf("%s: plan %s, want %s and no sorting", c.where, all, c.want)
		}
	}
}

// made is n events a millisecond apart, the last one at end; every third denied.
func made(n int, end time.Time) []audit.Event {
	events := make([]audit.Event, n)
	for i := range events {
		at := end.Add(-time.Duration(n-1-i) * time.Millisecond).Truncate(time.Microsecond).UTC()
		events[i] = audit.Event{
			ID: at.UnixMicro(), Time: at, Type: audit.Connect, Verdict: "allow", ContainerID: fmt.Sprintf("%064d", i%5), ContainerName: fmt.Sprint("c", i%5),
			Layer: "session", RuleID: "r12", Reason: "allow api.example.com:443", Host: "api.example.com", Address: "203.0.113.7", Port: 443,
			Transport: "tcp", BytesIn: 123456, BytesOut: 789, DurationMS: 1234,
		}
		if i%3 == 0 {
			events[i].Verdict = "deny"
		}
	}
	return events
}

func appendAll(t testing.TB, s *Store, events []audit.Event) {
	t.Helper()
	for len(events) > 0 {
		n := min(len(events), audit.BatchSize)
		if err := s.AppendEvents(t.Context(), events[:n]); err != nil {
			t.Fatal(err)
		}
		events = events[n:]
	}
}

func TestCountEvents(t *testing.T) {
	s := fresh(t)
	events := made(100, noon)
	events[99].Verdict = "" // it was a denial of c4
	appendAll(t, s, events)
	want := map[string]EventCount{}
	for _, e := range events[50:] {
		c := want[e.ContainerID]
		c.ContainerID, c.LastID = e.ContainerID, e.ID
		c.Total++
		switch e.Verdict {
		case "allow":
			c.Allowed++
		case "deny":
			c.Denied++
		}
		want[e.ContainerID] = c
	}
	got := map[string]EventCount{}
	for _, c := range must[[]EventCount](t)(s.CountEvents(t.Context(), events[50].Time)) {
		got[c.ContainerID] = c
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
	if all := must[[]EventCount](t)(s.CountEvents(t.Context(), time.Time{})); len(all) != 5 || all[0].Total != 20 {
		t.Errorf("counts of everything: %+v", all)
	}
}

func TestRetention(t *testing.T) {
	const n = 5000
	events := made(n, noon)
	for _, c := range []struct {
		name string
		r    Retention
		now  time.Time
		left int
	}{
		{"no bounds", Retention{}, noon, n},
		{"age", Retention{MaxAge: time.Second}, noon, 1001},
		{"number", Retention{MaxRows: 70}, noon, 70},
		{"number above what there is", Retention{MaxRows: n + 1}, noon, n},
		{"both, age is narrower", Retention{MaxAge: 10 * time.Millisecond, MaxRows: 70}, noon, 11},
		{"all too old: the newest stays", Retention{MaxAge: time.Hour}, noon.Add(48 * time.Hour), 1},
		{"size that cannot be kept: the newest stays", Retention{MaxBytes: 1}, noon, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fresh(t)
			appendAll(t, s, events)
			deleted := must[int64](t)(s.DeleteOldEvents(t.Context(), c.r, c.now))
			got := must[[]audit.Event](t)(s.Events(t.Context(), audit.Filter{Limit: audit.MaxLimit}))
			if d := cmp.Diff(events[n-c.left:], got); d != "" {
				t.Errorf("%d events left, want the newest %d", len(got), c.left)
			}
			if deleted != int64(n-c.left) {
				t.Errorf("%d deleted, want %d", deleted, n-c.left)
			}
			var containers int
			if err := s.readers.QueryRow(`SELECT COUNT(*) FROM event_containers`).Scan(&containers); err != nil || containers != min(5, c.left) {
				t.Errorf("%d containers kept, %v, want %d", containers, err, min(5, c.left))
			}
		})
	}
}

func TestRetentionBySize(t *testing.T) {
	s := fresh(t)
	end := noon
	var limit, file int64
	for round := range 6 {
		end = end.Add(time.Hour)
		appendAll(t, s, made(8000, end))
		if round == 0 {
			limit = must[int64](t)(s.Size(t.Context())) * 3 / 4
		}
		must[int64](t)(s.DeleteOldEvents(t.Context(), Retention{MaxBytes: limit}, end))
		if size := must[int64](t)(s.Size(t.Context())); size > limit {
			t.Errorf("round %d: size %d, limit %d", round, size, limit)
		}
		left := must[[]audit.Event](t)(s.Events(t.Context(), audit.Filter{Newest: true, Limit: 2000}))
		if len(left) != 2000 || left[0].ID != end.UnixMicro() {
			t.Errorf("round %d: %d of the newest 2000 events left", round, len(left))
		}
		var pages int64
		if err := s.readers.QueryRow(`PRAGMA page_count`).Scan(&pages); err != nil {
			t.Fatal(err)
		}
		if round > 1 && pages > file+file/10 {
			t.Errorf("round %d: the file grew from %d to %d pages although as much was freed before", round, file, pages)
		}
		file = max(file, pages)
	}
}

// Everything at once, for the race detector and for locking errors.
func TestConcurrency(t *testing.T) {
	s := fresh(t)
	l := audit.NewLog(audit.Config{Append: s.AppendEvents, Events: s.Events, Failed: func(err error) { t.Error(err) }})
	served := make(chan error, 1)
	go func() { served <- l.Serve() }()
	sub := l.Subscribe(audit.Filter{})
	var seen []int64
	viewed := make(chan struct{})
	go func() {
		defer close(viewed)
		for {
			events, err := sub.Next(t.Context())
			if err != nil {
				return
			}
			for _, e := range events {
				seen = append(seen, e.ID)
			}
		}
	}()
	var wg sync.WaitGroup
	var recorded [4][]int64
	for w := range recorded {
		wg.Go(func() {
			for i := range 1500 {
				recorded[w] = append(recorded[w], l.Record(audit.Event{ContainerID: fmt.Sprint(w), Reason: fmt.Sprint(i), Verdict: "deny"}))
			}
		})
		wg.Go(func() {
			for i := range 40 {
				id := fmt.Sprint("s", w)
				v, err := s.PutSession(t.Context(), Session{SessionState: rules.SessionState{ID: id, Container: "web", Expires: noon.Add(time.Hour),
					Rules: make3(i)}}, noon)
				if err != nil || len(v.Rules) != 3 {
					t.Errorf("PutSession: %d rules, %v", len(v.Rules), err)
					return
				}
				if i%4 == 3 {
					if err := s.EndSession(t.Context(), id, noon); err != nil {
						t.Error(err)
					}
				}
			}
		})
		wg.Go(func() {
			for range 60 {
				vs, err := s.Sessions(t.Context(), SessionFilter{})
				if err != nil {
					t.Error(err)
				}
				for _, v := range vs { // a session is seen whole or not at all
					if v.Ended && len(v.Rules) != 0 || !v.Ended && (len(v.Rules) != 3 || v.Rules[0].Notes != v.Rules[2].Notes) {
						t.Errorf("half a session: %+v", v)
					}
				}
				if _, err := s.CountEvents(t.Context(), time.Time{}); err != nil {
					t.Error(err)
				}
				if _, err := s.DeleteOldEvents(t.Context(), Retention{MaxRows: 1 << 40}, noon); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		if err := s.Backup(t.Context(), s.Path()+".backup"); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	if err := l.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	<-viewed
	stored := must[[]audit.Event](t)(s.Events(t.Context(), audit.Filter{Limit: audit.MaxLimit}))
	var ids []int64
	at := map[int64]bool{}
	for _, e := range stored {
		ids, at[e.ID] = append(ids, e.ID), true
	}
	if d := cmp.Diff(ids, seen); d != "" || len(ids) != 6000 {
		t.Errorf("the viewer saw %d events, %d are stored, 6000 were recorded", len(seen), len(ids))
	}
	for w := range recorded {
		for _, id := range recorded[w] {
			if !at[id] {
				t.Errorf("event %d of recorder %d is not stored", id, w)
			}
		}
	}
}

func make3(i int) []rules.Rule {
	r := rules.Rule{Destination: "a.test", Action: rules.ActionAllow, Notes: fmt.Sprint(i)}
	return []rules.Rule{r, r, r}
}

func TestCancelledWriteLeavesNothing(t *testing.T) {
	s := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.AppendEvents(ctx, made(10, noon)); err == nil || !strings.Contains(err.Error(), s.Path()) {
		t.Errorf("AppendEvents = %v, want an error that names the file", err)
	}
	if err := s.AppendEvents(t.Context(), made(10, noon)); err != nil {
		t.Errorf("the next write: %v", err)
	}
}

func BenchmarkAppendEvents(b *testing.B) {
	s := fresh(b)
	base := time.Now()
	n := 0
	for b.Loop() {
		n++
		b.StopTimer()
		batch := made(audit.BatchSize, base.Add(time.Duration(n)*time.Second))
		b.StartTimer()
		if err := s.AppendEvents(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*audit.BatchSize)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkPutSession(b *testing.B) {
	s := fresh(b)
	for b.Loop() {
		if _, err := s.PutSession(b.Context(), Session{SessionState: rules.SessionState{ID: "s", Container: "web", Expires: noon.Add(time.Hour), Rules: make3(1)}}, noon); err != nil {
			b.Fatal(err)
		}
	}
}
