package container

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFindByIDAndName(t *testing.T) {
	ctx := testContext(t)
	name := prefix() + "-find"
	id := docker(t, name, "--label", "color=blue", "--cap-drop", "NET_RAW", "--cap-add", "net_admin")
	r := Connect()
	for _, ref := range []string{id, id[:12], name, "/" + name} {
		c, err := r.Find(ctx, ref)
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if c.ID != id || c.Name != name || c.Image != imageName() || !c.Running || c.HostNetwork || c.Problem != nil ||
			c.Labels["color"] != "blue" || c.NetworkMode == "" || time.Since(c.StartedAt) > time.Minute || c.Runtime != "/var/run/docker.sock" {
			t.Errorf("%s: %+v", ref, c)
		}
		var st unix.Stat_t
		if err := unix.Stat(procPath(c.PID, "ns/net"), &st); err != nil || c.NetNSID != (NetNSID{Dev: uint64(st.Dev), Ino: st.Ino}) {
			t.Errorf("%s: namespace %v, want %d:%d (%v)", ref, c.NetNSID, st.Dev, st.Ino, err)
		}
		if !c.NetAdmin || c.NetRaw || !slices.Equal(c.CapAdd, []string{"NET_ADMIN"}) {
			t.Errorf("%s: NetAdmin %v NetRaw %v CapAdd %v", ref, c.NetAdmin, c.NetRaw, c.CapAdd)
		}
		if len(c.Networks) != 1 || c.Networks[0].Name != "bridge" || c.Networks[0].UserDefined || c.Networks[0].Bridge != "docker0" || len(c.Networks[0].Addrs) == 0 {
			t.Errorf("%s: networks %+v", ref, c.Networks)
		}
		if w := strings.Join(c.Warnings(), "\n"); !strings.Contains(w, "shares the host's user namespace") || strings.Contains(w, "NET_RAW") {
			t.Errorf("%s: warnings %q", ref, w)
		}
	}
	all, err := r.List(ctx)
	if err != nil || !slices.ContainsFunc(all, func(c Container) bool { return c.ID == id && c.Running && c.NetNSID != (NetNSID{}) }) {
		t.Errorf("List lacks %s: %v", id, err)
	}
}

func TestFindErrors(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	stopped := prefix() + "-stopped"
	docker(t, stopped)
	run(t, "docker", "kill", stopped)
	hosted := prefix() + "-host"
	docker(t, hosted, "--network", "host")
	paths := t.TempDir()
	fifo := filepath.Join(paths, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		ref  string
		is   error
		says string
	}{
		{"", nil, "no name given"},
		{"/", nil, "no name given"},
		{"no-such-container", ErrNotFound, `"no-such-container"`},
		{"weir\x00x", ErrNotFound, `\x00`},
		{stopped, ErrNotRunning, "docker start " + stopped},
		{hosted, ErrHostNetwork, "network of its own"},
		{"pid:1", ErrHostNetwork, "pid:1"},
		{"pid:" + strconv.Itoa(os.Getpid()), ErrHostNetwork, ""},
		{"pid:4194305", ErrNotFound, ""},
		{"pid:0", nil, "not a process id"},
		{"pid:x", nil, "not a process id"},
		{"netns:", nil, "no path"},
		{"netns:a/b", nil, "absolute"},
		{"netns:/proc/self/ns/net", ErrHostNetwork, ""},
		{"netns:/proc/self/ns/mnt", nil, "not of networks"},
		{"netns:/proc/1/status", nil, "not a namespace"},
		{"netns:" + fifo, nil, "not a namespace"},
		{"netns:" + paths, nil, "not a namespace"},
		{"netns:no-such-ns", ErrNotFound, "ip netns list"},
		{"netns:1-1", ErrNotFound, "ip netns list"},
		{"/var/run/netns/no-such-ns", ErrNotFound, "ip netns list"},
	}
	for _, tt := range tests {
		c, err := r.Find(ctx, tt.ref)
		if err == nil {
			t.Errorf("%q: found %+v", tt.ref, c)
			continue
		}
		if tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: %v; want %v and %q", tt.ref, err, tt.is, tt.says)
		}
	}
}

func TestFindPrefixes(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	// 17 containers cannot all begin with different digits.
	img := image(t)
	ids := map[string]string{}
	var shared string
	for i := 0; i <= 16 && shared == ""; i++ {
		name := prefix() + "-p" + strconv.Itoa(i)
		t.Cleanup(func() { exec.Command("docker", "rm", "-f", name).Run() })
		id := run(t, "docker", "create", "--name", name, img, "/bin/sleep", "1")
		for other := range ids {
			if other[0] == id[0] {
				shared = id[:1]
			}
		}
		ids[id] = name
	}
	_, err := r.Find(ctx, shared)
	var ambiguous *AmbiguousError
	if !errors.As(err, &ambiguous) {
		t.Fatalf("%q: %v, want an AmbiguousError", shared, err)
	}
	listed := 0
	for id, name := range ids {
		if id[:1] == shared {
			listed++
			if !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), name) {
				t.Errorf("error %q lacks %s %s", err, id, name)
			}
		}
	}
	if listed < 2 {
		t.Fatalf("only %d candidates made", listed)
	}
	// A name that is a prefix of another's id wins, as in Docker.
	var other string
	for id := range ids {
		other = id
	}
	name := other[:12]
	id := docker(t, name)
	c, err := r.Find(ctx, name)
	if err != nil || c.ID != id {
		t.Errorf("name %s: found %s, %v; want %s", name, c.ID, err, id)
	}
}

