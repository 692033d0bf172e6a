package netlab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// ModeVar is the variable that tells a test binary what it was started as.
const ModeVar = "WEIR_NETLAB_MODE"

// Main calls run, which is a testing.M's, in a network namespace of its own with
// lo up, and exits. The binary is started once more for each program inside a
// namespace: other is what it does in a package's own modes. Main is to be the
// body of TestMain.
func Main(run func() int, other map[string]func()) {
	switch mode := os.Getenv(ModeVar); {
	case mode == "":
		os.Exit(again())
	case mode == "tests":
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			os.Exit(1)
		}
		os.Exit(run())
	case mode == "echo":
		echo(os.Args[1])
	case mode == "hold":
		hold(os.Args[1])
	case other[mode] != nil:
		other[mode]()
	}
}

// again runs this test binary in a new namespace and returns how it ended.
func again() int {
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Env = append(os.Environ(), ModeVar+"=tests")
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := self.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "these tests need root:", err)
		return 1
	}
	return 0
}

// echo is a server that sends back what it gets, until its input ends.
func echo(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}

// hold opens one connection and says now, and for every line of its input,
// whether it works.
func hold(addr string) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	works := func() string {
		if err != nil {
			return "no"
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		// No protocol begins so, and nothing waits to see whether one does.
		if _, err = c.Write([]byte{0}); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if err != nil {
			return "no"
		}
		return "yes"
	}
	fmt.Println(works())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(works())
	}
}
