package dnsmap

import (
	"container/heap"
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Defaults of a Table.
const (
	DefaultGrace      = 60 * time.Second
	DefaultMaxTTL     = 24 * time.Hour
	DefaultMaxEntries = 10_000
	DefaultMaxPerName = 64
	DefaultMaxPerAddr = 256
)

// minTTL is how long an answer counts at least, before the grace period: an
// answer with TTL 0 is still used by the connection it was asked for.
const minTTL = time.Second

// Table holds what one container's DNS answers said: which addresses belong
// to which names, and until when. It is never shared between containers. The
// zero Table is ready for use; its fields must not change after the first
// call. It is safe for concurrent use.
//
// It is bounded. When it is full, a new answer takes the place of the entry
// that ran out first, or else of the one that was answered longest ago.
// Entries that a live flow holds are never taken; when all are held, nothing
// more is learned, and connections to such addresses have no name.
type Table struct {
	Grace      time.Duration    // how long an entry counts after its TTL; 0: DefaultGrace
	MaxTTL     time.Duration    // longer TTLs are cut; 0: DefaultMaxTTL
	MaxEntries int              // pairs of name and address; 0: DefaultMaxEntries
	MaxPerName int              // addresses of one name; 0: DefaultMaxPerName
	MaxPerAddr int              // names of one address; 0: DefaultMaxPerAddr
	Now        func() time.Time // nil: time.Now

	mu      sync.RWMutex
	started time.Time // all times below count from here, on the monotonic clock where it has one
	addrs   map[netip.Addr]*names
	byName  map[string][]*entry // oldest answer first
	ages    list.List           // of *entry that are not held, oldest answer first
	expiry  expiryHeap          // of *entry that are not held
	count   int
}

// Entry is one name and address that a container was told.
type Entry struct {
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"address"`
	Learned time.Time  `json:"learned_at"` // the last answer that said so
	Expires time.Time  `json:"expires_at"` // grace included; the entry counts while Expires > now
	Flows   int        `json:"flows"`      // live flows that hold it beyond Expires
}

// Answer is an address of a name with the time to live it came with.
type Answer struct {
	Addr netip.Addr
	TTL  time.Duration
}

type entry struct {
	name    string
	addr    netip.Addr
	learned time.Duration
	expires time.Duration
	flows   int
	index   int           // in expiry; -1 while held
	age     *list.Element // in ages; nil while held
}

// names are the entries of one address.
type names struct {
	entries []*entry
	list    []string      // their names; only ever appended to or replaced, so that readers may keep it
	until   time.Duration // list is exact until then
}

const forever = time.Duration(1<<63 - 1)

// Learn notes that name was answered with addr. name must be canonical.
func (t *Table) Learn(name string, addr netip.Addr, ttl time.Duration) {
	t.LearnAll(name, []Answer{{addr, ttl}})
}

// LearnAll notes all addresses of one answer. Answers never shorten what an
// earlier one promised.
func (t *Table) LearnAll(name string, answers []Answer) {
	if len(answers) == 0 || name == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.elapsed()
	t.dropExpired(now)
	for _, a := range answers {
		ttl := min(max(a.TTL, minTTL), orDefault(t.MaxTTL, DefaultMaxTTL))
		t.put(name, plain(a.Addr), now, now+ttl+orDefault(t.Grace, DefaultGrace))
	}
}

// Names returns the names that addr was answered for and that still count at
// now, in the order in which they were first learned. The caller must not
// change the slice. It does not allocate unless one of them has run out.
func (t *Table) Names(addr netip.Addr, now time.Time) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	a := t.addrs[plain(addr)]
	if a == nil {
		return nil
	}
	at := now.Sub(t.started)
	if at < a.until {
		return a.list
	}
	var live []string
	for _, e := range a.entries {
		if e.flows > 0 || e.expires > at {
			live = append(live, e.name)
		}
	}
	return live
}

// Hold makes the entry count for as long as a flow that relies on it lives,
// however short its TTL was. The flow calls release when it ends; calling it
// again does nothing. Without such an entry ok is false and release does
// nothing.
func (t *Table) Hold(name string, addr netip.Addr) (release func(), ok bool) {
	addr = plain(addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.find(name, addr)
	if e == nil {
		return func() {}, false
	}
	e.flows++
	if e.flows == 1 {
		heap.Remove(&t.expiry, e.index)
		t.ages.Remove(e.age)
		e.age = nil
		t.addrs[addr].measure()
	}
	return sync.OnceFunc(func() { t.release(e) }), true
}

func (t *Table) release(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.flows--
	if e.flows == 0 {
		heap.Push(&t.expiry, e)
		e.age = t.ages.PushBack(e)
		t.addrs[e.addr].measure()
	}
}

// Entries returns everything that still counts, in no particular order. It is
// also what Restore takes.
func (t *Table) Entries() []Entry {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.count == 0 {
		return nil
	}
	wall := t.now()
	now := wall.Sub(t.started)
	wall = wall.Round(0).UTC() // an instant for others, without this process's monotonic reading
	out := make([]Entry, 0, t.count)
	for _, es := range t.byName {
		for _, e := range es {
			if e.flows == 0 && e.expires <= now {
				continue
			}
			out = append(out, Entry{e.name, e.addr, wall.Add(e.learned - now), wall.Add(e.expires - now), e.flows})
		}
	}
	return out
}

// Restore adds entries that an earlier process exported, for what is left of
// their time; those that have run out are left out. Their holds are not
// restored: flows do not outlive the process.
func (t *Table) Restore(entries []Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.elapsed()
	wall := t.now().Round(0)
	longest := orDefault(t.MaxTTL, DefaultMaxTTL) + orDefault(t.Grace, DefaultGrace)
	for _, e := range entries {
		left := min(e.Expires.Sub(wall), longest)
		if left <= 0 || e.Name == "" || !e.Addr.IsValid() {
			continue
		}
		t.put(e.Name, plain(e.Addr), now, now+left)
	}
}

// put adds or refreshes one entry; it makes room first.
func (t *Table) put(name string, addr netip.Addr, now, expires time.Duration) {
	if !addr.IsValid() {
		return
	}
	if e := t.find(name, addr); e != nil {
		t.refresh(e, now, expires)
		return
	}
	if es := t.byName[name]; len(es) >= orDefault(t.MaxPerName, DefaultMaxPerName) && !t.evictFrom(es) {
		return
	}
	if a := t.addrs[addr]; a != nil && len(a.entries) >= orDefault(t.MaxPerAddr, DefaultMaxPerAddr) && !t.evictFrom(a.entries) {
		return
	}
	if t.count >= orDefault(t.MaxEntries, DefaultMaxEntries) && !t.evictOldest() {
		return
	}
	e := &entry{name: name, addr: addr, learned: now, expires: expires}
	if t.addrs == nil {
		t.addrs = map[netip.Addr]*names{}
		t.byName = map[string][]*entry{}
	}
	a := t.addrs[addr]
	if a == nil {
		a = &names{}
		t.addrs[addr] = a
	}
	a.entries = append(a.entries, e)
	a.list = append(a.list, name)
	a.measure()
	t.byName[name] = append(t.byName[name], e)
	heap.Push(&t.expiry, e)
	e.age = t.ages.PushBack(e)
	t.count++
}

func (t *Table) refresh(e *entry, now, expires time.Duration) {
	e.learned = now
	if e.age != nil {
		t.ages.MoveToBack(e.age)
	}
	if expires <= e.expires {
		return
	}
	a := t.addrs[e.addr]
	first := e.expires == a.until
	e.expires = expires
	if e.flows == 0 {
		heap.Fix(&t.expiry, e.index)
	}
	if first {
		a.measure()
	}
}

func (t *Table) find(name string, addr netip.Addr) *entry {
	for _, e := range t.byName[name] {
		if e.addr == addr {
			return e
		}
	}
	return nil
}

// dropExpired takes away a few entries that have run out, so that the work of
// cleaning up is spread over the answers.
func (t *Table) dropExpired(now time.Duration) {
	for range 16 {
		if len(t.expiry) == 0 || t.expiry[0].expires > now {
			return
		}
		t.remove(t.expiry[0])
	}
}

// evictOldest makes room for one entry. Whatever has run out comes first; the
// caller has dropped a few of those already.
func (t *Table) evictOldest() bool {
	oldest := t.ages.Front()
	if oldest == nil {
		return false
	}
	e := oldest.Value.(*entry)
	if t.expiry[0].expires <= t.elapsed() {
		e = t.expiry[0]
	}
	t.remove(e)
	return true
}

// evictFrom removes the entry of es that was answered longest ago and is not held.
func (t *Table) evictFrom(es []*entry) bool {
	var oldest *entry
	for _, e := range es {
		if e.flows == 0 && (oldest == nil || e.learned < oldest.learned) {
			oldest = e
		}
	}
	if oldest == nil {
		return false
	}
	t.remove(oldest)
	return true
}

func (t *Table) remove(e *entry) {
	heap.Remove(&t.expiry, e.index)
	t.ages.Remove(e.age)
	e.age = nil
	t.count--

	a := t.addrs[e.addr]
	if a.entries = without(a.entries, e); len(a.entries) == 0 {
		delete(t.addrs, e.addr)
	} else {
		a.rebuild()
	}
	if rest := without(t.byName[e.name], e); len(rest) == 0 {
		delete(t.byName, e.name)
	} else {
		t.byName[e.name] = rest
	}
}

func (t *Table) now() time.Time {
	if t.Now == nil {
		return time.Now()
	}
	return t.Now()
}

// elapsed is the time since the table's first use. time.Time.Sub compares the
// monotonic readings, so setting the wall clock expires nothing.
func (t *Table) elapsed() time.Duration {
	now := t.now()
	if t.started.IsZero() {
		t.started = now
	}
	return now.Sub(t.started)
}

func (a *names) rebuild() {
	a.list = make([]string, len(a.entries))
	for i, e := range a.entries {
		a.list[i] = e.name
	}
	a.measure()
}

// measure finds out until when all names of a count.
func (a *names) measure() {
	a.until = forever
	for _, e := range a.entries {
		if e.flows == 0 {
			a.until = min(a.until, e.expires)
		}
	}
}

// plain is the form under which an address is kept: IPv4-mapped IPv6 is the
// IPv4 address, and a zone says nothing about who it is.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func without(es []*entry, gone *entry) []*entry {
	return slices.DeleteFunc(es, func(e *entry) bool { return e == gone })
}

func orDefault[T int | time.Duration](v, standard T) T {
	if v == 0 {
		return standard
	}
	return v
}

// expiryHeap orders entries by when they run out.
type expiryHeap []*entry

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].expires < h[j].expires }
func (h expiryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *expiryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *expiryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
