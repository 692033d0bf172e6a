package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// requests runs curl in a container again and again, each on a connection of
// its own, until stop; it returns how many passed and what went wrong.
func requests(b *Box, url string) (stop func() (passed int, failures []string)) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	var passed int
	var failures []string
	wg.Go(func() {
		for range 2000 {
			select {
			case <-done:
				return
			default:
			}
			if out, ok := b.curl("--max-time", "15", url); ok {
				passed++
			} else {
				failures = append(failures, strings.TrimSpace(out))
			}
		}
	})
	return func() (int, []string) {
		close(done)
		wg.Wait()
		return passed, failures
	}
}

func TestUpgradeDropsNoNewConnection(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "198.51.100.10:80")
	stop := requests(box, "http://198.51.100.10/")
	for i := range 3 {
		if out := w.run("upgrade"); !strings.Contains(out, "1 containers attached") {
			t.Errorf("upgrade %d: %s", i, out)
		}
	}
	passed, failures := stop()
	if len(failures) > 0 || passed == 0 {
		t.Errorf("%d passed, failed: %v", passed, failures)
	}
	if !strings.Contains(w.run("ps"), box.Name) {
		t.Error("not attached after the upgrades")
	}
}

// fdStore is the part of systemd that keeps descriptors for a service:
// sd_notify(3) with FDSTORE=1, and sd_listen_fds(3) at the next start.
type fdStore struct {
	path  string
	conn  *net.UnixConn
	mu    sync.Mutex
	files map[string]int
	lines []string
}

func newFDStore(t *testing.T) *fdStore {
	s := &fdStore{path: filepath.Join(t.TempDir(), "notify"), files: map[string]int{}}
	var err error
	if s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, oob := make([]byte, 4096), make([]byte, 4096)
		for {
			n, m, _, _, err := s.conn.ReadMsgUnix(text, oob)
			if err != nil {
				return
			}
			s.take(string(text[:n]), oob[:m])
		}
	}()
	t.Cleanup(func() {
		s.conn.Close()
		<-done
		for _, fd := range s.files {
			syscall.Close(fd)
		}
	})
	return s
}

func (s *fdStore) take(state string, oob []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, state)
	_, name, _ := strings.Cut(state, "FDNAME=")
	if strings.Contains(state, "FDSTOREREMOVE=1") {
		if fd, ok := s.files[name]; ok {
			syscall.Close(fd)
			delete(s.files, name)
		}
	}
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return
	}
	if fds, err := syscall.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
		s.files[name] = fds[0]
	}
}

func (s *fdStore) said(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.lines, "\n"), what)
}

func (s *fdStore) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

func (s *fdStore) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.files)
}

// pass returns what is kept, for the next start, in sd_listen_fds order.
func (s *fdStore) pass(t *testing.T) (names []string, files []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, fd := range s.files {
		dup, err := syscall.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		names, files = append(names, name), append(files, os.NewFile(uintptr(dup), name))
	}
	return names, files
}

func TestRestartUnderSystemdDropsNoNewConnection(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	store := newFDStore(t)
	w := newWeir(t, "")
	w.env = []string{"NOTIFY_SOCKET=" + store.path, "WATCHDOG_USEC=3000000"}
	w.start()
	eventually(t, "READY=1", func() bool { return store.said("READY=1") })
	eventually(t, "WATCHDOG=1", func() bool { return store.said("WATCHDOG=1") })
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "198.51.100.10:80")
	if n := store.count(); n != 4 {
		t.Fatalf("four listeners are to be kept, got %d", n)
	}
	stop := requests(box, "http://198.51.100.10/")
	for range 3 {
		w.stop()
		names, files := store.pass(t)
		// The pid is filled in by the shell, which becomes the daemon.
		w.env = []string{
			"NOTIFY_SOCKET=" + store.path,
			fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":"),
		}
		w.files = files
		w.start()
		for _, f := range files {
			f.Close()
		}
	}
	passed, failures := stop()
	if len(failures) > 0 || passed == 0 {
		t.Errorf("%d passed, failed: %v", passed, failures)
	}
	w.run("detach", box.Name)
	eventually(t, "the listeners are forgotten", func() bool { return store.count() == 0 })
	var list []json.RawMessage
	w.json(&list, "ps")
	if len(list) != 0 {
		t.Errorf("still attached: %v", list)
	}
}

// systemd hears all the while that the daemon is well: while live connections
// get their time to end, and until the new daemon is ready.
func TestUpgradeKeepsTheWatchdogQuiet(t *testing.T) {
	o := newOutside(t)
	o.serve("198.51.100.10:80", func(c net.Conn) { io.Copy(io.Discard, c) })
	store := newFDStore(t)
	w := newWeir(t, "")
	w.env = []string{"NOTIFY_SOCKET=" + store.path, "WATCHDOG_USEC=3000000"}
	w.start()
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "198.51.100.10:80")
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		try("docker", "exec", box.Name, "timeout", "30", "nc", "198.51.100.10", "80")
	}()
	eventually(t, "a live connection", func() bool { return strings.Contains(w.run("flows", box.Name), "198.51.100.10") })
	before := len(store.all())
	w.run("upgrade")
	eventually(t, "the new daemon is ready", func() bool { return slices.Contains(store.all()[before:], "READY=1") })
	<-idle
	said := store.all()[before:]
	pings, put := 0, false
	for _, line := range said[:slices.Index(said, "READY=1")] {
		if strings.Contains(line, "WATCHDOG=1") {
			pings++
		}
		put = put || strings.Contains(line, "EXTEND_TIMEOUT_USEC=3000000")
	}
	// Five seconds of draining, and one a second.
	if pings < 5 || !put {
		t.Errorf("%d messages that it is well, limits put off: %v; said: %q", pings, put, said)
	}
}

// What would not start does not get to take the place of what runs.
func TestUpgradeToWhatDoesNotStartIsRefused(t *testing.T) {
	w := newWeir(t, "")
	daemon := filepath.Join(w.dir, "weir")
	run(t, "cp", weirBinary, daemon)
	w.binary = daemon
	w.start()
	w.binary = weirBinary
	config := filepath.Join(w.dir, "config.yaml")
	good, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(file, text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o755), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want string) {
		t.Helper()
		if out, code := w.try("upgrade"); code != 1 || !strings.Contains(out, "goes on as it is") || !strings.Contains(out, want) {
			t.Errorf("exit %d: %s", code, out)
		}
		if out := w.run("version"); !strings.Contains(out, "daemon") {
			t.Errorf("the daemon is gone: %s", out)
		}
	}
	replace(config, "limits: {connections: many}\n")
	refused("many: want a number")
	replace(config, string(good))
	replace(daemon, "no program")
	refused(daemon + " does not run")
	replace(daemon, "#!/bin/sh\necho it lacks a library >&2; exit 127\n")
	refused("it lacks a library")
	run(t, "cp", weirBinary, daemon+".new")
	run(t, "mv", daemon+".new", daemon)
	w.run("upgrade")
}
