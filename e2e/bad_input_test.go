package e2e

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

// refused is a command that must fail: with this exit code, in a message that
// has all these words.
type refused struct {
	args []string
	code int
	want []string
}

func (w *Weir) refuses(list ...refused) {
	w.t.Helper()
	for _, r := range list {
		out, code := w.try(r.args...)
		w.judge(r, out, code)
	}
}

func (w *Weir) judge(r refused, out string, code int) {
	w.t.Helper()
	w.t.Logf("weir %s: exit %d\n%s", strings.Join(r.args, " "), code, out)
	if code != r.code {
		w.t.Errorf("weir %s: exit %d, want %d: %s", strings.Join(r.args, " "), code, r.code, out)
	}
	for _, word := range r.want {
		if !strings.Contains(out, word) {
			w.t.Errorf("weir %s: the message lacks %q: %s", strings.Join(r.args, " "), word, out)
		}
	}
}

// untouched fails the test if a container is attached, or was half.
func (w *Weir) untouched(boxes ...*Box) {
	w.t.Helper()
	if out := w.run("ps", "-o", "json"); strings.TrimSpace(out) != "[]" {
		w.t.Errorf("something is attached: %s", out)
	}
	host := run(w.t, "nft", "list", "tables")
	for _, b := range boxes {
		if strings.Contains(host, b.ID) {
			w.t.Errorf("a table of %s is left on the host:\n%s", b.Name, host)
		}
		if out := b.nsenter("nft", "list", "tables"); strings.Contains(out, "weir") {
			w.t.Errorf("a table is left in %s:\n%s", b.Name, out)
		}
	}
}

func TestContainersThatCannotBeAttached(t *testing.T) {
	w := startWeir(t, "")
	box := newBox(t)
	stopped := newBox(t)
	run(t, "docker", "kill", stopped.Name)
	onHost := newBox(t, "--network", "host")
	// Of seventeen ids two begin with the same digit.
	firsts := map[string]string{box.ID[:1]: box.Name}
	var prefix, one, other string
	for prefix == "" {
		b := newBox(t)
		if name, ok := firsts[b.ID[:1]]; ok {
			prefix, one, other = b.ID[:1], name, b.Name
		}
		firsts[b.ID[:1]] = b.Name
	}
	w.refuses(
		refused{[]string{"attach", "no-such-container"}, 1, []string{`"no-such-container"`, "docker ps"}},
		refused{[]string{"attach", prefix}, 1, []string{`"` + prefix + `"`, one, other, "use one of these ids"}},
		refused{[]string{"attach", stopped.Name}, 1, []string{stopped.Name, "not running", "docker start " + stopped.Name}},
		refused{[]string{"attach", onHost.Name}, 1, []string{onHost.Name, "host's own network", "a network of its own"}},
		refused{[]string{"attach", "pid:99999999"}, 1, []string{"99999999"}},
		refused{[]string{"attach", "netns:/no/such/file"}, 1, []string{"/no/such/file"}},
		refused{[]string{"detach", box.Name}, 1, []string{box.Name, "not attached", "weir attach"}},
		refused{[]string{"explain", box.Name, "example.com"}, 1, []string{box.Name, "not attached", "weir attach"}},
		refused{[]string{"dns", box.Name}, 1, []string{box.Name, "not attached"}},
	)
	w.untouched(box)
}

