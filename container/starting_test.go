package container

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Podman's list waits for the very container whose start waits for us. It has
// told of its creation, and that is enough.
func TestStartingWhileTheListWaits(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	socket := filepath.Join(t.TempDir(), "podman.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/events"):
			for _, event := range []string{
				`{"Type":"container","Action":"create","Actor":{"ID":"ffff","Attributes":{"name":"other"}}}`,
				`{"Type":"container","Action":"create","Actor":{"ID":"` + id + `","Attributes":{"name":"web","image":"nginx","weir.attach":"true"}}}`,
			} {
				fmt.Fprintln(w, event)
			}
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			<-r.Context().Done()
		default:
			w.Header().Set("Api-Version", "1.44")
		}
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	process := exec.Command("unshare", "-n", "sleep", "600")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { process.Process.Kill(); process.Wait() })
	for own, err := os.Readlink("/proc/self/ns/net"); ; {
		got, gotErr := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", process.Process.Pid))
		if err != nil || gotErr != nil {
			t.Fatal(err, gotErr)
		}
		if got != own {
			break
		}
	}
	runtimes := Connect(socket)
	runtimes.Timeout = time.Minute
	c, err := runtimes.Starting(t.Context(), id, process.Process.Pid)
	if err != nil || c.Name != "web" || c.Image != "nginx" || c.Runtime != socket || len(c.Labels) != 1 || c.Labels[LabelAttach] != "true" {
		t.Errorf("%+v %v", c, err)
	}
}
