package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const secret = "the host's"

// hostile makes a directory tree as a container could, and a file outside it
// that every link aims at; it returns the tree's root and that file.
func hostile(t *testing.T) (*Root, string, string) {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, outside := filepath.Join(top, "root"), filepath.Join(top, "outside")
	for _, d := range []string{"etc/ssl", "deep/a/b"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		filepath.Join(dir, "etc/bundle"): "bundle",
		outside:                          secret,
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{
		"good":         "etc/bundle",
		"absolute":     "/etc/bundle",
		"chain":        "good",
		"up":           "../outside",
		"uphigh":       "../../../../../../../../" + outside,
		"away":         outside,
		"updir":        "..",
		"awaydir":      top,
		"etc/ssl/up":   "../../../outside",
		"loop":         "loop",
		"magic":        "/proc/self/root",
		"deep/link":    "a/b",
		"deep/dotdot":  "link/../target", // a/target, not deep/target
		"deep/target":  "nowhere",
		"new":          "etc/fresh",
		"etc/ssl/cert": "../bundle",
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := &Root{dir: os.NewFile(uintptr(fd), dir)}
	t.Cleanup(func() { r.Close() })
	return r, dir, outside
}

func TestRootRead(t *testing.T) {
	r, _, _ := hostile(t)
	for _, name := range []string{"etc/bundle", "/etc/bundle", "good", "absolute", "chain", "etc/ssl/cert", "../../etc/bundle", "awaydir/../etc/bundle", "updir/etc/bundle"} {
		f, err := r.ReadFile(name, 100)
		if name == "awaydir/../etc/bundle" {
			// The link's target does not exist inside the root.
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || string(f.Data) != "bundle" || f.Mode != 0o640 || f.UID != os.Getuid() {
			t.Errorf("%s: %q %v %d, %v", name, f.Data, f.Mode, f.UID, err)
		}
	}
	for _, name := range []string{"up", "uphigh", "away", "etc/ssl/up", "updir/outside", "../outside", "awaydir/outside", "loop", "magic", "fifo", "etc", "missing", ""} {
		if f, err := r.ReadFile(name, 100); err == nil {
			t.Errorf("%s: read %q", name, f.Data)
		}
	}
	if _, err := r.ReadFile("etc/bundle", 5); err == nil || !strings.Contains(err.Error(), "larger than 5 bytes") {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := r.ReadFile("missing", 5); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestRootWrite(t *testing.T) {
	r, dir, outside := hostile(t)
	if err := os.Chown(filepath.Join(dir, "etc/bundle"), 1234, 2345); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "etc"), 42, 43); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"etc/bundle", "/etc/bundle", "good", "absolute", "chain", "etc/ssl/cert"} {
		text := fmt.Sprintf("text %d", i)
		if err := r.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f, err := r.ReadFile("etc/bundle", 100)
		if err != nil || string(f.Data) != text || f.Mode != 0o640 || f.UID != 1234 || f.GID != 2345 {
			t.Errorf("%s: %q %v %d:%d, %v", name, f.Data, f.Mode, f.UID, f.GID, err)
		}
	}
	for _, link := range []string{"good", "absolute", "chain"} {
		if info, err := os.Lstat(filepath.Join(dir, link)); err != nil || info.Mode().Type() != fs.ModeSymlink {
			t.Errorf("%s is no symlink any more: %v", link, err)
		}
	}
	// New files: by name and by a dangling link; the directory's owner.
	for name, real := range map[string]string{"etc/made": "etc/made", "new": "etc/fresh", "deep/dotdot": "deep/a/target", "up": "outside"} {
		if err := r.WriteFile(name, []byte("new"), 0o644); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, real))
		if err != nil || string(text) != "new" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if f, err := r.ReadFile("etc/made", 9); err != nil || f.Mode != 0o644 || f.UID != 42 || f.GID != 43 {
		t.Errorf("new file: %v %d:%d, %v", f.Mode, f.UID, f.GID, err)
	}
	for _, name := range []string{"away", "uphigh", "awaydir/outside", "loop", "fifo", "etc", "missing/file", "", "/", ".", "..", "etc/", "etc/.."} {
		if err := r.WriteFile(name, []byte("x"), 0o644); err == nil {
			t.Errorf("%q: written", name)
		}
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != secret {
		t.Errorf("the file outside: %q, %v", text, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", ".weir-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRootRemove(t *testing.T) {
	r, dir, outside := hostile(t)
	for _, name := range []string{"good", "up", "etc/bundle"} {
		if err := r.Remove(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	for _, name := range []string{"missing", "etc", "awaydir/outside", "..", "updir/../outside"} {
		if err := r.Remove(name); err == nil {
			t.Errorf("%s: removed", name)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// A container that swaps a directory for a link to the outside, over and over,
// gains nothing by it.
func TestRootRace(t *testing.T) {
	r, dir, outside := hostile(t)
	if err := os.Mkdir(filepath.Join(dir, "swap"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "swap2")); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "swap"), unix.AT_FDCWD, filepath.Join(dir, "swap2"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 2000 {
		// Either fails or writes inside; both are fine.
		_ = r.WriteFile("swap/outside", []byte("x"), 0o644)
		if f, err := r.ReadFile("swap/outside", 100); err == nil && string(f.Data) == secret {
			t.Fatal("read the file outside")
		}
	}
	close(stop)
	<-stopped
	if text, err := os.ReadFile(outside); err != nil || string(text) != secret {
		t.Errorf("the file outside: %q, %v", text, err)
	}
}

func TestRootOfContainer(t *testing.T) {
	ctx := testContext(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte(secret), 0o644); err != nil {
		t.Fatal(err)
	}
	name := prefix() + "-root"
	docker(t, name, "-v", host+":/vol", "-v", filepath.Join(host, "file")+":/etc/mounted")
	c, err := Connect().Find(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRoot(c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.WriteFile("/etc/ca.crt", []byte("certificate"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "docker", "exec", name, "/bin/busybox", "cat", "/etc/ca.crt"); got != "certificate" {
		t.Errorf("the container reads %q", got)
	}
	// Volumes and mounted files are the host's: readable, never written.
	for _, path := range []string{"/vol/file", "/etc/mounted"} {
		if f, err := r.ReadFile(path, 100); err != nil || string(f.Data) != secret {
			t.Errorf("read %s: %q, %v", path, f.Data, err)
		}
		if err := r.WriteFile(path, []byte("x"), 0o644); !errors.Is(err, unix.EXDEV) {
			t.Errorf("write %s: %v", path, err)
		}
		if err := r.Remove(path); !errors.Is(err, unix.EXDEV) {
			t.Errorf("remove %s: %v", path, err)
		}
	}
	if got := run(t, "docker", "exec", name, "/bin/busybox", "cat", "/etc/mounted"); got != secret {
		t.Errorf("the mounted file now is %q", got)
	}
	if err := r.Remove("/etc/ca.crt"); err != nil {
		t.Error(err)
	}

	fixed := prefix() + "-readonly"
	docker(t, fixed, "--read-only")
	if c, err = Connect().Find(ctx, fixed); err != nil {
		t.Fatal(err)
	}
	ro, err := OpenRoot(c)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := ro.WriteFile("/etc/ca.crt", nil, 0o644); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("read-only container: %v", err)
	}
	if _, err := OpenRoot(Container{Name: "netns"}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a bare namespace: %v", err)
	}
}
