package selftest

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// express sends the attack's frame by an AF_XDP socket, which hands it to the
// driver past everything else (Documentation/networking/af_xdp.rst). A kernel
// without such sockets has no such way out.
func express(t target) error {
	frame, link, err := t.frame()
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const size, slots, prot = 4096, 8, unix.PROT_READ | unix.PROT_WRITE
	memory, err := unix.Mmap(-1, 0, size*slots, prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(memory) }()
	region := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&memory[0]))), Len: uint64(len(memory)), Size: size}
	if err := option(fd, unix.XDP_UMEM_REG, unsafe.Pointer(&region), unsafe.Sizeof(region)); err != nil {
		return fmt.Errorf("memory of an XDP socket: %w", err)
	}
	// The two rings of the memory have to be there, used or not.
	for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, ring, slots); err != nil {
			return err
		}
	}
	var offsets unix.XDPMmapOffsets
	length := uint32(unsafe.Sizeof(offsets))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&offsets)), uintptr(unsafe.Pointer(&length)), 0); errno != 0 {
		return errno
	}
	ring, err := unix.Mmap(fd, unix.XDP_PGOFF_TX_RING, int(offsets.Tx.Desc)+slots*int(unsafe.Sizeof(unix.XDPDesc{})), prot, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(ring) }()
	if err := unix.Bind(fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(link.Attrs().Index)}); err != nil {
		return fmt.Errorf("bind an XDP socket: %w", err)
	}
	const copies = 3
	for i := range copies {
		copy(memory[i*size:], frame)
		at := int(offsets.Tx.Desc) + i*int(unsafe.Sizeof(unix.XDPDesc{}))
		*(*unix.XDPDesc)(unsafe.Pointer(&ring[at])) = unix.XDPDesc{Addr: uint64(i * size), Len: uint32(len(frame))}
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&ring[offsets.Tx.Producer])), copies)
	for range copies {
		if err := unix.Sendto(fd, nil, unix.MSG_DONTWAIT, nil); err != nil && !errors.Is(err, unix.EPERM) &&
			!errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return nil
}

// option sets a socket option of AF_XDP that is a structure.
func option(fd, name int, value unsafe.Pointer, size uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(name), uintptr(value), size, 0); errno != 0 {
		return errno
	}
	return nil
}
