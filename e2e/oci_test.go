package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// registerRuntime makes Docker know w's wrapper as the runtime "weir-e2e" and
// undoes that at the end. Docker reads its list again on SIGHUP.
func registerRuntime(t *testing.T, w *Weir) {
	t.Helper()
	const path = "/etc/docker/daemon.json"
	old, err := os.ReadFile(path)
	had := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	config := map[string]any{}
	if had {
		if err := json.Unmarshal(old, &config); err != nil {
			t.Fatal(err)
		}
	}
	runtimes, _ := config["runtimes"].(map[string]any)
	if runtimes == nil {
		runtimes = map[string]any{}
	}
	runtimes["weir-e2e"] = map[string]any{"path": weirBinary, "runtimeArgs": []string{"oci-runtime", "--socket", w.socket, "--"}}
	config["runtimes"] = runtimes
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("/etc/docker", 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "sh", "-c", "kill -HUP $(pidof dockerd)")
	}
	t.Cleanup(func() {
		if had {
			write(old)
		} else {
			write([]byte("{}"))
			os.Remove(path)
		}
	})
	write(text)
	eventually(t, "docker knows the runtime", func() bool {
		return strings.Contains(run(t, "docker", "info", "-f", "{{json .Runtimes}}"), "weir-e2e")
	})
}

func TestRuntimeWrapperAttachesBeforeTheFirstInstruction(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	seen := o.watch("198.51.100.10")
	w := startWeir(t, "")
	registerRuntime(t, w)

	// The very first thing that the container does is refused, and the event has its name.
	name := unique(t, "oci")
	out, err := try("docker", "run", "--rm", "--runtime", "weir-e2e", "--name", name, clientImage, "curl", "-sS", "--max-time", "5", "http://198.51.100.10/")
	if err == nil {
		t.Errorf("the container's first connection passed: %s", out)
	}
	w.waitEvent(name, "the refusal", func(e Event) bool { return e.Type == "connect" && e.Verdict == "deny" })
	if packets := seen(); len(packets) > 0 {
		t.Errorf("packets got out before the attach: %v", packets)
	}

	// Its labels open a session before it runs.
	name = unique(t, "oci")
	out, err = try("docker", "run", "--rm", "--runtime", "weir-e2e", "--label", "weir.attach=true", "--label", "weir.session.allow-all=true",
		"--name", name, clientImage, "curl", "-sS", "--max-time", "5", "http://198.51.100.10/")
	if err != nil || !strings.Contains(out, "hello") {
		t.Errorf("under the session of its labels: %v %s", err, out)
	}

	// Without the daemon it does not start, and says why.
	w.stop()
	out, err = try("docker", "run", "--rm", "--runtime", "weir-e2e", clientImage, "true")
	if err == nil || !strings.Contains(out, "does not start without its firewall") {
		t.Errorf("without the daemon: %v %s", err, out)
	}
	w.start()
	if bytes.Contains([]byte(w.run("ps", "-o", "json")), []byte(name)) {
		t.Errorf("a container that is gone is still listed")
	}
}

// The start of a container waits for a daemon that is being restarted.
func TestRuntimeWrapperWaitsForADaemonThatRestarts(t *testing.T) {
	o := newOutside(t)
	hello(o, "198.51.100.10:80")
	w := startWeir(t, "")
	registerRuntime(t, w)
	for _, end := range []func(){w.stop, w.kill} {
		end()
		name := unique(t, "oci")
		var out string
		var err error
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			out, err = try("docker", "run", "--rm", "--runtime", "weir-e2e", "--label", "weir.attach=true", "--label", "weir.session.allow-all=true",
				"--name", name, clientImage, "curl", "-sS", "--max-time", "5", "http://198.51.100.10/")
		}()
		eventually(t, "the container's start asks for the daemon", func() bool {
			_, err := try("pgrep", "-f", "^weir --socket "+w.socket+" oci-hook")
			return err == nil
		})
		w.start()
		<-ended
		if err != nil || !strings.Contains(out, "hello") {
			t.Errorf("started while the daemon was away: %v %s", err, out)
		}
		w.waitEvent(name, "its connection", func(e Event) bool { return e.Type == "connect" && e.Verdict == "allow" })
	}
}
