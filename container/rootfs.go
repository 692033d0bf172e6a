package container

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a running container's file system, seen from outside. Every path is
// resolved by the kernel inside that root (openat2(2), RESOLVE_IN_ROOT):
// whatever symlinks the container holds, and however it changes them
// meanwhile, nothing outside it is ever opened.
type Root struct {
	dir *os.File
}

// File is a regular file's content and what it belongs to.
type File struct {
	Data []byte
	Mode fs.FileMode // permission bits
	UID  int         // as the host counts
	GID  int
}

// OpenRoot opens the file system of a running container, of that very process:
// see [Container.OpenNetNS]. The caller closes it.
func OpenRoot(c Container) (*Root, error) {
	if c.PID == 0 {
		return nil, fmt.Errorf("files of %s: no process is known to belong to it: %w", c.Name, ErrNotRunning)
	}
	fd, err := unix.Open(procPath(c.PID, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root of %s: %w", c.Name, err)
	}
	r := &Root{dir: os.NewFile(uintptr(fd), procPath(c.PID, "root"))}
	if p, err := readProcess(c.PID); err != nil || p.start != c.PIDStart {
		r.Close()
		return nil, fmt.Errorf("process %d of %s has ended: %w; look the container up again", c.PID, c.Name, ErrGone)
	}
	return r, nil
}

// Close releases the file system.
func (r *Root) Close() error { return r.dir.Close() }

// ReadFile reads a regular file of at most max bytes, following symlinks
// inside the root. Errors wrap fs.ErrNotExist when there is none.
func (r *Root) ReadFile(name string, max int64) (File, error) {
	// O_PATH first: opening a FIFO would wait and a device could act.
	handle, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return File{}, err
	}
	defer handle.Close()
	file, err := stat(handle, name)
	if err != nil {
		return File{}, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()))
	if err != nil {
		return File{}, fmt.Errorf("read %s in the container: %w", name, err)
	}
	defer f.Close()
	file.Data, err = io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return File{}, fmt.Errorf("read %s in the container: %w", name, err)
	}
	if int64(len(file.Data)) > max {
		return File{}, fmt.Errorf("read %s in the container: larger than %d bytes", name, max)
	}
	return file, nil
}

// WriteFile replaces a regular file in one step: who has the old one open
// keeps it, and nobody sees half of the new one. Owner and mode stay; a new
// file gets mode and its directory's owner. A symlink at the end of name is
// followed, inside the root, and stays. The directory must exist and lie on
// the container's root file system itself: a volume or bind mount could be the
// host's or another container's, and is refused.
func (r *Root) WriteFile(name string, data []byte, mode fs.FileMode) error {
	if err := r.write(name, data, mode); err != nil {
		if errors.Is(err, unix.EROFS) {
			return fmt.Errorf("write %s in the container: its file system is read-only: %w", name, err)
		}
		return fmt.Errorf("write %s in the container: %w", name, err)
	}
	return nil
}

// Remove deletes a regular file or a symlink, never what the symlink leads to.
// The same file systems as with [Root.WriteFile].
func (r *Root) Remove(name string) error {
	dir, base, err := r.parent(name)
	if err != nil {
		return fmt.Errorf("remove %s in the container: %w", name, err)
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), base, 0); err != nil {
		return fmt.Errorf("remove %s in the container: %w", name, err)
	}
	return nil
}

// Mkdir makes a directory with the owner of the one that holds it; one that is
// there stays as it is. The same file systems as with [Root.WriteFile].
func (r *Root) Mkdir(name string, mode fs.FileMode) error {
	err := r.mkdir(name, mode)
	if err != nil {
		return fmt.Errorf("make directory %s in the container: %w", name, err)
	}
	return nil
}

