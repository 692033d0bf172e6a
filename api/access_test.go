package api

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"weir/e2e/netlab"
)

func TestCallersOverTCP(t *testing.T) {
	s := newService(t)
	_, port, err := net.SplitHostPort(s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		name, host, origin, auth string
		status                   int
	}{
		{"a good one", s.tcp, "", "Bearer " + token, 200},
		{"by name", "localhost:" + port, "", "Bearer " + token, 200},
		{"from its own site", s.tcp, "http://" + s.tcp, "Bearer " + token, 200},
		{"without a token", s.tcp, "", "", 401},
		{"with another token", s.tcp, "", "Bearer " + token + "x", 401},
		{"with half a token", s.tcp, "", "Bearer " + token[:5], 401},
		{"with another scheme", s.tcp, "", "Basic " + token, 401},
		{"a name that was made to point here", "evil.example:" + port, "", "Bearer " + token, 421},
		{"another address", "127.0.0.2:" + port, "", "Bearer " + token, 421},
		{"another port", "127.0.0.1:1", "", "Bearer " + token, 421},
		{"no port", "localhost", "", "Bearer " + token, 421},
		{"another site", s.tcp, "http://evil.example", "Bearer " + token, 403},
		{"a sandboxed page", s.tcp, "null", "Bearer " + token, 403},
		{"its own site by TLS", s.tcp, "https://" + s.tcp, "Bearer " + token, 403},
	} {
		req, err := http.NewRequest("GET", "http://"+s.tcp+"/v1/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		if c.auth != "" {
			req.Header.Set("Authorization", c.auth)
		}
		a := s.do(client, req)
		if a.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.status, a.body)
		}
		if c.status == 401 && a.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: no WWW-Authenticate", c.name)
		}
		if a.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: other sites may read the answer", c.name)
		}
	}
}

// The kernel says who calls, whatever the mode of the socket.
func TestStrangersOnTheSocket(t *testing.T) {
	s := newService(t)
	if info, err := os.Stat(s.socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	for dir := filepath.Dir(s.socket); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	// A copy, because the test binary lies where strangers may not look.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(s.socket), "caller")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	call := func(uid uint32) string {
		cmd := exec.Command(program, s.socket)
		cmd.Env = []string{netlab.ModeVar + "=stranger"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := call(65534); !strings.Contains(got, "user 65534 may not use this socket") {
		t.Errorf("a stranger: %s", got)
	}
	if got := call(0); got != "<nil>" {
		t.Errorf("root: %s", got)
	}
}

func TestASocketIsNotTakenAwayFromOneWhoAnswers(t *testing.T) {
	s := newService(t)
	if _, err := ListenSocket(s.socket); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("%v", err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenSocket(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("%v", err)
	}
	// What a dead daemon left is in nobody's way.
	stale := filepath.Join(dir, "new", "stale.sock")
	for range 2 {
		l, err := ListenSocket(stale)
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	client := NewClient(stale)
	if _, err := client.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "sudo weir serve") {
		t.Errorf("%v", err)
	}
	if _, err := NewClient(filepath.Join(dir, "none")).Health(t.Context()); err == nil || !strings.Contains(err.Error(), "no daemon at") {
		t.Errorf("%v", err)
	}
}

func TestTheTokenIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	first, err := LoadToken(path)
	if err != nil || len(first) < 16 {
		t.Fatalf("%q %v", first, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if again, err := LoadToken(path); err != nil || again != first {
		t.Errorf("%q %v, want %q", again, err, first)
	}
	if err := os.WriteFile(path, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadToken(path); err == nil {
		t.Error("a short token was taken")
	}
}
