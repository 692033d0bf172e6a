package redirect

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NetNS is an open handle on a network namespace. It keeps the namespace
// alive until Close. Its methods may be called from several goroutines.
type NetNS struct {
	file *os.File
	id   string
}

// Open opens the network namespace at path, for example /proc/PID/ns/net or
// /run/netns/NAME. A path that is something else is an error.
func Open(path string) (*NetNS, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns, err := identify(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return ns, nil
}

// identify checks that file is a network namespace (ioctl_ns(2)) and names it.
func identify(file *os.File) (*NetNS, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%s is not a network namespace; give a path such as /proc/PID/ns/net", file.Name())
	}
	return &NetNS{file: file, id: fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)}, nil
}

// own opens the namespace of this process. It asks for the calling thread's:
// /proc/self is the main thread, which do may have sent elsewhere.
func own() (*NetNS, error) { return Open("/proc/thread-self/ns/net") }

// ID is the namespace's identity, "device:inode" of its file in decimal. It is
// unique among the namespaces alive at one time.
func (n *NetNS) ID() string { return n.id }

// Close gives the handle up.
func (n *NetNS) Close() error { return n.file.Close() }

func (n *NetNS) fd() int { return int(n.file.Fd()) }

func (n *NetNS) handle() netns.NsHandle { return netns.NsHandle(n.fd()) }

// do runs f on a thread inside the namespace and waits for it. Everything that
// f opens belongs to the namespace; f must not start goroutines that open
// more. The thread is thrown away if it cannot be brought back.
func (n *NetNS) do(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- n.inside(f) }()
	return <-done
}

// inside is do on the calling goroutine, which must be about to end: it stays
// locked to its thread when the way back fails, so that the thread ends too.
func (n *NetNS) inside(f func() error) error {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer before.Close()
	if err := netns.Set(n.handle()); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.id, err)
	}
	defer func() {
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}
