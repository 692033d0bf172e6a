package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newHandle makes a network namespace that nothing but the handle keeps alive.
func newHandle(t testing.TB) (handle netns.NsHandle) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var err error
		handle, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return handle
}

// talks says whether an echo server answers a program in the namespace.
func talks(ns netns.NsHandle, address string) bool {
	return inside(ns, func() error {
		c, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.(*net.TCPConn).SetLinger(0)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		b := []byte{0}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err = io.ReadFull(c, b)
		return err
	}) == nil
}

// Namespaces come and go, and the kernel gives their numbers, and the process
// its file descriptors, to the next ones. None inherits what another was
// allowed, and what is recorded of it names it.
func TestNamespacesThatFollowEachOtherAreNotMistaken(t *testing.T) {
	o := newOutside(t)
	const cycles, servers = 300, 5
	for i := range servers {
		quietEcho(o, fmt.Sprintf("198.51.100.%d:7", 10+i))
	}
	w := startPlainWeir(t, "")
	client := w.client()
	defer client.CloseIdleConnections()
	do := func(want int, method, path, body string, answer any) {
		t.Helper()
		status, text, err := call(client, method, path, body)
		if err != nil || status != want {
			t.Fatalf("%s %s %s: %d %s %v", method, path, body, status, text, err)
		}
		if answer != nil {
			if err := json.Unmarshal([]byte(text), answer); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
		}
	}
	files, _, _ := w.resources()
	type earlier struct {
		id string
		ns netns.NsHandle
	}
	var kept []earlier // attached still, although the name leads elsewhere
	numbers := map[uint64]int{}
	paths := map[string]int{}
	n := times(t, cycles)
	for i := range n {
		ns := newHandle(t)
		var st unix.Stat_t
		if err := unix.Fstat(int(ns), &st); err != nil {
			t.Fatal(err)
		}
		numbers[st.Ino]++
		ref := fmt.Sprintf("netns:/proc/%d/fd/%d", os.Getpid(), int(ns))
		paths[ref]++
		id := fmt.Sprintf("netns:%d-%d", uint64(st.Dev), st.Ino)
		mine, not := fmt.Sprintf("198.51.100.%d", 10+i%servers), fmt.Sprintf("198.51.100.%d:7", 10+(i+1)%servers)

		var a struct {
			ID      string `json:"container_id"`
			Session string `json:"session_id"`
		}
		do(201, "POST", "/v1/attachments", fmt.Sprintf(`{"container":%q}`, ref), &a)
		if a.ID != id || a.Session != "" {
			t.Fatalf("cycle %d: %s is attached as %s, under session %q", i, id, a.ID, a.Session)
		}
		for j := range servers {
			if talks(ns, fmt.Sprintf("198.51.100.%d:7", 10+j)) {
				t.Fatalf("cycle %d: a new namespace reaches server %d without a rule", i, j)
			}
		}
		var s Session
		do(201, "POST", "/v1/sessions", fmt.Sprintf(`{"container":%q,"network_rules":[{"destination":%q,"ports":"7"}]}`, ref, mine), &s)
		if !s.Current || !talks(ns, mine+":7") || talks(ns, not) {
			t.Fatalf("cycle %d: session %+v; its server answers %v, another %v", i, s, talks(ns, mine+":7"), talks(ns, not))
		}
		// Who is left from before is still who it was.
		for _, e := range kept {
			if e.ns.IsOpen() && !talks(e.ns, "198.51.100.10:7") {
				t.Fatalf("cycle %d: %s, attached before, has lost its rule", i, e.id)
			}
		}
		switch {
		case i%25 == 0 && len(kept) < 4:
			kept = append(kept, earlier{id, ns})
		case i%3 == 0: // the namespace goes first, as far as anybody but Weir can tell
			ns.Close()
			do(204, "DELETE", "/v1/attachments/"+id, "", nil)
		default:
			do(204, "DELETE", "/v1/attachments/"+id, "", nil)
			if talks(ns, mine+":7") {
				t.Fatalf("cycle %d: a detached namespace without interfaces has a way out", i)
			}
			ns.Close()
		}
	}
	for _, e := range kept {
		do(204, "DELETE", "/v1/attachments/"+e.id, "", nil)
		e.ns.Close()
	}
	again := n - len(numbers)
	t.Logf("%d namespaces, of which %d had a number, and %d a path, that was another's before", n, again, n-len(paths))
	if again == 0 || n == len(paths) {
		t.Error("no number or no path was used again: this shows nothing")
	}
	if list := w.sessions(); len(list) > 0 {
		t.Errorf("sessions of namespaces that are gone: %+v", list)
	}
	if now, _, _ := w.resources(); now > files+30 {
		t.Errorf("files %d -> %d", files, now)
	}
}
