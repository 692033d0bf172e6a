package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A Terminal is a command on a terminal of its own.
type Terminal struct {
	t      testing.TB
	master *os.File
	cmd    *exec.Cmd
	exited chan error

	mu   sync.Mutex
	text strings.Builder
	read int // how much of text was waited for
}

// terminal starts a client command on a pseudo-terminal (pty(7)).
func (w *Weir) terminal(args ...string) *Terminal {
	w.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer slave.Close()
	x := &Terminal{t: w.t, master: master, exited: make(chan error, 1)}
	x.cmd = exec.Command(w.binary, append([]string{"--socket", w.socket}, args...)...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := master.Read(b)
			x.mu.Lock()
			x.text.Write(b[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() { x.exited <- x.cmd.Wait() }()
	w.t.Cleanup(func() {
		x.cmd.Process.Kill()
		master.Close()
		if w.t.Failed() {
			w.t.Logf("on the terminal:\n%s", x.all())
		}
	})
	return x
}

func (x *Terminal) all() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.String()
}

// shows waits until something is said after what was waited for before.
func (x *Terminal) shows(what string) {
	x.t.Helper()
	eventually(x.t, "the terminal shows "+what, func() bool {
		text := x.all()
		at := strings.Index(text[x.read:], what)
		if at < 0 {
			return false
		}
		x.read += at + len(what)
		return true
	})
}

// types presses keys.
func (x *Terminal) types(keys string) {
	x.t.Helper()
	if _, err := x.master.WriteString(keys); err != nil {
		x.t.Fatal(err)
	}
}

func TestQuestionsAreAnsweredOnATerminal(t *testing.T) {
	askedFor(t)
	w := startWeir(t, "")
	ns := newNamespace(t)
	box := &Box{Name: "netns:" + ns}
	w.run("attach", box.Name, "--ask", "--session", "asks", "--ttl", "10m")
	fetch := func(url string) *Pending {
		p := &Pending{ended: make(chan struct{})}
		go func() {
			defer close(p.ended)
			out, err := try("ip", "netns", "exec", ns, "curl", "-4", "-sS", "--max-time", "55", url)
			p.out, p.ok = out, err == nil
		}()
		return p
	}
	x := w.terminal("ask")
	x.shows("Waiting for questions")

	// A key that answers nothing is no answer; one key each for the rest.
	held := fetch("http://one.shop.example/")
	for _, what := range []string{box.Name + " wants one.shop.example:80", "session  asks", "no rule of any layer allows", "a allow, d deny"} {
		x.shows(what)
	}
	x.types("xa")
	x.shows("s for the session")
	x.types("s")
	for _, what := range []string{"e  session rule: allow one.shop.example ports 80 (Enter)", "h  session rule: allow one.shop.example ports *", "s  session rule: allow **.shop.example ports 80"} {
		x.shows(what)
	}
	x.types("s")
	x.shows("allowed")
	x.shows("session rule: allow **.shop.example ports 80")
	if out, ok := held.end(t); !ok || !strings.Contains(out, "hello one.shop.example") {
		t.Errorf("what was allowed: %s", out)
	}
	if out, ok := fetch("http://two.shop.example/").end(t); !ok {
		t.Errorf("the rule does not count: %s", out)
	}

	// Somebody else answers.
	held = fetch("http://three.example/")
	x.shows("wants three.example:80")
	w.answer(w.question(box, "three.example", 80, 1), "allow")
	x.shows("allowed once by root")
	if out, ok := held.end(t); !ok {
		t.Errorf("what somebody else allowed: %s", out)
	}

	// At once, and no.
	held = fetch("http://three.example:8080/")
	x.shows("wants three.example:8080")
	x.types("D")
	x.shows("denied")
	if out, ok := held.end(t); ok {
		t.Errorf("what was denied: %s", out)
	}

	// The terminal is left as it was found.
	x.types("\x03")
	if err := <-x.exited; err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	state, err := unix.IoctlGetTermios(int(x.master.Fd()), unix.TCGETS)
	if err != nil || state.Lflag&unix.ICANON == 0 || state.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal is left changed: %+v %v", state, err)
	}
}

func TestAskWithoutATerminalSaysWhatToUse(t *testing.T) {
	w := startWeir(t, "")
	out, code := w.try("ask")
	if code != 2 || !strings.Contains(out, "weir ask list") || !strings.Contains(out, "weir ask answer") {
		t.Errorf("exit %d: %s", code, out)
	}
}