func (r *Root) mkdir(name string, mode fs.FileMode) error {
	dir, base, err := r.parent(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), base, uint32(mode.Perm())); err != nil {
		if errors.Is(err, unix.EEXIST) && r.IsDir(name) {
			return nil
		}
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	return unix.Fchownat(int(dir.Fd()), base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

// RemoveDir deletes an empty directory.
func (r *Root) RemoveDir(name string) error {
	dir, base, err := r.parent(name)
	if err != nil {
		return fmt.Errorf("remove directory %s in the container: %w", name, err)
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), base, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove directory %s in the container: %w", name, err)
	}
	return nil
}

// IsDir reports whether name is a directory that can be opened.
func (r *Root) IsDir(name string) bool {
	dir, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	dir.Close()
	return true
}

// maxLinks bounds the symlinks followed at the end of a path, as the kernel
// does (path_resolution(7)).
const maxLinks = 40

func (r *Root) write(name string, data []byte, mode fs.FileMode) error {
	for range maxLinks {
		dir, base, err := r.parent(name)
		if err != nil {
			return err
		}
		target, err := readlinkat(dir, base)
		if err == nil {
			dir.Close()
			if !path.IsAbs(target) {
				// Not cleaned: ".." after a symlink is for the kernel to follow.
				target = name[:strings.LastIndexByte(name, '/')+1] + target
			}
			name = target
			continue
		}
		defer dir.Close()
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return replace(dir, base, data, mode)
	}
	return unix.ELOOP
}

// replace writes a new file beside the old one and renames it.
func replace(dir *os.File, base string, data []byte, mode fs.FileMode) error {
	var old unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), base, &old, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Fstat(int(dir.Fd()), &old); err != nil {
			return err
		}
		old.Mode = uint32(mode.Perm())
	case err != nil:
		return err
	case old.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("not a regular file")
	}
	temp := ".weir-" + rand.Text()
	fd, err := unix.Openat(int(dir.Fd()), temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temp)
	_, err = f.Write(data)
	if err == nil {
		err = f.Chown(int(old.Uid), int(old.Gid))
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(old.Mode & 0o777))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), base)
	}
	if err != nil {
		return errors.Join(err, unix.Unlinkat(int(dir.Fd()), temp, 0))
	}
	return nil
}

// parent opens the directory that holds name, for writing into it.
func (r *Root) parent(name string) (*os.File, string, error) {
	base := path.Base(name)
	if strings.HasSuffix(name, "/") || base == "." || base == ".." || base == "/" {
		return nil, "", errors.New("not the name of a file")
	}
	// Not path.Dir, which resolves ".." as if there were no symlinks.
	dir, err := r.open("/"+name[:strings.LastIndexByte(name, '/')+1], unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_XDEV)
	if err != nil {
		if errors.Is(err, unix.EXDEV) {
			err = fmt.Errorf("its directory is a mount of its own (a volume or a part of the host): %w", err)
		}
		return nil, "", err
	}
	// Seen from another mount namespace, a rename or removal would take away
	// what is mounted there instead of failing.
	fd, err := unix.Openat2(int(dir.Fd()), base, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH,
	})
	if err == nil {
		unix.Close(fd)
	} else if !errors.Is(err, unix.ENOENT) {
		dir.Close()
		if errors.Is(err, unix.EXDEV) {
			err = fmt.Errorf("something is mounted over it: %w", err)
		}
		return nil, "", err
	}
	return dir, base, nil
}

func (r *Root) open(name string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve,
	}
	// EAGAIN: the kernel saw a rename that could have led outside (openat2(2)).
	for range 100 {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return nil, &fs.PathError{Op: "open in container", Path: name, Err: err}
		}
	}
	return nil, &fs.PathError{Op: "open in container", Path: name, Err: unix.EAGAIN}
}

// stat is a regular file's owner and mode.
func stat(f *os.File, name string) (File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return File{}, fmt.Errorf("stat %s in the container: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return File{}, fmt.Errorf("%s in the container is not a regular file", name)
	}
	return File{Mode: fs.FileMode(st.Mode & 0o777), UID: int(st.Uid), GID: int(st.Gid)}, nil
}

func readlinkat(dir *os.File, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
