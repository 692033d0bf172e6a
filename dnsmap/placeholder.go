package dnsmap

import (
	"container/list"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Defaults of Placeholders.
const (
	DefaultMaxPlaceholders = 4096
	DefaultPlaceholderIdle = 10 * time.Minute
)

// placeholderTTL, in seconds: a client asks again soon after the name was
// allowed, and is told its addresses.
const placeholderTTL = 1

// reserved is where placeholders come from: class E, reserved for a use that
// never came (RFC 1112, 4), which no network on the internet has and Linux
// routes like any other. The last /8 has the broadcast address in it and is
// left out.
var reserved = netip.MustParsePrefix("240.0.0.0/4")

const (
	firstPlaceholder = 240 << 24
	placeholders     = 15 << 24 // how many there are
)

// Placeholders are the addresses that one container is given for names which
// nobody has allowed yet, in the place of their own: to learn those, the name
// would have to be sent out. What connects to a placeholder wants its name. The
// zero value is ready for use; fields must not change after the first call. It
// is safe for concurrent use.
//
// An address is not given to another name later. When all places are taken, the
// one that was used longest ago makes room, if that was Idle or longer ago.
type Placeholders struct {
	Max  int              // names; 0: DefaultMaxPlaceholders
	Idle time.Duration    // 0: DefaultPlaceholderIdle
	Now  func() time.Time // nil: time.Now

	mu    sync.Mutex
	names map[string]*list.Element
	addrs map[netip.Addr]*list.Element
	ages  list.List // of *placeholder, longest unused first
	next  uint32    // offset of the next address
}

type placeholder struct {
	name string
	addr netip.Addr
	used time.Time
}

// IsPlaceholder reports whether a is in the range that placeholders come from.
func IsPlaceholder(a netip.Addr) bool { return reserved.Contains(plain(a)) }

// For returns the address that stands for a canonical name; false when there is
// no room for another.
func (p *Placeholders) For(name string) (netip.Addr, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if e := p.names[name]; e != nil {
		return p.use(e, now).addr, true
	}
	if p.names == nil {
		p.names, p.addrs = map[string]*list.Element{}, map[netip.Addr]*list.Element{}
		// Not where an earlier process began: programs keep addresses for longer
		// than they are told to.
		p.next = rand.Uint32N(placeholders)
	}
	if len(p.names) >= orDefault(p.Max, DefaultMaxPlaceholders) {
		oldest := p.ages.Front().Value.(*placeholder)
		if now.Sub(oldest.used) < orDefault(p.Idle, DefaultPlaceholderIdle) {
			return netip.Addr{}, false
		}
		p.ages.Remove(p.names[oldest.name])
		delete(p.names, oldest.name)
		delete(p.addrs, oldest.addr)
	}
	one := &placeholder{name: name, addr: p.free(), used: now}
	e := p.ages.PushBack(one)
	p.names[name], p.addrs[one.addr] = e, e
	return one.addr, true
}

// free is an address that stands for nothing.
func (p *Placeholders) free() netip.Addr {
	for {
		p.next = (p.next + 1) % placeholders
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], firstPlaceholder+p.next)
		a := netip.AddrFrom4(b)
		if p.addrs[a] == nil {
			return a
		}
	}
}

// Name returns the name that an address stands for.
func (p *Placeholders) Name(a netip.Addr) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.addrs[plain(a)]
	if e == nil {
		return "", false
	}
	return p.use(e, p.now()).name, true
}

// use is for holders of mu.
func (p *Placeholders) use(e *list.Element, now time.Time) *placeholder {
	one := e.Value.(*placeholder)
	one.used = now
	p.ages.MoveToBack(e)
	return one
}

func (p *Placeholders) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}
