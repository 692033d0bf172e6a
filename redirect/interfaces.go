package redirect

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// lockInterfaces looks at the container's interfaces and locks all that can
// be. An interface may disappear between the look and the lock, so it looks
// three times before it gives up. a.mu is held, or a is not shared yet.
func (a *Attachment) lockInterfaces() error {
	var err error
	for range 3 {
		var list []Interface
		if list, err = a.links.list(); err != nil {
			return err
		}
		a.keep(list)
		if err = a.lock.install(list); err == nil {
			for i := range list {
				list[i].Locked = list[i].Host != ""
			}
			a.interfaces = list
			return nil
		}
	}
	return err
}

// keep carries what was settled over to a new list.
func (a *Attachment) keep(list []Interface) {
	for n := range list {
		i := &list[n]
		if old := a.known(*i); old != nil {
			i.Locked, i.reported = old.Locked, old.reported
			if old.settled {
				i.settled, i.mac, i.addrs = true, old.mac, old.addrs
			}
		}
		i.settled = i.settled || i.up && slices.ContainsFunc(i.addrs, isGlobal)
	}
}

// known finds the interface as it was seen last; nil if it is new.
func (a *Attachment) known(i Interface) *Interface {
	n := slices.IndexFunc(a.interfaces, func(o Interface) bool { return o.index == i.index && o.Host == i.Host })
	if n < 0 {
		return nil
	}
	return &a.interfaces[n]
}

// checkInterfaces locks interfaces that have come, and reports changes of the
// others. The lock of one that has left the namespace stays: its host's end
// may live on, leading into a namespace nested in the container.
func (a *Attachment) checkInterfaces() ([]Tamper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil, ErrClosed
	}
	list, err := a.links.list()
	if err != nil {
		return nil, err
	}
	list, found := a.evictOutside(list)
	var arrived []int
	relock := false
	for _, i := range list {
		old := a.known(i)
		switch {
		case old == nil:
			relock = true
			if i.uplink {
				arrived = append(arrived, i.index)
			}
		case !old.settled:
			relock = relock || !sameSender(*old, i) || old.up != i.up
		case !old.reported && !sameSender(*old, i):
			old.reported = true
			found = append(found, Tamper{Time: time.Now(), Kind: AddressChange, What: clean(fmt.Sprintf(
				"interface %s has other addresses than when it was locked; what it sends from them is dropped", i.Name))})
		}
	}
	before := a.links.uplinkIndexes(a.interfaces)
	if relock {
		err = a.lockInterfaces()
	} else {
		a.keep(list)
		a.interfaces = list
	}
	for _, i := range a.interfaces {
		if slices.Contains(arrived, i.index) {
			found = append(found, arrival(i))
		}
	}
	if err != nil {
		return found, err
	}
	after := a.links.uplinkIndexes(a.interfaces)
	if slices.Equal(before, after) {
		return found, nil
	}
	// The whole table is put in anew, with the new uplinks: to change the set
	// in a table that somebody else has changed would adopt the change.
	found = append(found, a.verify()...)
	return found, a.restore()
}

// evictOutside removes interfaces that have come and stand outside, when that
// was asked for; what cannot be removed stays in the list. They send until
// then, which is up to some tens of milliseconds: see restorePause.
func (a *Attachment) evictOutside(list []Interface) (left []Interface, found []Tamper) {
	for _, i := range list {
		if !a.evict || !i.outside || a.known(i) != nil {
			left = append(left, i)
			continue
		}
		t := Tamper{Time: time.Now(), Kind: NewInterface, Err: a.links.remove(i)}
		t.Restored = t.Err == nil
		t.What = clean(fmt.Sprintf("interface %s has come and was removed: %s", i.Name, i.Reason))
		if t.Err != nil {
			t.What = clean(fmt.Sprintf("interface %s has come and could not be removed: %s", i.Name, i.Reason))
			left = append(left, i)
		}
		found = append(found, t)
	}
	return left, found
}

// arrival tells of a new interface.
func arrival(i Interface) Tamper {
	t := Tamper{Time: time.Now(), Kind: NewInterface, Restored: i.Reason == ""}
	switch {
	case i.Locked:
		t.What = clean(fmt.Sprintf("interface %s has come, its host's end %s is locked", i.Name, i.Host))
	case i.Reason == "":
		t.What = clean(fmt.Sprintf("interface %s has come, it needs no lock of its own", i.Name))
	default:
		t.What = clean(fmt.Sprintf("interface %s has come and is not locked: %s", i.Name, i.Reason))
		t.Err = fmt.Errorf("interface %s cannot be locked on the host: %s", clean(i.Name), i.Reason)
	}
	return t
}

// sameSender says whether now sends under no other names than old, as far as
// the lock cares: an address that went away is no news, nor is a link-local
// one that came, which the kernel makes by itself.
func sameSender(old, now Interface) bool {
	return bytes.Equal(old.mac, now.mac) && !slices.ContainsFunc(now.addrs, func(a netip.Addr) bool {
		return isGlobal(a) && !slices.Contains(old.addrs, a)
	})
}

// checkHostLock puts the lock in the host's namespace back if the host's
// administrator, or a tool of theirs, has taken it away.
func (a *Attachment) checkHostLock() ([]Tamper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return nil, ErrClosed
	}
	what, err := a.lock.damage(a.interfaces)
	if err != nil || what == "" {
		return nil, err
	}
	t := Tamper{Time: time.Now(), Kind: HostLock, What: clean(what)}
	t.Err = a.lockInterfaces()
	t.Restored = t.Err == nil
	return []Tamper{t}, nil
}

func isGlobal(a netip.Addr) bool { return !a.IsLinkLocalUnicast() }
