package ask

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weir/rules"
)

// told is what a Book told.
type told struct {
	mu   sync.Mutex
	ends []End
}

func (o *told) tell(_ Question, end End, _ Reply) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends = append(o.ends, end)
}

func (o *told) count(end End) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.ends {
		if e == end {
			n++
		}
	}
	return n
}

func about(container, host string) Question {
	return Question{Container: rules.Container{ID: container, Name: container}, Session: "s", Host: host, Port: 443, Transport: rules.TCP}
}

func mustAsk(t testing.TB, b *Book, q Question) *Waiting {
	t.Helper()
	w, err := b.Ask(q)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o told
		b := &Book{Tell: o.tell}
		start := time.Now()
		first := mustAsk(t, b, about("web", "a.test"))
		time.Sleep(20 * time.Second)
		second := mustAsk(t, b, about("web", "a.test"))
		for _, w := range []*Waiting{first, second} {
			r := <-w.Reply
			if r.Allow || r.Rule || !r.Expired || r.Reason != "nobody answered within 30s" || time.Since(start) != 30*time.Second {
				t.Errorf("%+v after %s", r, time.Since(start))
			}
			w.Leave()
		}
		if _, err := b.Ask(about("web", "a.test")); err == nil || !strings.Contains(err.Error(), "not asked again for 30s") {
			t.Errorf("asked again at once: %v", err)
		}
		mustAsk(t, b, about("web", "b.test")).Leave()
		mustAsk(t, b, about("db", "a.test")).Leave()
		time.Sleep(30 * time.Second)
		mustAsk(t, b, about("web", "a.test")).Leave()
		if o.count(Asked) != 4 || o.count(TimedOut) != 1 || o.count(Withdrawn) != 3 {
			t.Errorf("told %v", o.ends)
		}
	})
}

func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o told
		b := &Book{Tell: o.tell}
		w := mustAsk(t, b, about("web", "a.test"))
		same := mustAsk(t, b, about("web", "a.test"))
		id := b.Open("")[0].ID
		if list := b.Open("web"); len(list) != 1 || list[0].Flows != 2 || len(b.Open("db")) != 0 {
			t.Fatalf("open: %+v", list)
		}
		if _, err := b.Claim(id); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Claim(id); !errors.Is(err, ErrOver) || !strings.Contains(err.Error(), "by somebody else") {
			t.Errorf("claimed twice: %v", err)
		}
		b.Release(id)
		if _, err := b.Claim(id); err != nil {
			t.Errorf("claimed after a release: %v", err)
		}
		if q := b.Answer(id, Reply{Allow: true, Reason: "allowed once by somebody"}); q.Flows != 2 {
			t.Errorf("answered %+v", q)
		}
		for _, one := range []*Waiting{w, same} {
			if r := <-one.Reply; !r.Allow {
				t.Errorf("told %+v", r)
			}
			one.Leave()
		}
		if _, err := b.Claim(id); !errors.Is(err, ErrOver) || !strings.Contains(err.Error(), "allowed once by somebody") {
			t.Errorf("answered twice: %v", err)
		}
		if _, err := b.Claim("q-x"); !errors.Is(err, ErrUnknown) {
			t.Errorf("an unknown question: %v", err)
		}
		// Allowed once is asked again; denied once is not, for a while.
		w = mustAsk(t, b, about("web", "a.test"))
		id = b.Open("")[0].ID
		if _, err := b.Claim(id); err != nil {
			t.Fatal(err)
		}
		b.Answer(id, Reply{Reason: "denied once by somebody"})
		<-w.Reply
		if _, err := b.Ask(about("web", "a.test")); err == nil || err.Error() != "denied once by somebody" {
			t.Errorf("asked again: %v", err)
		}
		if q := b.Answer(id, Reply{Allow: true}); q.ID != "" || o.count(Answered) != 2 {
			t.Errorf("an answer without a claim: %+v, told %v", q, o.ends)
		}
	})
}

// While somebody answers, neither time nor flows that leave take the question
// away; what is due then happens when they give it back.
func TestClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o told
		b := &Book{Tell: o.tell}
		w := mustAsk(t, b, about("web", "a.test"))
		id := b.Open("")[0].ID
		if _, err := b.Claim(id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(31 * time.Second)
		select {
		case r := <-w.Reply:
			t.Fatalf("told %+v while somebody answers", r)
		default:
		}
		b.Release(id)
		if r := <-w.Reply; !r.Expired {
			t.Errorf("told %+v", r)
		}
		w = mustAsk(t, b, about("web", "b.test"))
		id = b.Open("")[0].ID
		if _, err := b.Claim(id); err != nil {
			t.Fatal(err)
		}
		w.Leave()
		if len(b.Open("")) != 1 {
			t.Error("withdrawn while somebody answers")
		}
		b.Release(id)
		if len(b.Open("")) != 0 || o.count(Withdrawn) != 1 {
			t.Errorf("not withdrawn: %v", o.ends)
		}
		if _, err := b.Claim(id); !errors.Is(err, ErrOver) || !strings.Contains(err.Error(), "withdrawn") {
			t.Errorf("claimed: %v", err)
		}
	})
}

func TestFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Book{}
		var held []*Waiting
		refused := 0
		for i := range 10_000 {
			w, err := b.Ask(about("flood", fmt.Sprintf("n%d.test", i)))
			if err != nil {
				refused++
				if !strings.Contains(err.Error(), "32 questions of this container are open") {
					t.Fatal(err)
				}
				continue
			}
			held = append(held, w)
		}
		if len(held) != 32 || len(b.Open("")) != 32 || refused != 10_000-32 {
			t.Errorf("%d held, %d refused", len(held), refused)
		}
		mustAsk(t, b, about("other", "n1.test"))
		for range 63 {
			mustAsk(t, b, about("flood", "n1.test"))
		}
		if _, err := b.Ask(about("flood", "n1.test")); err == nil || !strings.Contains(err.Error(), "64 connections wait") {
			t.Errorf("one more: %v", err)
		}
		for i := range 300 {
			b.Ask(about(fmt.Sprint("c", i), "a.test"))
		}
		if n := len(b.Open("")); n != 256 {
			t.Errorf("%d open in all", n)
		}
		time.Sleep(time.Minute)
		for _, w := range held {
			if r := <-w.Reply; r.Allow {
				t.Errorf("told %+v", r)
			}
		}
		if len(b.Open("")) != 0 || len(b.same) != 0 {
			t.Error("questions stay")
		}
		for i := range 3 * remembered {
			w := mustAsk(t, b, about("later", fmt.Sprintf("n%d.test", i)))
			id := b.Open("")[0].ID
			b.Claim(id)
			b.Answer(id, Reply{Reason: "no"})
			w.Leave()
		}
		if len(b.over.entries) > remembered || len(b.quiet.entries) > remembered || len(b.over.order) > remembered {
			t.Errorf("remembers %d and %d", len(b.over.entries), len(b.quiet.entries))
		}
	})
}

// Whatever people and flows do, who waits is told at most once and in time, the
// bounds hold, and nothing stays behind.
func TestBookHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			var o told
			b := &Book{Tell: o.tell, Limits: Limits{PerContainer: 2, Total: 3, Flows: 2}}
			type held struct {
				w     *Waiting
				since time.Time
			}
			var waiting []held
			replies := 0
			for range rapid.IntRange(1, 40).Draw(rt, "steps") {
				switch rapid.IntRange(0, 4).Draw(rt, "step") {
				case 0, 1:
					q := about(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "container"), rapid.SampledFrom([]string{"x.test", "y.test", ""}).Draw(rt, "host"))
					q.Addr = netip.MustParseAddr("192.0.2.1")
					if w, err := b.Ask(q); err == nil {
						waiting = append(waiting, held{w, time.Now()})
					}
				case 2:
					if len(waiting) > 0 {
						i := rapid.IntRange(0, len(waiting)-1).Draw(rt, "who")
						waiting[i].w.Leave()
						waiting = append(waiting[:i], waiting[i+1:]...)
					}
				case 3:
					if open := b.Open(""); len(open) > 0 {
						id := rapid.SampledFrom(open).Draw(rt, "question").ID
						if _, err := b.Claim(id); err != nil {
							rt.Fatal(err)
						}
						if rapid.Bool().Draw(rt, "released") {
							b.Release(id)
						} else {
							b.Answer(id, Reply{Allow: rapid.Bool().Draw(rt, "allow"), Rule: rapid.Bool().Draw(rt, "rule")})
						}
					}
				case 4:
					time.Sleep(time.Duration(rapid.IntRange(1, 40).Draw(rt, "seconds")) * time.Second)
					synctest.Wait()
				}
				flows := 0
				for _, q := range b.Open("") {
					if flows += q.Flows; q.Flows < 1 || q.Flows > 2 || !q.Expires.After(time.Now()) {
						rt.Fatalf("open: %+v", q)
					}
				}
				if len(b.Open("a")) > 2 || len(b.Open("")) > 3 {
					rt.Fatalf("%d questions", len(b.Open("")))
				}
				rest := waiting[:0]
				for _, h := range waiting {
					select {
					case <-h.w.Reply:
						replies++
					default:
						if time.Since(h.since) >= 30*time.Second {
							rt.Fatal("waits for too long")
						}
						rest = append(rest, h)
					}
				}
				if waiting = rest; flows != len(waiting) {
					rt.Fatalf("%d flows wait, and the book has %d", len(waiting), flows)
				}
			}
			for _, h := range waiting {
				h.w.Leave()
			}
			if len(b.open) != 0 || len(b.same) != 0 || o.count(Asked) != o.count(Answered)+o.count(TimedOut)+o.count(Withdrawn) {
				rt.Fatalf("left behind: %d; told %v", len(b.open), o.ends)
			}
		})
	})
}
