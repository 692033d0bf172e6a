package dnsmap

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// recheck is how often resolv.conf is looked at for changes.
const recheck = 5 * time.Second

// maxServers is how many servers are taken from the configuration.
const maxServers = 8

// stubs are systemd-resolved's own listeners. What it asks itself is in its
// resolv.conf; asking that directly saves a hop, and its cache would hide
// short TTLs.
var stubs = []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("127.0.0.54")}

// serverList is the servers in use; it follows resolv.conf.
type serverList struct {
	mu      sync.Mutex
	servers []*server
	looked  time.Time
	files   []fileState
}

type fileState struct {
	size    int64
	changed time.Time
}

// inOrder returns the servers, those that answered last time first.
func (l *serverList) inOrder(u *Upstream) []*server {
	now := u.now()
	l.mu.Lock()
	l.refresh(u, now)
	servers := slices.Clone(l.servers)
	l.mu.Unlock()
	slices.SortStableFunc(servers, func(a, b *server) int {
		switch down := a.isDown(now); {
		case down == b.isDown(now):
			return 0
		case down:
			return 1
		}
		return -1
	})
	return servers
}

func (l *serverList) refresh(u *Upstream, now time.Time) {
	if l.servers != nil && (len(u.Servers) > 0 || now.Sub(l.looked) < recheck) {
		return
	}
	l.looked = now
	wanted := u.Servers
	if len(wanted) == 0 {
		paths := u.ResolvConf
		if len(paths) == 0 {
			paths = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
		}
		files := stat(paths)
		if l.servers != nil && slices.Equal(files, l.files) {
			return
		}
		l.files = files
		wanted = fromFiles(paths)
	}
	l.use(slices.DeleteFunc(slices.Clone(wanted), u.excluded))
}

// use replaces the servers. One that stays keeps its sockets and health. With
// nobody wanted, those known so far are kept: a resolv.conf that is being
// rewritten is empty for a moment.
func (l *serverList) use(wanted []netip.AddrPort) {
	if len(wanted) == 0 {
		return
	}
	old := l.servers
	l.servers = nil
	for _, a := range wanted[:min(len(wanted), maxServers)] {
		i := slices.IndexFunc(old, func(s *server) bool { return s.addr == a })
		if i < 0 {
			l.servers = append(l.servers, &server{addr: a, tcp: make(chan struct{}, tcpPerServer)})
			continue
		}
		l.servers = append(l.servers, old[i])
		old = slices.Delete(slices.Clone(old), i, i+1)
	}
	for _, s := range old {
		s.close()
	}
}

func (l *serverList) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.servers {
		s.close()
	}
}

func stat(paths []string) []fileState {
	out := make([]fileState, len(paths))
	for i, p := range paths {
		if f, err := os.Stat(p); err == nil {
			out[i] = fileState{f.Size(), f.ModTime()}
		}
	}
	return out
}

// fromFiles returns the servers of the first file that names one besides the
// stubs, or else the stubs.
func fromFiles(paths []string) []netip.AddrPort {
	var last []netip.AddrPort
	for _, p := range paths {
		conf, err := dns.ClientConfigFromFile(p)
		if err != nil {
			continue
		}
		var stub, real []netip.AddrPort
		for _, text := range conf.Servers {
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil:
			case slices.Contains(stubs, a):
				stub = append(stub, netip.AddrPortFrom(a, 53))
			default:
				real = append(real, netip.AddrPortFrom(a, 53))
			}
		}
		if len(real) > 0 {
			return real
		}
		last = append(last, stub...)
	}
	return last
}
