package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"weir/redirect"
)

// drainTime is how long live connections may go on when the daemon ends.
const drainTime = 5 * time.Second

// systemd keeps the four listeners of an attachment under these names
// (sd_listen_fds(3)): "weir", the namespace, and what it is, joined by dashes.
const (
	tcpSocket    = "tcp"
	dnsTCPSocket = "dnstcp"
	dnsUDPSocket = "dnsudp"
	udpSocket    = "udp"
)

func socketName(netns, what string) string {
	return "weir-" + strings.ReplaceAll(netns, ":", "-") + "-" + what
}

func socketFiles(s *redirect.Sockets) map[string]*os.File {
	return map[string]*os.File{tcpSocket: s.TCP, dnsTCPSocket: s.DNSTCP, dnsUDPSocket: s.DNSUDP, udpSocket: s.UDP}
}

// handedOver begins the variables that tell the numbers of the listeners that
// an upgraded daemon leaves to the next: each the namespace's systemd name, and
// what = number. They are not moved to where systemd would put them, from 3 on:
// there is what the runtime's threads wait on, which must not change under them.
const handedOver = "WEIR_LISTENER_"

// inheritedFiles are what systemd's store and the process before us handed over.
func inheritedFiles() []*os.File {
	files := activation.Files(true)
	for _, variable := range os.Environ() {
		name, number, _ := strings.Cut(variable, "=")
		what, ours := strings.CutPrefix(name, handedOver)
		fd, err := strconv.Atoi(number)
		if !ours || err != nil || fd < 3 {
			continue
		}
		os.Unsetenv(name)
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), what))
	}
	return files
}

// inheritedSockets are the listeners that systemd's store or the process
// before us handed over, by "dev:ino" of their namespace. Sets that are not
// complete are closed: such containers get new listeners.
func inheritedSockets(logger *slog.Logger) map[string]*redirect.Sockets {
	found := map[string]*redirect.Sockets{}
	for _, f := range inheritedFiles() {
		parts := strings.Split(f.Name(), "-")
		if len(parts) != 4 || parts[0] != "weir" {
			logger.Warn("an inherited file is none of ours", "name", f.Name())
			f.Close()
			continue
		}
		netns := parts[1] + ":" + parts[2]
		s := found[netns]
		if s == nil {
			s = &redirect.Sockets{}
			found[netns] = s
		}
		switch parts[3] {
		case tcpSocket:
			s.TCP = f
		case dnsTCPSocket:
			s.DNSTCP = f
		case dnsUDPSocket:
			s.DNSUDP = f
		case udpSocket:
			s.UDP = f
		}
	}
	for netns, s := range found {
		if s.TCP == nil || s.DNSTCP == nil || s.DNSUDP == nil || s.UDP == nil {
			logger.Warn("inherited listeners are not complete; new ones are opened", "netns", netns)
			s.Close()
			delete(found, netns)
		}
	}
	return found
}

// keeper has systemd keep listeners over a restart of the daemon; see
// FDSTORE= in sd_notify(3). Without systemd it does nothing.
type keeper struct {
	address string
	logger  *slog.Logger
}

func newKeeper(logger *slog.Logger) *keeper {
	return &keeper{address: os.Getenv("NOTIFY_SOCKET"), logger: logger}
}

// keep takes the place of what was kept for the namespace. FDPOLL=0: what a
// program in the container does to a socket does not take it out of the store.
func (k *keeper) keep(netns string, s *redirect.Sockets) {
	k.forget(netns)
	for what, f := range socketFiles(s) {
		k.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+socketName(netns, what), f)
	}
	s.Close()
}

func (k *keeper) forget(netns string) {
	for _, what := range []string{tcpSocket, dnsTCPSocket, dnsUDPSocket, udpSocket} {
		k.send("FDSTOREREMOVE=1\nFDNAME="+socketName(netns, what), nil)
	}
}

// send tells systemd something, with a file or without.
func (k *keeper) send(state string, f *os.File) {
	if k.address == "" {
		return
	}
	if err := notify(k.address, state, f); err != nil {
		k.logger.Warn("telling systemd", "state", state, "error", err)
	}
}

// notify sends one datagram to systemd's socket; a name with @ in front is in
// the abstract namespace.
func notify(address, state string, f *os.File) error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	to := &unix.SockaddrUnix{Name: address}
	if f == nil {
		return unix.Sendmsg(socket, []byte(state), nil, to, 0)
	}
	// Not f.Fd(): that would make the listener itself blocking.
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(socket, []byte(state), unix.UnixRights(int(fd)), to, 0)
	})
	return errors.Join(err, sent)
}

// successor finds out what would keep the next program from starting while
// this one still serves: a configuration with a mistake, a binary that does not
// run.
func successor(ctx context.Context, config string) error {
	if _, err := loadConfig(config); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, self, "version", "--help").CombinedOutput(); err != nil {
		return fmt.Errorf("%s does not run: %w: %.200s", self, err, bytes.TrimSpace(out))
	}
	return nil
}

// become replaces this process by the program that its binary is now, with the
// listeners. It returns only if that fails.
func become(sockets map[string]*redirect.Sockets) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	env := os.Environ()
	for netns, s := range sockets {
		for what, f := range socketFiles(s) {
			raw, err := f.SyscallConn()
			if err != nil {
				return err
			}
			var fd int
			var dupErr error
			// Without O_CLOEXEC: it goes on.
			err = raw.Control(func(from uintptr) { fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD, 3) })
			if err := errors.Join(err, dupErr); err != nil {
				return fmt.Errorf("handing over listeners: %w", err)
			}
			env = append(env, handedOver+socketName(netns, what)+"="+strconv.Itoa(fd))
		}
	}
	return fmt.Errorf("start %s: %w", self, syscall.Exec(self, os.Args, env))
}
