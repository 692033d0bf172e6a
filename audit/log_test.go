package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// shelf stores events in memory, the way a store has to.
type shelf struct {
	mu      sync.Mutex
	events  []Event
	batches []int
	delay   time.Duration // of each append and each page
	fail    int           // so many appends fail first
}

func (s *shelf) Append(ctx context.Context, batch []Event) error {
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return errors.New("disk full")
	}
	for _, e := range batch {
		if n := len(s.events); n > 0 && s.events[n-1].ID >= e.ID {
			return fmt.Errorf("event %d after %d", e.ID, s.events[n-1].ID)
		}
		s.events = append(s.events, e)
	}
	s.batches = append(s.batches, len(batch))
	return nil
}

func (s *shelf) Events(ctx context.Context, f Filter) ([]Event, error) {
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Event
	for i := range s.events {
		if len(found) < f.Page() && f.Match(&s.events[i]) {
			found = append(found, s.events[i])
		}
	}
	return found, nil
}

func (s *shelf) ids() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []int64
	for _, e := range s.events {
		ids = append(ids, e.ID)
	}
	return ids
}

func increasing(t *testing.T, ids []int64) {
	t.Helper()
	for i := 1; i < len(ids); i++ {
		if ids[i] <= ids[i-1] {
			t.Fatalf("id %d follows %d", ids[i], ids[i-1])
		}
	}
}

func shutdown(t *testing.T, l *Log, served <-chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := l.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func serve(l *Log) <-chan error {
	served := make(chan error, 1)
	go func() { served <- l.Serve() }()
	return served
}

func TestRecordAssignsIDsAndTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		now := time.Now()
		ahead := now.UnixMicro() + 1000
		l := NewLog(Config{Append: s.Append, Last: ahead})
		served := serve(l)
		if id := l.Record(Event{}); id != ahead+1 {
			t.Errorf("first id = %d, want one above the store's last, %d", id, ahead+1)
		}
		time.Sleep(time.Second)
		if id, want := l.Record(Event{Time: now.Add(time.Hour)}), time.Now().UnixMicro(); id != want {
			t.Errorf("id = %d, want the clock, %d", id, want)
		}
		past := now.Add(-time.Minute)
		l.Record(Event{Time: past})
		shutdown(t, l, served)
		if len(s.events) != 3 {
			t.Fatalf("%d events stored, want 3", len(s.events))
		}
		if !s.events[0].Time.Equal(now.Truncate(time.Microsecond)) {
			t.Errorf("time = %v, want now", s.events[0].Time)
		}
		if got := s.events[1].Time; got.After(now.Add(time.Second)) {
			t.Errorf("time in the future was kept: %v", got)
		}
		if !s.events[2].Time.Equal(past.Truncate(time.Microsecond)) {
			t.Errorf("given time was not kept: %v", s.events[2].Time)
		}
		increasing(t, s.ids())
		if id := l.Record(Event{}); id != 0 {
			t.Errorf("Record after Shutdown = %d, want 0", id)
		}
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		l := NewLog(Config{Append: s.Append})
		served := serve(l)
		l.Record(Event{})
		time.Sleep(BatchDelay - time.Millisecond)
		synctest.Wait()
		if n := len(s.ids()); n != 0 {
			t.Fatalf("%d events stored before the delay is over", n)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if n := len(s.ids()); n != 1 {
			t.Fatalf("%d events stored after the delay, want 1", n)
		}
		for range BatchSize { // a full batch does not wait
			l.Record(Event{})
		}
		synctest.Wait()
		if n := len(s.ids()); n != 1+BatchSize {
			t.Fatalf("%d events stored at once, want %d", n, 1+BatchSize)
		}
		shutdown(t, l, served)
	})
}

func TestNothingIsLostUnderASlowAndFailingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := shelf{delay: 3 * time.Second, fail: 4}
		var failures int
		l := NewLog(Config{Append: s.Append, Failed: func(error) { failures++ }})
		served := serve(l)
		const recorders, each = 20, 1000
		var wg sync.WaitGroup
		for r := range recorders {
			wg.Go(func() {
				for i := range each {
					id := l.Record(Event{Reason: fmt.Sprint(r), BytesIn: int64(i + 1)})
					if id == 0 {
						t.Error("refused")
					}
				}
			})
		}
		synctest.Wait()
		if n := l.Waiting(); n != QueueSize {
			t.Errorf("%d events wait, want the bound, %d", n, QueueSize)
		}
		wg.Wait()
		shutdown(t, l, served)
		if len(s.events) != recorders*each {
			t.Fatalf("%d events stored, want %d", len(s.events), recorders*each)
		}
		increasing(t, s.ids())
		next := map[string]int64{}
		for _, e := range s.events {
			next[e.Reason]++
			if e.BytesIn != next[e.Reason] {
				t.Fatalf("recorder %s: event %d where %d is due", e.Reason, e.BytesIn, next[e.Reason])
			}
		}
		for _, n := range s.batches {
			if n > BatchSize {
				t.Fatalf("batch of %d", n)
			}
		}
		if failures != 4 {
			t.Errorf("told of %d failures, want 4", failures)
		}
	})
}

func TestShutdownGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(Config{Append: func(context.Context, []Event) error { return errors.New("disk full") }})
		served := serve(l)
		for range QueueSize {
			l.Record(Event{})
		}
		refused := make(chan int64)
		go func() { refused <- l.Record(Event{}) }() // waits for room that never comes
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := l.Shutdown(ctx)
		if err == nil || !strings.Contains(err.Error(), "4096 audit events") || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown = %v, want the number of lost events and the deadline", err)
		}
		if err := <-served; err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("Serve = %v, want the store's error", err)
		}
		if id := <-refused; id != 0 {
			t.Errorf("waiting Record = %d, want 0", id)
		}
	})
}

func TestServeOnce(t *testing.T) {
	var s shelf
	l := NewLog(Config{Append: s.Append})
	l.Record(Event{})
	ended, end := context.WithCancel(t.Context())
	end()
	if err := l.Shutdown(ended); err == nil || !strings.Contains(err.Error(), "never served") {
		t.Errorf("Shutdown without Serve = %v", err)
	}
	if err := l.Serve(); err != nil { // what was recorded can still be stored
		t.Fatal(err)
	}
	if len(s.events) != 1 {
		t.Errorf("%d events stored, want 1", len(s.events))
	}
	if err := l.Serve(); err == nil {
		t.Error("second Serve succeeded")
	}
}

// collect reads until it has the event with id last or the log ends.
func collect(ctx context.Context, t *testing.T, sub *Subscription, pause func()) (ids []int64, lagged bool) {
	for {
		events, err := sub.Next(ctx)
		if errors.Is(err, ErrShutdown) {
			return ids, lagged
		}
		if err != nil {
			t.Error(err)
			return ids, lagged
		}
		for _, e := range events {
			ids = append(ids, e.ID)
		}
		lagged = lagged || sub.Lagging()
		pause()
	}
}

func TestSubscribersMissNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s shelf
		l := NewLog(Config{Append: s.Append, Events: s.Events})
		served := serve(l)
		var wg sync.WaitGroup
		type viewer struct {
			name  string
			f     Filter
			pause time.Duration
			ids   []int64
			lag   bool
		}
		viewers := []*viewer{
			{name: "fast"},
			{name: "slow", pause: 20 * time.Second},
			{name: "slow and choosy", f: Filter{Verdict: "deny"}, pause: 20 * time.Second},
			{name: "choosy", f: Filter{Verdict: "deny", Limit: 7}},
			{name: "rare", f: Filter{Host: "rare.test"}, pause: 50 * time.Second},
		}
		for _, v := range viewers {
			sub := l.Subscribe(v.f)
			wg.Go(func() {
				v.ids, v.lag = collect(t.Context(), t, sub, func() { time.Sleep(v.pause) })
			})
		}
		const n = 20_000
		random := rand.New(rand.NewPCG(1, 2))
		start := time.Now()
		for i := range n {
			e := Event{Verdict: "allow"}
			if random.IntN(10) == 0 {
				e.Verdict = "deny"
			}
			if i%7000 == 0 {
				e.Host = "Rare.test"
			}
			l.Record(e)
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(start); took != n*time.Millisecond {
			t.Errorf("slow viewers held up recording: %v instead of %v", took, n*time.Millisecond)
		}
		shutdown(t, l, served)
		wg.Wait()
		for _, v := range viewers {
			var want []int64
			for i := range s.events {
				if v.f.Match(&s.events[i]) {
					want = append(want, s.events[i].ID)
				}
			}
			if fmt.Sprint(v.ids) != fmt.Sprint(want) {
				t.Errorf("%s viewer saw %d events, want %d, or in another order", v.name, len(v.ids), len(want))
			}
			if len(want) == 0 {
				t.Errorf("%s viewer had nothing to see", v.name)
			}
			if slow := v.name == "slow"; slow && !v.lag {
				t.Errorf("%s viewer never lagged: the test tests nothing", v.name)
			}
		}
		if viewers[0].lag {
			t.Error("the fast viewer read from the store")
		}
	})
}

func TestSubscribeResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := shelf{delay: 10 * time.Millisecond}
		old := NewLog(Config{Append: s.Append})
		served := serve(old)
		for range 3000 {
			old.Record(Event{})
		}
		shutdown(t, old, served)
		ids := s.ids()

		// A new process: nothing is in memory.
		l := NewLog(Config{Append: s.Append, Events: s.Events, Last: ids[len(ids)-1]})
		served = serve(l)
		resumed := l.Subscribe(Filter{Cursor: ids[1499]})
		live := l.Subscribe(Filter{Cursor: l.Last()})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := live.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Next with nothing new = %v, want the deadline", err)
		}
		id := l.Record(Event{})
		events, err := live.Next(t.Context())
		if err != nil || len(events) != 1 || events[0].ID != id || live.Cursor() != id {
			t.Fatalf("live Next = %v, %v, want event %d", events, err, id)
		}
		shutdown(t, l, served)
		got, lagged := collect(t.Context(), t, resumed, func() {})
		if want := append(ids[1500:], id); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("resumed viewer saw %d events, want %d", len(got), len(want))
		}
		if !lagged {
			t.Error("events of before the start came from memory")
		}
	})
}

// With real time and real parallelism, for the race detector.
func TestManyRecordersAndViewers(t *testing.T) {
	var s shelf
	l := NewLog(Config{Append: s.Append, Events: s.Events})
	served := serve(l)
	var viewers, recorders sync.WaitGroup
	var seen [4][]int64
	for v := range seen {
		sub := l.Subscribe(Filter{Limit: 50 * (v + 1)})
		viewers.Go(func() { seen[v], _ = collect(t.Context(), t, sub, func() {}) })
	}
	for range 8 {
		recorders.Go(func() {
			for range 2500 {
				l.Record(Event{Reason: "x"})
			}
		})
	}
	recorders.Wait()
	shutdown(t, l, served)
	viewers.Wait()
	want := s.ids()
	increasing(t, want)
	for v := range seen {
		if len(want) != 20_000 || fmt.Sprint(seen[v]) != fmt.Sprint(want) {
			t.Errorf("viewer %d saw %d of %d events, or in another order", v, len(seen[v]), len(want))
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	l := NewLog(Config{Append: func(context.Context, []Event) error { return nil }})
	go l.Serve()
	b.ReportAllocs()
	for b.Loop() {
		l.Record(Event{Reason: "x"})
	}
	if err := l.Shutdown(context.Background()); err != nil {
		b.Fatal(err)
	}
}
