package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Flood opens connections from inside a container without end.
type Flood struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.Closer
	out   bytes.Buffer
}

// answer is one connection that the server answered.
type answer struct{ begun, done time.Time }

func (b *Box) flood(address string, perSecond int) *Flood {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), "flood")
	build := exec.Command("go", "build", "-o", file, "./testdata/flood")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.t.Fatalf("build: %v\n%s", err, out)
	}
	run(b.t, "docker", "cp", file, b.Name+":/flood")
	f := &Flood{t: b.t, cmd: exec.Command("docker", "exec", "-i", b.Name, "/flood", address, fmt.Sprint(perSecond))}
	var err error
	if f.stdin, err = f.cmd.StdinPipe(); err != nil {
		b.t.Fatal(err)
	}
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.out
	if err := f.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.cmd.Process.Kill() })
	return f
}

// stop ends the flood and returns what was answered, and how many were tried.
func (f *Flood) stop() (answers []answer, summary string) {
	f.t.Helper()
	f.stdin.Close()
	if err := f.cmd.Wait(); err != nil {
		f.t.Fatalf("flood: %v: %s", err, f.out.String())
	}
	for line := range strings.Lines(f.out.String()) {
		var begun, done int64
		if n, _ := fmt.Sscan(line, &begun, &done); n == 2 {
			answers = append(answers, answer{time.Unix(0, begun), time.Unix(0, done)})
		} else {
			summary = strings.TrimSpace(line)
		}
	}
	return answers, summary
}

// acceptances are the times at which a server accepted connections.
type acceptances struct {
	mu    sync.Mutex
	times []time.Time
}

// after counts the connections that were accepted after t.
func (a *acceptances) after(t time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.times {
		if at.After(t) {
			n++
		}
	}
	return n
}

func (o *Outside) echoWithTimes(address string) *acceptances {
	a := &acceptances{}
	o.serve(address, func(c net.Conn) {
		a.mu.Lock()
		a.times = append(a.times, time.Now())
		a.mu.Unlock()
		io.Copy(c, c)
	})
	return a
}

func TestAttachUnderFireLetsNothingPassUndecided(t *testing.T) {
	o := newOutside(t)
	const server = "198.51.100.10"
	accepted := o.echoWithTimes(server + ":7")
	echo(o, "198.51.100.11:7")
	w := startWeir(t, "")
	// User-defined networks have a translation of their own, by which old
	// connections would flow around a redirection.
	box := newBox(t, "--network", newNetwork(t))
	silent, busy := box.connect("198.51.100.11", 7, "silent"), box.connect("198.51.100.11", 7, "busy")
	flood := box.flood(server+":7", 1000)
	eventually(t, "the flood is under way", func() bool { return accepted.after(time.Time{}) > 500 })

	begun := time.Now()
	_, text := w.api("POST", "/v1/attachments", fmt.Sprintf(`{"container":%q}`, box.Name))
	attached := time.Now()
	for _, l := range []*Live{silent, busy} {
		if at := l.cut(); at.After(attached.Add(5 * time.Second)) {
			t.Errorf("%s was cut %v after the attach had returned", l.what, at.Sub(attached))
		}
	}
	var a struct {
		Closed []struct{ Transport, Local, Remote string } `json:"closed_connections"`
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	listed := 0
	for _, c := range a.Closed {
		if c.Remote == "198.51.100.11:7" && c.Transport == "tcp" {
			listed++
		}
	}
	if listed != 2 {
		t.Errorf("%d of 2 connections from before are listed: %v", listed, a.Closed)
	}

	// Denied by default: whole seconds of attempts, and none is answered.
	denied := func() int { return len(w.events(box.Name, "--verdict", "deny", "--since", "1h")) }
	eventually(t, "many denials", func() bool { return denied() > 1000 })
	opened := time.Now()
	w.run("session", "create", box.Name, "--allow", server+":7")
	eventually(t, "the flood passes", func() bool { return accepted.after(opened) > 300 })
	answers, summary := flood.stop()
	t.Logf("attached in %v, %d connections cut; the flood: %s, %d answered", attached.Sub(begun), len(a.Closed), summary, len(answers))

	before, after := 0, 0
	for _, one := range answers {
		switch {
		case one.done.Before(attached):
			before++
		case one.done.After(opened):
			after++
		default:
			t.Errorf("a connection begun %v after the attach was answered %v after it, by nobody's decision",
				one.begun.Sub(attached), one.done.Sub(attached))
		}
	}
	if before == 0 || after == 0 {
		t.Errorf("%d connections before and %d after prove nothing", before, after)
	}
	// Each connection that the server saw since has its event.
	var allowed int
	eventually(t, "an event for each connection", func() bool {
		allowed = 0
		for _, e := range w.events(box.Name, "--verdict", "allow") {
			if e.Type == "connect" && e.Address == server && e.Port == 7 && e.Layer == "session" {
				allowed++
			}
		}
		return allowed >= accepted.after(opened)
	})
	if n := accepted.after(opened); allowed != n || n < after {
		t.Errorf("the server accepted %d connections, of which %d were answered; %d were allowed", n, after, allowed)
	}
}

// startPlainWeir starts a daemon without the race detector, which makes
// everything slower by an order of magnitude.
func startPlainWeir(t testing.TB, config string) *Weir {
	t.Helper()
	w := newWeir(t, config)
	w.binary = filepath.Join(filepath.Dir(weirBinary), "weir-plain")
	run(t, "go", "build", "-o", w.binary, "../cmd/weir")
	w.start()
	return w
}

// How long an attach takes is measured with the binary that users run.
func TestAttachIsQuick(t *testing.T) {
	newOutside(t)
	w := startPlainWeir(t, "")
	box := newBox(t, "--network", newNetwork(t))
	docker := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", "/var/run/docker.sock")
	}}}
	var took, runtime []time.Duration
	for range 15 {
		start := time.Now()
		if status, text := w.api("POST", "/v1/attachments", fmt.Sprintf(`{"container":%q}`, box.Name)); status != 201 {
			t.Fatalf("attach: %d %s", status, text)
		}
		took = append(took, time.Since(start))
		w.run("detach", box.Name)
		start = time.Now()
		response, err := docker.Get("http://docker/containers/" + box.Name + "/json")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		runtime = append(runtime, time.Since(start))
	}
	slices.Sort(took)
	slices.Sort(runtime)
	t.Logf("attach, the runtime's answer included: fastest %v, median %v, slowest %v; one answer of the runtime: median %v",
		took[0], took[len(took)/2], took[len(took)-1], runtime[len(runtime)/2])
	// 100 ms is what users are promised; half of the attempts may be slower on
	// a machine that does other things.
	if took[len(took)/4] > 100*time.Millisecond+runtime[len(runtime)/2] {
		t.Errorf("a quarter of the attaches took less than %v: want 100 ms beside the runtime's answer", took[len(took)/4])
	}
}