func TestFit(t *testing.T) {
	id := strings.Repeat("ab", 32)
	tests := []struct {
		ref  string
		want int
	}{
		{id, fitsID}, {"web", fitsName}, {"ab", fitsPrefix}, {"we", 0}, {"alias", 0}, {"AB", 0},
	}
	for _, tt := range tests {
		if got := fit(tt.ref, id, []string{"/web", "/other/alias"}); got != tt.want {
			t.Errorf("fit(%q) = %d, want %d", tt.ref, got, tt.want)
		}
	}
	if got := nameOf([]string{"/other/alias", "/web"}); got != "web" {
		t.Errorf("nameOf = %q", got)
	}
}

func TestFindSharedNamespace(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	owner, side := prefix()+"-owner", prefix()+"-side"
	ownerID := docker(t, owner)
	sideID := docker(t, side, "--network", "container:"+owner)
	a, err := r.Find(ctx, owner)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Find(ctx, side)
	if err != nil {
		t.Fatal(err)
	}
	if a.NetNSID != b.NetNSID || a.NetNSID.Ino == 0 || b.NetworkMode != "container:"+ownerID {
		t.Errorf("owner %v, side %v (%s)", a.NetNSID, b.NetNSID, b.NetworkMode)
	}
	sharing, err := r.Sharing(ctx, a.NetNSID)
	if err != nil || len(sharing) != 2 {
		t.Errorf("Sharing: %d, %v", len(sharing), err)
	}
	for _, ref := range []string{"pid:" + strconv.Itoa(b.PID), "netns:" + procPath(a.PID, "ns/net"), a.NetNSID.containerID()} {
		c, err := r.Find(ctx, ref)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		ids := map[string]bool{}
		for _, m := range c.Members {
			ids[m.ID] = m.SharesNetNS
		}
		if c.ID != a.NetNSID.containerID() || len(ids) != 2 || !ids[ownerID] || !ids[sideID] || c.MembersErr != nil {
			t.Errorf("%s: %s with members %+v, %v", ref, c.ID, c.Members, c.MembersErr)
		}
	}
	// A container that shares with one on the host's network is on it as well.
	hosted, guest := prefix()+"-hosted", prefix()+"-guest"
	docker(t, hosted, "--network", "host")
	docker(t, guest, "--network", "container:"+hosted)
	if _, err := r.Find(ctx, guest); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("guest of the host's network: %v", err)
	}
}

func TestFindNetNS(t *testing.T) {
	ctx := testContext(t)
	r := Connect(tempSocket(t, "none.sock"))
	name := newNetNS(t, "find")
	var st unix.Stat_t
	if err := unix.Stat("/run/netns/"+name, &st); err != nil {
		t.Fatal(err)
	}
	want := NetNSID{Dev: uint64(st.Dev), Ino: st.Ino}
	for _, ref := range []string{"netns:/run/netns/" + name, "netns:/var/run/netns/" + name, "/var/run/netns/" + name, "netns:" + name, want.containerID()} {
		c, err := r.Find(ctx, ref)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if c.NetNSID != want || c.ID != want.containerID() || c.Name != ref || c.Runtime != "" || len(c.Members) != 0 || c.MembersErr != nil {
			t.Errorf("%s: %+v", ref, c)
		}
		f, err := c.OpenNetNS()
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if id, err := netNSOf(f); err != nil || id != want {
			t.Errorf("%s opened %v, %v", ref, id, err)
		}
		f.Close()
	}
}

