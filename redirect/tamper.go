package redirect

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
)

// TamperKind says what a Tamper is about.
type TamperKind string

const (
	// Ruleset: our table in the container's namespace was changed.
	Ruleset TamperKind = "ruleset"
	// ForeignChain: somebody's chain comes before ours and could lead packets
	// past it. It is reported, not removed.
	ForeignChain TamperKind = "foreign-chain"
	// NewInterface: the container got an interface.
	NewInterface TamperKind = "interface"
	// AddressChange: an interface got an address that the lock does not let out.
	AddressChange TamperKind = "address"
	// Routing: what leads captured datagrams to lo was changed.
	Routing TamperKind = "routing"
	// Deaf: a listener was destroyed (SOCK_DESTROY, sock_diag(7)). Nothing is
	// restored; it takes a new Install. Told every five seconds.
	Deaf TamperKind = "deaf"
	// HostLock: the lock in the host's namespace was changed.
	HostLock TamperKind = "host-lock"
)

// Tamper is a change that touched the capture.
type Tamper struct {
	Time time.Time
	Kind TamperKind
	What string // one line, without control characters
	// Restored says that the capture is whole again: the change was undone,
	// or the new interface is locked.
	Restored bool
	Err      error // why it is not; nil when it is and when there was nothing to restore
}

// fingerprint describes each part of our table. Handles are never used twice
// in a table, so a rule that was taken out and put back shows; another table with
// as many rules does not, see news.
type fingerprint map[string]string

func takeFingerprint(c *nftables.Conn, of *nftables.Table) (fingerprint, error) {
	table, err := findTable(c, of)
	if err != nil || table == nil {
		return nil, err
	}
	f := fingerprint{"table": fmt.Sprintf("flags %d", table.Flags)}
	chains, err := c.ListChainsOfTableFamily(of.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name != of.Name {
			continue
		}
		rules, err := c.GetRules(table, ch)
		if err != nil {
			return nil, fmt.Errorf("list the rules of chain %s: %w", ch.Name, err)
		}
		var b strings.Builder
		if ch.Hooknum != nil && ch.Priority != nil && ch.Policy != nil {
			fmt.Fprintf(&b, "%s hook %d priority %d policy %d:", ch.Type, *ch.Hooknum, *ch.Priority, *ch.Policy)
		}
		for _, r := range rules {
			fmt.Fprintf(&b, " %d", r.Handle)
		}
		f["chain "+ch.Name] = b.String()
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list the elements of set %s: %w", s.Name, err)
		}
		var keys []string
		for _, e := range elements {
			keys = append(keys, fmt.Sprintf("%x", e.Key))
		}
		slices.Sort(keys)
		f["set "+s.Name] = strings.Join(keys, " ")
	}
	return f, nil
}

// findTable returns nil without an error when there is no such table.
func findTable(c *nftables.Conn, of *nftables.Table) (*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(of.Family)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == of.Name {
			return t, nil
		}
	}
	return nil, nil
}

// differences says in one line how now differs from f; "" when it does not.
func (f fingerprint) differences(now fingerprint) string {
	if len(now) == 0 {
		return "table inet " + tableName + " was deleted"
	}
	var changes []string
	for _, part := range slices.Sorted(maps.Keys(f)) {
		switch got, ok := now[part]; {
		case !ok:
			changes = append(changes, part+" was deleted")
		case got != f[part]:
			changes = append(changes, part+" was changed")
		}
	}
	for _, part := range slices.Sorted(maps.Keys(now)) {
		if _, ok := f[part]; !ok {
			changes = append(changes, part+" was added")
		}
	}
	return strings.Join(changes, ", ")
}

// checkRuleset puts our table back if it is not as it was installed, and looks
// for chains of others.
func (a *Attachment) checkRuleset() ([]Tamper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil, ErrClosed
	}
	found := a.verify()
	foreign, err := a.checkForeign()
	return append(found, foreign...), err
}

// verify compares our table with what was installed and restores it. A table
// that cannot be listed, because parts disappear meanwhile, counts as changed;
// so does one that somebody changed and that looks as it did. When the restoring
// fails the next look does it again.
func (a *Attachment) verify() []Tamper {
	known := a.news.look()
	now, err := takeFingerprint(a.conn, a.rules.table)
	if err != nil {
		// Once more: a table that was deleted in the middle of it is gone now.
		now, err = takeFingerprint(a.conn, a.rules.table)
	}
	var what string
	if err != nil {
		what = "it changes while it is listed: " + err.Error()
	} else if what = a.print.differences(now); what == "" && known == touched {
		what = "table inet " + tableName + " was changed, and looks as before"
	}
	if what == "" && known == untouched {
		return nil
	}
	if err = a.restore(); err != nil {
		a.news.again(known)
	} else if what == "" {
		return nil
	}
	return []Tamper{{Time: time.Now(), Kind: Ruleset, What: clean(cmp.Or(what, "table inet "+tableName+" is not known to be whole")), Restored: err == nil, Err: err}}
}

func (a *Attachment) restore() error {
	if err := a.rules.install(a.conn, a.links.uplinkIndexes(a.interfaces)); err != nil {
		return err
	}
	a.news.put()
	now, err := takeFingerprint(a.conn, a.rules.table)
	if err == nil {
		a.print = now
	}
	return err
}

// checkForeign reports base chains of others that could lead packets past
// ours, each once for as long as it is there.
func (a *Attachment) checkForeign() ([]Tamper, error) {
	chains, err := a.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of namespace %s: %w", a.ns.ID(), err)
	}
	var found []Tamper
	seen := map[string]bool{}
	for _, ch := range chains {
		why := bypass(ch)
		if why == "" {
			continue
		}
		id := fmt.Sprintf("%s %s %s priority %d", familyName(ch.Table.Family), ch.Table.Name, ch.Name, *ch.Priority)
		seen[id] = true
		if !a.foreign[id] {
			found = append(found, Tamper{Time: time.Now(), Kind: ForeignChain, What: clean("chain " + id + ": " + why)})
		}
	}
	a.foreign = seen
	return found, nil
}

// bypass says how a base chain could lead packets past ours; "" if it cannot.
// What it sends out is stopped by the host's lock all the same.
func bypass(ch *nftables.Chain) string {
	if ch.Hooknum == nil || ch.Priority == nil {
		return ""
	}
	hook, priority := *ch.Hooknum, *ch.Priority
	switch ch.Table.Family {
	case nftables.TableFamilyNetdev:
		return "it sees frames outside of the ruleset and can send them on"
	case nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6:
	default:
		return ""
	}
	if ch.Table.Family == nftables.TableFamilyINet && ch.Table.Name == tableName {
		return ""
	}
	before := hook == *nftables.ChainHookOutput || hook == *nftables.ChainHookPrerouting
	switch {
	case before && ch.Type == nftables.ChainTypeNAT && priority <= natPriority:
		return "it translates destinations before the capture"
	case before && priority <= natPriority:
		return "it can change packets or take them out of connection tracking before the capture"
	case hook == *nftables.ChainHookPostrouting && ch.Type != nftables.ChainTypeNAT:
		return "it can change packets after they were judged"
	}
	return ""
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprintf("family %d", f)
}

// clean makes names that the container chose fit for a line of a log.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}
