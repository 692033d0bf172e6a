package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSelftestHoldsAndLeavesNothing(t *testing.T) {
	w := startWeir(t, "")
	// Its own names only: others come and go on this machine meanwhile.
	own := regexp.MustCompile(`(?m)^.*(weirst|weir-selftest-|weir-netns-).*$`)
	left := func() []string {
		return own.FindAllString(run(t, "ip", "-br", "link")+run(t, "ip", "netns")+run(t, "nft", "list", "tables"), -1)
	}
	before := left()
	var results []attacked
	w.json(&results, "selftest")
	if len(results) < 15 {
		t.Errorf("only %d attacks", len(results))
	}
	recorded := map[int64]bool{}
	for _, r := range results {
		if !r.Held {
			t.Errorf("%s: %s", r.Attack, r.Detail)
		}
		if recorded[r.Event] {
			t.Errorf("%s: event %d was another attack's", r.Attack, r.Event)
		}
		recorded[r.Event] = r.Event != 0
	}
	if len(recorded) < 12 {
		t.Errorf("only %d attacks are on record: %v", len(recorded), results)
	}
	eventually(t, "nothing is left", func() bool { return cmp.Equal(before, left()) })
	if out := w.run("ps"); strings.Contains(out, "selftest") {
		t.Errorf("still attached: %s", out)
	}
}

type attacked struct {
	Attack, Detail string
	Held           bool
	Event          int64
}

// A daemon that stops an attack and does not record it fails, for that attack
// alone.
func TestSelftestNoticesWhatIsNotOnRecord(t *testing.T) {
	w := startWeir(t, "")
	daemon := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
	}}
	t.Cleanup(daemon.CloseIdleConnections)
	forgetful := &http.Server{Handler: &httputil.ReverseProxy{
		Transport: daemon,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "weir"}) },
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Path != "/v1/events" {
				return nil
			}
			var page struct {
				Items []map[string]any `json:"items"`
			}
			err := errors.Join(json.NewDecoder(r.Body).Decode(&page), r.Body.Close())
			page.Items = slices.DeleteFunc(page.Items, func(e map[string]any) bool { return e["type"] == "dns" && e["transport"] == "tcp" })
			text, encodeErr := json.Marshal(page)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
			r.Header.Set("Content-Length", strconv.Itoa(len(text)))
			return errors.Join(err, encodeErr)
		},
	}}
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go forgetful.Serve(listener)
	t.Cleanup(func() { forgetful.Close() })

	out, err := exec.Command(weirBinary, "--socket", socket, "selftest", "-o", "json").Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v, want exit code 1", err)
	}
	var results []attacked
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	missing := 0
	for _, r := range results {
		if forgotten := strings.Contains(r.Attack, "DNS") && strings.Contains(r.Attack, "TCP"); forgotten == r.Held {
			t.Errorf("%s: held %v: %s", r.Attack, r.Held, r.Detail)
		} else if forgotten && strings.Contains(r.Detail, "was stopped, but is not on record") {
			missing++
		}
	}
	if missing != 1 {
		t.Errorf("%d attacks are told to be missing, want 1: %v", missing, results)
	}
}