func TestOpenNetNSNoticesReuse(t *testing.T) {
	ctx := testContext(t)
	name := newNetNS(t, "reuse")
	prog := program(t, filepath.Join(t.TempDir(), "prog"))
	_, cmd := start(t, "hold", "ip", "netns", "exec", name, prog)
	c, err := Connect(tempSocket(t, "none.sock")).Find(ctx, "pid:"+strconv.Itoa(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.OpenNetNS()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()

	reused := c
	reused.PIDStart--
	if _, err := reused.OpenNetNS(); !errors.Is(err, ErrGone) {
		t.Errorf("another start time: %v", err)
	}
	if _, err := OpenRoot(reused); !errors.Is(err, ErrGone) {
		t.Errorf("root with another start time: %v", err)
	}
	moved := c
	moved.NetNSID.Ino++
	if _, err := moved.OpenNetNS(); !errors.Is(err, ErrGone) {
		t.Errorf("another namespace: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := c.OpenNetNS(); !errors.Is(err, ErrGone) {
		t.Errorf("ended process: %v", err)
	}
	if _, err := (Container{Name: "x"}).OpenNetNS(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no namespace: %v", err)
	}
}

func TestRestartIsAnotherIdentity(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	name := prefix() + "-restart"
	docker(t, name)
	before, err := r.Find(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "docker", "restart", "-t", "0", name)
	after, err := r.Find(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if before.ID != after.ID || !after.StartedAt.After(before.StartedAt) || before.PID == after.PID {
		t.Errorf("before %v pid %d, after %v pid %d", before.StartedAt, before.PID, after.StartedAt, after.PID)
	}
	if _, err := before.OpenNetNS(); !errors.Is(err, ErrGone) {
		t.Errorf("old namespace: %v", err)
	}
}

func TestMounts(t *testing.T) {
	ctx := testContext(t)
	r := Connect()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "other.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	name := prefix() + "-mounts"
	docker(t, name, "-v", "/var/run/docker.sock:/tmp/d.sock", "-v", "/var/run:/hostrun:ro",
		"-v", filepath.Join(dir, "other.sock")+":/tmp/o.sock", "-v", dir+":/data")
	c, err := r.Find(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(c.RuntimeSockets)
	if !slices.Contains(c.RuntimeSockets, "/hostrun/docker.sock") || !slices.Contains(c.RuntimeSockets, "/tmp/d.sock") || slices.Contains(c.RuntimeSockets, "/tmp/o.sock") {
		t.Errorf("runtime sockets %v", c.RuntimeSockets)
	}
	if !slices.Equal(c.HostSockets, []string{"/tmp/o.sock"}) {
		t.Errorf("host sockets %v", c.HostSockets)
	}
	w := strings.Join(c.Warnings(), "\n")
	for _, part := range []string{"/tmp/d.sock", "/tmp/o.sock"} {
		if !strings.Contains(w, part) {
			t.Errorf("warnings lack %q: %s", part, w)
		}
	}
}

func TestPrivileged(t *testing.T) {
	ctx := testContext(t)
	name := prefix() + "-privileged"
	t.Cleanup(func() { exec.Command("docker", "rm", "-f", name).Run() })
	id := run(t, "docker", "create", "--name", name, "--privileged", "--pid", "host", image(t), "/bin/sleep", "1")
	c, err := Connect().Find(ctx, name)
	if !errors.Is(err, ErrNotRunning) {
		t.Errorf("created only: %v", err)
	}
	if c.ID != id || !c.Privileged || !c.HostPID || c.Running || c.NetNS != "" {
		t.Errorf("%+v", c)
	}
	if w := strings.Join(c.Warnings(), "\n"); !strings.Contains(w, "privileged") || !strings.Contains(w, "pid namespace") {
		t.Errorf("warnings %q", w)
	}
}

func TestUnreachable(t *testing.T) {
	ctx := testContext(t)
	absent := tempSocket(t, "absent.sock")
	_, err := Connect(absent).Find(ctx, "web")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), absent) {
		t.Errorf("absent: %v", err)
	}
	if all, err := Connect(absent).List(ctx); len(all) != 0 || err != nil {
		t.Errorf("list without a runtime: %v, %v", all, err)
	}

	// A file that nobody listens at.
	dead := tempSocket(t, "podman.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dead}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	r := Connect(dead)
	_, err = r.Find(ctx, "web")
	if !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), dead) || !strings.Contains(err.Error(), "systemctl start podman") {
		t.Errorf("dead: %v", err)
	}
	if _, err := r.List(ctx); !errors.Is(err, ErrUnreachable) {
		t.Errorf("list: %v", err)
	}
	if _, err := r.Resolve(ctx, "x", "web"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("resolve: %v", err)
	}

	// One that takes the call and never answers.
	mute := tempSocket(t, "docker.sock")
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	slow := Connect(mute)
	slow.Timeout = 50 * time.Millisecond
	_, err = slow.Find(ctx, "web")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "did not answer within 50ms") {
		t.Errorf("mute: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := slow.Find(ended, "web"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}

	// A dead runtime beside a good one: exact references are found, prefixes
	// are not certain, and what nobody has is not "not found".
	name := prefix() + "-beside"
	id := docker(t, name)
	both := Connect(dead, "/var/run/docker.sock", "/run/docker.sock")
	for _, ref := range []string{name, id} {
		if c, err := both.Find(ctx, ref); err != nil || c.ID != id {
			t.Errorf("%s beside a dead runtime: %v", ref, err)
		}
	}
	for _, ref := range []string{id[:12], "no-such-container"} {
		if _, err := both.Find(ctx, ref); !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s beside a dead runtime: %v", ref, err)
		}
	}
	for _, s := range both.Status(ctx) {
		good := s.Socket != dead
		if !s.Present || good != (s.Err == nil) || good != (s.Version != "") {
			t.Errorf("status %+v", s)
		}
	}
}
