package dnsmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"weir/rules"
)

// Defaults of an Upstream.
const (
	DefaultTimeout    = 1500 * time.Millisecond
	DefaultTries      = 3
	DefaultCacheBytes = 16 << 20
)

// maxFlights is how many different questions may be under way upstream, for
// all containers together; a question beyond that fails at once.
const maxFlights = 2048

// ErrNoServers says that there is nobody to ask.
var ErrNoServers = errors.New("no upstream dns server is known; set one in the configuration or in /etc/resolv.conf")

// Upstream asks the machine's own DNS servers on behalf of all containers. It
// caches answers, asks the same question once however many wait for it, and
// goes to the next server when one does not answer. The zero Upstream is
// ready for use; its fields must not change after the first call. It is safe
// for concurrent use.
//
// The cache is shared: by the time it takes, a container may notice that
// another one asked for the same name. It can do so only for names that its
// own policy allows.
type Upstream struct {
	// Servers are asked in this order. Empty: those of ResolvConf.
	Servers []netip.AddrPort
	// ResolvConf are files in resolv.conf's format, read again when they
	// change. The first that names a server other than systemd-resolved's own
	// stub counts. Empty: /etc/resolv.conf, /run/systemd/resolve/resolv.conf.
	ResolvConf []string
	// Exclude are addresses that are never asked: Weir's own listeners.
	Exclude []netip.AddrPort

	Timeout    time.Duration    // per try; 0: DefaultTimeout
	Tries      int              // over all servers; 0: DefaultTries
	CacheBytes int              // 0: DefaultCacheBytes; negative: no cache
	Now        func() time.Time // nil: time.Now
	// Asked is told of each question that had to be put to the servers, how
	// long that took, and whether one of them answered. It must not block.
	// nil: nobody is told.
	Asked func(took time.Duration, answered bool)

	once    sync.Once
	cache   *cache
	mu      sync.Mutex
	flights map[key]*flight
	closed  bool

	list serverList
}

// flight is one question under way and who waits for its answer. Each
// container bounds how many of its own queries wait.
type flight struct {
	done []func(*answer)
}

// Resolve returns the IPv4 and IPv6 addresses of name and how long they hold.
// A name that does not exist has none. An error means that no server gave an
// answer for either family, or that ctx ended.
func (u *Upstream) Resolve(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	canonical, err := rules.CanonicalName(name)
	if err != nil {
		return nil, 0, err
	}
	got := make(chan *answer, 2)
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		u.ask(key{canonical, qtype}, func(a *answer) { got <- a })
	}
	var addrs []netip.Addr
	var ttl time.Duration
	failures := 0
	for range 2 {
		select {
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("resolving %s: %w", canonical, ctx.Err())
		case a := <-got:
			if a.rcode != dns.RcodeSuccess && a.rcode != dns.RcodeNameError {
				failures++
			}
			for _, x := range a.learned(u.now()) {
				if len(addrs) == 0 || x.TTL < ttl {
					ttl = x.TTL
				}
				addrs = append(addrs, x.Addr)
			}
		}
	}
	if failures == 2 {
		return nil, 0, fmt.Errorf("resolving %s: no upstream server answered", canonical)
	}
	return addrs, ttl, nil
}

// Close ends the sockets to the servers; queries under way fail.
func (u *Upstream) Close() error {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.list.close()
	return nil
}

// cached returns nil when upstream would have to be asked.
func (u *Upstream) cached(k key) *answer {
	u.start()
	if u.cache == nil {
		return nil
	}
	return u.cache.get(k, u.now())
}

// ask calls done exactly once: at once, or from another goroutine within
// Timeout × Tries for UDP and as much again for TCP. done must not block.
func (u *Upstream) ask(k key, done func(*answer)) {
	u.start()
	u.mu.Lock()
	if a := u.cached(k); a != nil { // it may have come since the caller looked
		u.mu.Unlock()
		done(a)
		return
	}
	if f := u.flights[k]; f != nil {
		f.done = append(f.done, done)
		u.mu.Unlock()
		return
	}
	if len(u.flights) >= maxFlights || u.closed {
		u.mu.Unlock()
		done(failure(k.name, k.qtype, u.now()))
		return
	}
	f := &flight{done: []func(*answer){done}}
	u.flights[k] = f
	u.mu.Unlock()
	go u.fly(k, f)
}

// fly asks upstream and hands the answer to all who wait for it by then.
func (u *Upstream) fly(k key, f *flight) {
	began := time.Now()
	a, err := u.query(k)
	if u.Asked != nil {
		u.Asked(time.Since(began), err == nil)
	}
	if err != nil {
		a = failure(k.name, k.qtype, u.now())
	}
	u.mu.Lock()
	if u.cache != nil {
		u.cache.put(k, a, u.now())
	}
	delete(u.flights, k)
	waiting := f.done
	u.mu.Unlock()
	for _, done := range waiting {
		done(a)
	}
}

// query asks one server after the other.
func (u *Upstream) query(k key) (*answer, error) {
	servers := u.list.inOrder(u)
	if len(servers) == 0 {
		return nil, ErrNoServers
	}
	question := appendName(make([]byte, 0, len(k.name)+6), k.name)
	question = binary.BigEndian.AppendUint16(question, k.qtype)
	question = binary.BigEndian.AppendUint16(question, dns.ClassINET)
	var failed error
	for try := range orDefault(u.Tries, DefaultTries) {
		s := servers[try%len(servers)]
		raw, err := s.exchange(question, orDefault(u.Timeout, DefaultTimeout))
		if err != nil {
			if failed = err; !errors.Is(err, errBusy) {
				s.failed(u.now())
			}
			continue
		}
		s.worked()
		if rcode := int(raw[3] & 15); rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError {
			failed = fmt.Errorf("dns server %s: %s", s.addr, dns.RcodeToString[rcode])
			continue
		}
		return clean(raw, k.name, k.qtype, u.now())
	}
	return nil, failed
}

func (u *Upstream) start() {
	u.once.Do(func() {
		u.flights = map[key]*flight{}
		if bytes := orDefault(u.CacheBytes, DefaultCacheBytes); bytes > 0 {
			u.cache = newCache(bytes)
		}
	})
}

func (u *Upstream) now() time.Time {
	if u.Now == nil {
		return time.Now()
	}
	return u.Now()
}

func (u *Upstream) excluded(a netip.AddrPort) bool { return slices.Contains(u.Exclude, a) }
