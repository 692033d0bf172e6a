package ask

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weir/rules"
)

// A Question is what a person is asked: may this container reach that?
type Question struct {
	ID        string // made up by Ask
	Container rules.Container
	Session   string     // that asks
	Host      string     // canonical name; "": it is about Addr
	Addr      netip.Addr // zero: the name has not been resolved
	Port      uint16
	Transport rules.Transport
	Binary    string // of the connecting program; "": not found
	Reason    string // why it does not pass by itself
	// Asked and Expires are set by Ask. At Expires the answer is no.
	Asked, Expires time.Time
	Flows          int // that wait for the answer; set by Open
}

// Destination is what is asked about: a name, or an address without one.
func (q *Question) Destination() string {
	if q.Host != "" {
		return q.Host
	}
	return q.Addr.String()
}

// Limits bound what is asked. A zero field means its default.
type Limits struct {
	PerContainer int           // open questions of one container; default 32
	Total        int           // of all; default 256
	Flows        int           // that wait for the answer to one; default 64
	Patience     time.Duration // how long an answer is waited for; default 30 s
	// Quiet is how long what was denied for once, or not answered, is not
	// asked again: retries would keep a person busy. Default 30 s.
	Quiet time.Duration
}

func (l Limits) withDefaults() Limits {
	l.PerContainer, l.Total, l.Flows = cmp.Or(l.PerContainer, 32), cmp.Or(l.Total, 256), cmp.Or(l.Flows, 64)
	l.Patience, l.Quiet = cmp.Or(l.Patience, 30*time.Second), cmp.Or(l.Quiet, 30*time.Second)
	return l
}

// remembered bounds what is kept of questions that are over: how they ended,
// and what is not to be asked again.
const remembered = 4096

// A Reply is what a held flow is told.
type Reply struct {
	Allow bool
	// Rule: a rule was made that says so, for this flow as well.
	Rule bool
	// Expired: nobody answered.
	Expired bool
	Reason  string // "allowed once by root"
}

// An End is how a question came to its end.
type End string

const (
	Asked     End = "asked" // it has only begun
	Answered  End = "answered"
	TimedOut  End = "timed out"
	Withdrawn End = "withdrawn" // nobody waits for the answer any more
)

// A Book has the questions that are open. Its fields must not change after
// the first call. It is safe for concurrent use.
type Book struct {
	Limits Limits
	// Tell is told when a question is asked and how it ends; it may block, and
	// must not call the Book. nil: nobody is told.
	Tell func(q Question, end End, r Reply)
	Now  func() time.Time // nil: time.Now

	once   sync.Once
	limits Limits

	mu    sync.Mutex
	open  map[string]*open // by id
	same  map[key]*open
	quiet past[key, quiet]
	over  past[string, string] // by id: what became of it
}

// key is what makes two flows want the same.
type key struct {
	container, host, binary string
	addr                    netip.Addr
	port                    uint16
	transport               rules.Transport
}

func (q *Question) key() key {
	k := key{container: q.Container.ID, host: q.Host, binary: q.Binary, port: q.Port, transport: q.Transport}
	if k.host == "" {
		k.addr = q.Addr
	}
	return k
}

// open is a question that waits for its answer.
type open struct {
	Question
	waiting map[*Waiting]bool
	claimed bool // somebody answers at this moment
	timer   *time.Timer
}

// quiet is what is said to a flow that asks again too soon.
type quiet struct {
	until time.Time
	why   string
}

// A Waiting is one held flow's place at a question.
type Waiting struct {
	Reply <-chan Reply // one, and then nothing

	book  *Book
	open  *open
	reply chan Reply
}

func (b *Book) start() {
	b.once.Do(func() {
		b.limits = b.Limits.withDefaults()
		b.open, b.same = map[string]*open{}, map[key]*open{}
	})
}

func (b *Book) now() time.Time {
	if b.Now != nil {
		return b.Now()
	}
	return time.Now()
}

// Ask puts q, or joins those who wait for the same. The error says why it is
// not asked: it was answered no just now, or there are too many questions.
func (b *Book) Ask(q Question) (*Waiting, error) {
	w, asked, err := b.ask(q)
	if asked != nil {
		b.tell(*asked, Asked, Reply{})
	}
	return w, err
}

func (b *Book) ask(q Question) (w *Waiting, asked *Question, err error) {
	b.start()
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	k := q.key()
	if before, ok := b.quiet.get(k); ok && before.until.After(now) {
		return nil, nil, errors.New(before.why)
	}
	o := b.same[k]
	if o == nil {
		if err := b.room(q.Container.ID); err != nil {
			return nil, nil, err
		}
		q.ID, q.Asked, q.Expires = "q-"+rand.Text()[:10], now, now.Add(b.limits.Patience)
		o = &open{Question: q, waiting: map[*Waiting]bool{}}
		id := q.ID
		o.timer = time.AfterFunc(b.limits.Patience, func() { b.expire(id) })
		b.open[q.ID], b.same[k] = o, o
		asked = &q
	}
	if len(o.waiting) >= b.limits.Flows {
		return nil, asked, fmt.Errorf("%d connections wait for the answer to question %s already, and no more may", b.limits.Flows, o.ID)
	}
	w = &Waiting{book: b, open: o, reply: make(chan Reply, 1)}
	w.Reply = w.reply
	o.waiting[w] = true
	return w, asked, nil
}

