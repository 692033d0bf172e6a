package redirect

import (
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What is known of changes to our table that others made since it was put there.
const (
	untouched = iota
	// unheard: none, but before now they could not be heard of.
	unheard
	// touched: it was changed, and may look as before again.
	touched
)

// news are what the kernel tells of changes to our table. Looking at the table
// does not find out who changes it for a moment only, or puts another one of
// the same looks in its place.
type news struct {
	// port is netlink's number for the connection by which we change the table.
	port uint32

	mu    sync.Mutex
	state int
	own   bool // of the commit that is being told: it puts our table there
	// How often our table was put there, and how often that was told: what
	// others did before is undone by it.
	installed, told int
}

// take is given the messages about nftables in the container's namespace: none
// when they begin to come, an error when some were lost. It returns whether the
// rest of a commit is on its way; its last message is that of the new
// generation (nf_tables_gen_notify in net/netfilter/nf_tables_api.c).
func (n *news) take(messages []netlink.Message, lost error) (more bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if lost != nil {
		n.state, n.own, n.told = touched, false, n.installed
		return false
	}
	if messages == nil {
		n.state, n.told = max(n.state, unheard), n.installed
	}
	for _, m := range messages {
		switch kind := int(m.Header.Type) & 0xff; {
		case kind == unix.NFT_MSG_NEWGEN:
			more = false
			if n.own {
				n.state, n.own = untouched, false
				n.told++
			}
			continue
		case m.Header.PID != n.port:
			if aboutTable(m.Data) {
				n.state = touched
			}
		case kind == unix.NFT_MSG_NEWTABLE:
			n.own = true
		}
		more = true
	}
	return more
}

// put notes that our table was put there.
func (n *news) put() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.installed++
}

// look returns what is known and forgets it. What was told before our table was
// put there the last time waits until that is told, too.
func (n *news) look() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == touched && n.installed > n.told {
		return untouched
	}
	known := n.state
	n.state = untouched
	return known
}

// again has the next look find what one has found already.
func (n *news) again(known int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = max(n.state, known)
}

// aboutTable reports whether a message of nftables is about our table or a part
// of it: a struct nfgenmsg, whose first byte is the family, and attributes, of
// which number 1 is the table's name in all of them.
func aboutTable(data []byte) bool {
	const head, nameOfTable = 4, 1
	if len(data) < head || data[0] != unix.NFPROTO_INET {
		return false
	}
	attributes, err := netlink.NewAttributeDecoder(data[head:])
	if err != nil {
		return true
	}
	for attributes.Next() {
		if attributes.Type() == nameOfTable {
			return attributes.String() == tableName
		}
	}
	return attributes.Err() != nil
}
