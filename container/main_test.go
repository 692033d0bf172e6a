package container

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the program that holds sockets: see helper.
func TestMain(m *testing.M) {
	if mode := os.Getenv("WEIR_CONTAINER_HELPER"); mode != "" {
		if err := helper(mode, os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	cleanImage()
	os.Exit(code)
}

// helper prints one line when it is ready and stays until its input ends.
//
//	hold                      hold inherited descriptors
//	dial NETWORK ADDR         connect and print the local address
//	dial-thread ADDR          the same on a thread with descriptors of its own
//	share NETWORK ADDR PROG [unshare]   connect, hand a copy to PROG
//	serve ADDR                accept and keep connections
//	parent PROG ARGS...       run a child in another program
func helper(mode string, args []string) error {
	os.Unsetenv("WEIR_CONTAINER_HELPER")
	ready := func(s string) error {
		fmt.Println(s)
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	switch mode {
	case "hold":
		return ready("holding")
	case "dial":
		c, err := net.Dial(args[0], args[1])
		if err != nil {
			return err
		}
		defer c.Close()
		return ready(c.LocalAddr().String())
	case "dial-mapped":
		to := netip.MustParseAddrPort(args[0])
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		return ready(netip.AddrPortFrom(netip.AddrFrom16(sa.(*unix.SockaddrInet6).Addr), uint16(sa.(*unix.SockaddrInet6).Port)).String())
	case "udp-loose":
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer c.Close()
		return ready(c.LocalAddr().String())
	case "dial-thread":
		line := make(chan string)
		go func() {
			goruntime.LockOSThread()
			to := netip.MustParseAddrPort(args[0])
			var sa unix.Sockaddr
			err := unix.Unshare(unix.CLONE_FILES)
			var fd int
			if err == nil {
				fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			}
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
			}
			if err == nil {
				sa, err = unix.Getsockname(fd)
			}
			if err != nil {
				line <- "error: " + err.Error()
				return
			}
			in := sa.(*unix.SockaddrInet4)
			line <- netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String()
			select {}
		}()
		return ready(<-line)
	case "share":
		c, err := net.Dial(args[0], args[1])
		if err != nil {
			return err
		}
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			return err
		}
		defer f.Close()
		child := exec.Command(args[2])
		child.Env = append(os.Environ(), "WEIR_CONTAINER_HELPER=hold")
		child.ExtraFiles = []*os.File{f}
		if len(args) > 3 {
			child.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
		}
		out, err := child.StdoutPipe()
		if err != nil {
			return err
		}
		in, err := child.StdinPipe()
		if err != nil {
			return err
		}
		if err := child.Start(); err != nil {
			return err
		}
		defer child.Wait()
		defer in.Close()
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return err
		}
		return ready(c.LocalAddr().String())
	case "serve":
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		go func() {
			var kept []net.Conn
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				kept = append(kept, c)
			}
		}()
		return ready("serving")
	case "parent":
		child := exec.Command(args[1], args[2:]...)
		child.Env = append(os.Environ(), "WEIR_CONTAINER_HELPER="+args[0])
		child.Stdin, child.Stdout = os.Stdin, os.Stdout
		return child.Run()
	}
	return fmt.Errorf("unknown mode %q", mode)
}

// start runs a command in helper mode and returns the first line it prints.
func start(t *testing.T, mode string, argv ...string) (string, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "WEIR_CONTAINER_HELPER="+mode)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	line = strings.TrimSpace(line)
	if err != nil || strings.HasPrefix(line, "error:") {
		t.Fatalf("%v: %q, %v", argv, line, err)
	}
	return line, cmd
}

// program copies this test binary to a path of its own.
func program(t *testing.T, path string) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func prefix() string { return fmt.Sprintf("weir-ctest-%d", os.Getpid()) }

// run runs a command that must succeed and returns its output.
func run(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return strings.TrimSpace(string(out))
}

// newNetNS makes a network namespace with loopback up and returns its name.
func newNetNS(t *testing.T, suffix string) string {
	t.Helper()
	name := prefix() + "-" + suffix
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

var imageMade bool

func imageName() string { return prefix() + ":latest" }

// image imports an image with nothing but busybox.
func image(t *testing.T) string {
	t.Helper()
	if imageMade {
		return imageName()
	}
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "tmp/", "etc/", "proc/", "usr/", "usr/bin/", "vol/"} {
		w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755})
	}
	for _, file := range []string{"bin/busybox", "usr/bin/nc"} {
		w.WriteHeader(&tar.Header{Name: file, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(box))})
		w.Write(box)
	}
	for _, link := range []string{"bin/sh", "bin/sleep"} {
		w.WriteHeader(&tar.Header{Name: link, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"})
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker", "import", "-", imageName())
	cmd.Stdin = &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	imageMade = true
	return imageName()
}

func cleanImage() {
	if imageMade {
		exec.Command("docker", "rmi", "-f", imageName()).Run()
	}
}

// docker starts a container and returns its full id.
func docker(t *testing.T, name string, args ...string) string {
	t.Helper()
	img := image(t)
	t.Cleanup(func() { exec.Command("docker", "rm", "-f", name).Run() })
	argv := append([]string{"docker", "run", "-d", "--name", name}, args...)
	return run(t, append(argv, img, "/bin/sleep", "600")...)
}

func newNetwork(t *testing.T, name string, args ...string) string {
	t.Helper()
	t.Cleanup(func() { exec.Command("docker", "network", "rm", name).Run() })
	return run(t, append(append([]string{"docker", "network", "create"}, args...), name)...)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func tempSocket(t *testing.T, name string) string {
	t.Helper()
	return filepath.Join(t.TempDir(), name)
}