func TestRulesAndSessionsThatCannotBe(t *testing.T) {
	w := startWeir(t, "")
	box := newBox(t)
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	write := func(text string) {
		if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for pattern, want := range map[string]string{
		"api.*.example.com": "api.*.example.com", "foo*bar": "foo*bar", "": "DEST", "a b.example": "a b.example", "10.0.0.0/33": "10.0.0.0/33", "256.1.1.1": "256.1.1.1",
	} {
		code := 1
		if pattern == "" {
			code = 2
		}
		w.refuses(refused{[]string{"rule", "add", "deny", pattern}, code, []string{want}})
		w.refuses(refused{[]string{"attach", box.Name, "--allow", pattern}, code, []string{want}})
		w.refuses(refused{[]string{"session", "create", box.Name, "--allow", pattern}, code, []string{want}})
	}
	for _, ports := range []string{"0", "90-80", "70000", "80-", "-80", "80,,81"} {
		w.refuses(refused{[]string{"rule", "add", "deny", "example.com:" + ports}, 1, []string{`"` + ports + `"`}})
		w.refuses(refused{[]string{"attach", box.Name, "--allow", "example.com:" + ports}, 1, []string{`"` + ports + `"`}})
	}
	w.refuses(
		refused{[]string{"attach", box.Name, "--allow", "example.com:ssh"}, 2, []string{"example.com:ssh", "DEST:PORTS"}},
		refused{[]string{"attach", box.Name, "--session", "no spaces please"}, 1, []string{"no spaces please"}},
		refused{[]string{"attach", box.Name, "--ttl", "25h"}, 1, []string{"24"}},
		refused{[]string{"attach", box.Name, "--ttl", "0.5s"}, 2, []string{"500ms"}},
		refused{[]string{"attach", box.Name, "--policy", "/no/such.yaml"}, 1, []string{"/no/such.yaml"}},
		refused{[]string{"rule", "rm", "none"}, 1, []string{`"none"`, "weir rule list"}},
		refused{[]string{"session", "end", "none"}, 1, []string{`"none"`, "weir session list"}},
		refused{[]string{"session", "show", "none"}, 1, []string{`"none"`, "weir session list"}},
	)
	for text, place := range map[string]string{
		"version: 1\nrules:\n  - allow: \"a.*.b\"\n":                     ":3:12: ",
		"version: 1\nrules:\n  - allow: [oops\n":                         ":3:",
		"version: 1\nruels: []\n":                                        ":2:1: ",
		"version: 1\nrules:\n  - allow: example.com\n    ports: \"0\"\n": ":4:12: ",
	} {
		write(text)
		for _, args := range [][]string{
			{"policy", "check", broken}, {"attach", box.Name, "--policy", broken}, {"session", "create", box.Name, "--policy", broken},
		} {
			w.refuses(refused{args, 1, []string{broken + place}})
		}
	}
	w.untouched(box)
	if list := w.sessions(); len(list) > 0 {
		t.Errorf("sessions are left: %v", list)
	}
	if list := w.rules("--source", "global"); len(list) > 0 {
		t.Errorf("rules are left: %v", list)
	}

	// A session that is over is as if it had never been.
	w.run("session", "create", box.Name, "--id", "brief", "--ttl", "1s", "--allow", "example.com")
	eventually(t, "the session is over", func() bool { return len(w.sessions()) == 0 })
	w.refuses(refused{[]string{"session", "heartbeat", "brief"}, 1, []string{`"brief"`, "expired", "weir session list"}})
	if status, answer := w.api("POST", "/v1/sessions/brief/heartbeat", "{}"); status != 404 || !strings.Contains(answer, "brief") {
		t.Errorf("heartbeat of an expired session: %d %s", status, answer)
	}

	// A command line that cannot be understood is told apart from one that fails.
	for line, want := range map[string]string{
		"attach": "weir attach CONTAINER", "attach a b": "weir attach CONTAINER", "nonsense": `"nonsense"`,
		"ps --nonsense": "--nonsense", "ps -o xml": "xml", "rule": "add, list, rm", "rule add permit x.example": `"permit"`,
		"explain a example.com:99999": `"99999"`, "events --since yesterday": `"yesterday"`, "events --verdict perhaps": `"perhaps"`,
	} {
		w.refuses(refused{strings.Fields(line), 2, []string{want}})
	}
}

func TestSessionRefusedAtAttachLeavesNothing(t *testing.T) {
	w := startWeir(t, "")
	box, other := newBox(t), newBox(t)
	w.run("session", "create", other.Name, "--id", "taken")
	w.refuses(refused{[]string{"attach", box.Name, "--session", "taken"}, 1, []string{"taken", "belongs to", "weir session end taken", "was not attached"}})
	w.untouched(box, other)
	// What was attached before stays attached.
	w.run("attach", box.Name)
	w.refuses(refused{[]string{"attach", box.Name, "--session", "taken"}, 1, []string{"taken", "stays attached"}})
	if w.attached(box.Name) == nil {
		t.Error("a session that was refused detached the container")
	}
}

// serve runs a daemon that must end by itself.
func (w *Weir) serve(credential *syscall.Credential, args ...string) (string, int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.binary, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("weir %v: %v", args, err)
	}
	if ctx.Err() != nil {
		w.t.Errorf("weir %v goes on running", args)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestDaemonThatCannotStart(t *testing.T) {
	w := startWeir(t, "")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	newer := filepath.Join(dir, "newer", "weir.db")
	if err := os.Mkdir(filepath.Dir(newer), 0o700); err != nil {
		t.Fatal(err)
	}
	makeNewer(t, w, newer)
	with := func(socket, data, config, http string) []string {
		return []string{"serve", "--socket", socket, "--data-dir", data, "--config", config, "--http", http}
	}
	own := w.dir + "/weir.sock"
	free, empty, fresh := filepath.Join(dir, "weir.sock"), file("empty.yaml", ""), filepath.Join(dir, "data")
	for _, r := range []refused{
		{with(own, fresh, empty, "off"), 1, []string{own, "another daemon answers", "--socket"}},
		{with(free, filepath.Join(w.dir, "data"), empty, "off"), 1, []string{filepath.Join(w.dir, "data"), "in use", "--data-dir"}},
		{with(free, filepath.Dir(newer), empty, "off"), 1, []string{newer, "version 9999", "install the weir that wrote it"}},
		{with(free, fresh, file("unknown.yaml", "dns:\n  upstream: [1.1.1.1]\n"), "off"), 1, []string{dir + "/unknown.yaml", "upstream", "2:3"}},
		{with(free, fresh, file("broken.yaml", "dns: [\n"), "off"), 1, []string{dir + "/broken.yaml"}},
		{with(free, fresh, file("bad.yaml", "dns:\n  upstreams: [resolver.example]\n"), "off"), 1, []string{dir + "/bad.yaml", "dns.upstreams", `"resolver.example"`, "9.9.9.9"}},
		{with(free, fresh, dir+"/none.yaml", "off"), 1, []string{dir + "/none.yaml"}},
		{with(free, fresh, empty, "127.0.0.1:http-not"), 1, []string{"http-not", "--http"}},
		{with(free, file("a-file", ""), empty, "off"), 1, []string{dir + "/a-file"}},
		{with(empty, fresh, empty, "off"), 1, []string{empty, "not a socket", "--socket"}},
		{append(with(free, fresh, empty, "off"), "--nonsense"), 2, []string{"--nonsense", "--help"}},
	} {
		out, code := w.serve(nil, r.args...)
		w.judge(r, out, code)
	}

	// Without root. Binary and socket must be within reach first.
	for _, d := range []string{filepath.Dir(w.binary), filepath.Dir(dir), dir, w.dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	for _, r := range []refused{
		{with(free, fresh, empty, "off"), 1, []string{"needs root", "sudo weir serve"}},
		{[]string{"--socket", own, "ps"}, 1, []string{own, "no permission", "sudo", "group"}},
	} {
		out, code := w.serve(nobody, r.args...)
		w.judge(r, out, code)
	}
	r := refused{[]string{"--socket", dir + "/none.sock", "ps"}, 1, []string{dir + "/none.sock", "weir serve"}}
	out, code := w.serve(nil, r.args...)
	w.judge(r, out, code)
	if out := w.run("ps"); !strings.Contains(out, "CONTAINER") {
		t.Errorf("the first daemon no longer answers: %s", out)
	}
}

// makeNewer makes a database that a later version of Weir has been at.
func makeNewer(t testing.TB, w *Weir, file string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "data", "weir.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("VACUUM INTO ?", file); err != nil {
		t.Fatal(err)
	}
	copied, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if _, err := copied.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)"); err != nil {
		t.Fatal(err)
	}
}

func TestDaemonWithoutARuntime(t *testing.T) {
	w := startWeir(t, "runtimes: [/run/weir-no-such-runtime.sock]\n")
	box := newBox(t)
	w.refuses(refused{[]string{"attach", box.Name}, 1, []string{"/run/weir-no-such-runtime.sock", "start docker", "configuration", "pid:N"}})
	w.untouched(box)
	// What needs no runtime works all the same.
	w.run("attach", "pid:"+box.pid())
	if out, ok := box.curl("http://198.51.100.10/"); ok {
		t.Errorf("reached: %s", out)
	}
	w.run("detach", "pid:"+box.pid())
	w.untouched(box)
}
