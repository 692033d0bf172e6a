package e2e

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
)

// inside calls f on a thread in a network namespace.
func inside(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// watch records every packet that reaches address: the canary. The returned
// function tells what came since the last call.
func (o *Outside) watch(address string) (seen func() []string) {
	o.t.Helper()
	want := netip.MustParseAddr(address)
	return sniff(o.t, o.ns, func(p []byte) bool { return destination(p) == want })
}

// sniff records the IP packets that come into a namespace and match. The
// returned function tells what came since the last call.
func sniff(t testing.TB, ns netns.NsHandle, match func(packet []byte) bool) (seen func() []string) {
	t.Helper()
	var fd int
	err := inside(ns, func() (err error) {
		fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM, int(htons(syscall.ETH_P_ALL)))
		return
	})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var packets []string
	done := make(chan struct{})
	timeout := syscall.Timeval{Usec: 100_000}
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := syscall.Recvfrom(fd, buf, 0)
			if err != nil {
				continue
			}
			if ll, ok := from.(*syscall.SockaddrLinklayer); ok && ll.Pkttype == syscall.PACKET_OUTGOING {
				continue
			}
			if match(buf[:n]) {
				mu.Lock()
				packets = append(packets, fmt.Sprintf("%x", buf[:min(n, 60)]))
				mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done; syscall.Close(fd) })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		list := packets
		packets = nil
		return list
	}
}

// destination reads the destination address of an IP packet.
func destination(p []byte) netip.Addr {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:20]))
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:40]))
	}
	return netip.Addr{}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
