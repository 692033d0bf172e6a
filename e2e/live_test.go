package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// liveClient opens a connection, waits for one byte of an echo server, says
// so, and says when the connection has ended, as its clock shows it.
const liveClient = `
import socket, sys, time
host, port, busy = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "busy"
s = socket.create_connection((host, port), timeout=10)
s.sendall(b"\0")
assert s.recv(1) == b"\0"
print("up", flush=True)
s.settimeout(60)
try:
    while True:
        if busy:
            s.sendall(b"x" * 1000)
            time.sleep(0.005)
        if not s.recv(65536):
            break
except OSError:
    pass
print(time.time(), flush=True)
`

// echoes says whether an echo server answers. A connection that Weir refuses
// is accepted, by Weir, before it is reset: only an answer proves one.
func (b *Box) echoes(host string, port int) bool {
	_, ok := b.sh(fmt.Sprintf("echo are you there | nc -N -w5 %s %d | grep -qx 'are you there'", host, port))
	return ok
}

// Live is a connection of a program inside a box.
type Live struct {
	t     testing.TB
	what  string
	lines chan string
}

// connect opens a connection to an echo server and keeps it: silent, or busy.
func (b *Box) connect(host string, port int, mode string) *Live {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "docker", "exec", b.Name, "python3", "-c", liveClient, host, strconv.Itoa(port), mode)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	l := &Live{t: b.t, what: fmt.Sprintf("%s connection to %s:%d", mode, host, port), lines: make(chan string, 2)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(l.lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			l.lines <- scan.Text()
		}
		cmd.Wait()
	}()
	b.t.Cleanup(func() { cancel(); <-ended })
	if line := l.line(); line != "up" {
		b.t.Fatalf("%s: not established: %q", l.what, line)
	}
	return l
}

func (l *Live) line() string {
	l.t.Helper()
	select {
	case line := <-l.lines:
		return line
	case <-time.After(30 * time.Second):
		l.t.Fatalf("%s: nothing happened for 30 s", l.what)
		return ""
	}
}

// cut waits until the connection has ended and returns when it did.
func (l *Live) cut() time.Time {
	l.t.Helper()
	line := l.line()
	at, err := strconv.ParseFloat(line, 64)
	if err != nil {
		l.t.Fatalf("%s: the client said %q", l.what, line)
	}
	return time.UnixMicro(int64(at * 1e6))
}

// alive fails the test if the connection has ended.
func (l *Live) alive() {
	l.t.Helper()
	select {
	case line := <-l.lines:
		l.t.Errorf("%s has ended: %q", l.what, line)
	default:
	}
}

// api calls the daemon's HTTP API on its socket.
func (w *Weir) api(method, path, body string) (status int, answer string) {
	w.t.Helper()
	client := w.client()
	defer client.CloseIdleConnections()
	status, answer, err := call(client, method, path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	return status, answer
}

// client is an HTTP client of the daemon's socket.
func (w *Weir) client() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
		},
	}}
}

// call sends one request to the API. An error means that there was no answer.
func call(client *http.Client, method, path, body string) (status int, answer string, err error) {
	request, err := http.NewRequest(method, "http://weir"+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// Session is the part of a session that the tests look at.
type Session struct {
	ID           string
	ExpiresAt    time.Time `json:"expires_at"`
	Current      bool
	AllowAll     bool `json:"allow_all"`
	RulesCreated int  `json:"rules_created"`
}

// session runs a session command that prints one session.
func (w *Weir) session(args ...string) (s Session) {
	w.t.Helper()
	w.json(&s, append([]string{"session"}, args...)...)
	return s
}

// Attached is one line of weir ps.
type Attached struct {
	Flows     int
	ID        string `json:"container_id"`
	Name      string
	NetNS     string `json:"netns"`
	State     string
	Mode      string
	SessionID string `json:"session_id"`
	Warnings  []string
	// AttachedAt tells two attachments of one container apart; a namespace's
	// number may be given to its successor.
	AttachedAt time.Time `json:"attached_at"`
}

// attached returns what weir ps says of a container; nil if nothing.
func (w *Weir) attached(name string) *Attached {
	w.t.Helper()
	var list []Attached
	w.json(&list, "ps")
	for _, a := range list {
		if a.Name == name || a.ID == name {
			return &a
		}
	}
	return nil
}