// room says whether a container may have another question.
func (b *Book) room(container string) error {
	if len(b.open) >= b.limits.Total {
		return fmt.Errorf("%d questions are open, and no more may be", b.limits.Total)
	}
	n := 0
	for _, o := range b.open {
		if o.Container.ID == container {
			n++
		}
	}
	if n >= b.limits.PerContainer {
		return fmt.Errorf("%d questions of this container are open, and no more may be", b.limits.PerContainer)
	}
	return nil
}

// Leave ends the wait, answered or not. A question that nobody waits for any
// more is withdrawn.
func (w *Waiting) Leave() {
	b := w.book
	b.mu.Lock()
	delete(w.open.waiting, w)
	gone := len(w.open.waiting) == 0 && !w.open.claimed && b.open[w.open.ID] == w.open
	if gone {
		b.end(w.open, "was withdrawn: nothing waits for its answer any more")
	}
	q := w.open.Question
	b.mu.Unlock()
	if gone {
		b.tell(q, Withdrawn, Reply{})
	}
}

// end takes a question off the book. mu is held.
func (b *Book) end(o *open, how string) {
	o.timer.Stop()
	delete(b.open, o.ID)
	delete(b.same, o.key())
	b.over.put(o.ID, how)
}

// expire answers no to a question whose time is over.
func (b *Book) expire(id string) {
	b.mu.Lock()
	o := b.open[id]
	if o == nil || o.claimed {
		b.mu.Unlock()
		return
	}
	reply := Reply{Expired: true, Reason: fmt.Sprintf("nobody answered within %s", b.limits.Patience)}
	b.hush(o, fmt.Sprintf("nobody answered when it was asked, and it is not asked again for %s", b.limits.Quiet))
	q := b.settle(o, reply, "was not answered in time")
	b.mu.Unlock()
	b.tell(q, TimedOut, reply)
}

// settle ends a question with a reply to all who wait. mu is held.
func (b *Book) settle(o *open, r Reply, how string) Question {
	q := o.Question
	q.Flows = len(o.waiting)
	for w := range o.waiting {
		w.reply <- r // one place, and nobody else fills it
	}
	clear(o.waiting)
	b.end(o, how)
	return q
}

func (b *Book) hush(o *open, why string) {
	b.quiet.put(o.key(), quiet{b.now().Add(b.limits.Quiet), why})
}

func (b *Book) tell(q Question, end End, r Reply) {
	if b.Tell != nil {
		b.Tell(q, end, r)
	}
}

// Open lists the questions of a container, or of all with "", oldest first.
func (b *Book) Open(container string) []Question {
	b.start()
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Question, 0, len(b.open))
	for _, o := range b.open {
		if container == "" || o.Container.ID == container {
			q := o.Question
			q.Flows = len(o.waiting)
			list = append(list, q)
		}
	}
	slices.SortFunc(list, func(a, b Question) int {
		return cmp.Or(a.Asked.Compare(b.Asked), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// ErrUnknown: no question has, or lately had, that id.
var ErrUnknown = errors.New("no such question")

// ErrOver: it has been answered, or is being answered, or has ended.
var ErrOver = errors.New("the question is not open any more")

// Claim takes a question for whoever answers it now; nobody else can until
// Release. Errors are ErrUnknown and ErrOver, with what became of it.
func (b *Book) Claim(id string) (Question, error) {
	b.start()
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.open[id]
	if o == nil {
		if how, ok := b.over.get(id); ok {
			return Question{}, fmt.Errorf("question %s %s: %w", id, how, ErrOver)
		}
		return Question{}, fmt.Errorf("question %q: %w", id, ErrUnknown)
	}
	if o.claimed {
		return Question{}, fmt.Errorf("question %s is being answered by somebody else: %w", id, ErrOver)
	}
	o.claimed = true
	q := o.Question
	q.Flows = len(o.waiting)
	return q, nil
}

// Release gives a claimed question back unanswered.
func (b *Book) Release(id string) {
	b.mu.Lock()
	o := b.open[id]
	late, gone := false, false
	if o != nil {
		o.claimed = false
		late, gone = !o.Expires.After(b.now()), len(o.waiting) == 0
		if gone {
			b.end(o, "was withdrawn: nothing waits for its answer any more")
		}
	}
	b.mu.Unlock()
	switch {
	case gone:
		b.tell(o.Question, Withdrawn, Reply{})
	case late:
		b.expire(id)
	}
}

// Answer ends a claimed question. What is denied without a rule is not asked
// again for a while. It returns the question with the flows that were told.
func (b *Book) Answer(id string, r Reply) Question {
	b.mu.Lock()
	o := b.open[id]
	if o == nil || !o.claimed {
		b.mu.Unlock()
		return Question{}
	}
	if !r.Allow && !r.Rule {
		b.hush(o, r.Reason)
	}
	q := b.settle(o, r, "was answered already: "+r.Reason)
	b.mu.Unlock()
	b.tell(q, Answered, r)
	return q
}

// past keeps the latest entries, as many as remembered says.
type past[K comparable, V any] struct {
	entries map[K]V
	order   []K // oldest first, each once
}

func (p *past[K, V]) get(k K) (V, bool) {
	v, ok := p.entries[k]
	return v, ok
}

func (p *past[K, V]) put(k K, v V) {
	if p.entries == nil {
		p.entries = map[K]V{}
	}
	if _, ok := p.entries[k]; !ok {
		p.order = append(p.order, k)
	}
	p.entries[k] = v
	if len(p.order) > remembered {
		delete(p.entries, p.order[0])
		p.order = p.order[1:]
	}
}
