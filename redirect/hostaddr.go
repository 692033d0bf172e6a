package redirect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// HostAddresses are the addresses of the namespace that this process runs in,
// loopback included, sorted and each once, without zones.
func HostAddresses() ([]netip.Addr, error) {
	host, err := own()
	if err != nil {
		return nil, err
	}
	addrs, err := hostAddresses(host)
	return addrs, errors.Join(err, host.Close())
}

func hostAddresses(host *NetNS) ([]netip.Addr, error) {
	h, err := netlink.NewHandleAt(host.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	found, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, ip.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}

// WatchHostAddresses calls report with the host's addresses, as HostAddresses
// gives them, at once and whenever they have changed, one call at a time,
// until ctx ends. Changes during a call come as one. It returns nil when ctx
// ends, else what failed.
func WatchHostAddresses(ctx context.Context, report func([]netip.Addr)) error {
	host, err := own()
	if err != nil {
		return err
	}
	defer host.Close()
	g, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	g.Go(func() error {
		return follow(ctx, host, unix.NETLINK_ROUTE, []uint32{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}, changed, nil)
	})
	g.Go(func() error {
		var last []netip.Addr
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			now, err := hostAddresses(host)
			if err != nil {
				return err
			}
			if !slices.Equal(last, now) {
				report(now)
				last = now
			}
		}
	})
	return g.Wait()
}
