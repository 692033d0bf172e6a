package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// eventRate is how many events a second the audit trail has to take.
const eventRate = 1000

// A viewer is a browser that looks at the dashboard.
type viewer struct {
	t    testing.TB
	ctx  context.Context
	base string
}

// browse opens the dashboard in Chromium and logs in.
func (w *Weir) browse() *viewer {
	w.t.Helper()
	options := []chromedp.ExecAllocatorOption{chromedp.UserDataDir(w.t.TempDir()), chromedp.Flag("headless", true)}
	for _, flag := range []string{"no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(alloc)
	w.t.Cleanup(func() {
		cancel()
		cancelAlloc()
	})
	// Without a limit of its own: the browser lives as long as this context.
	if err := chromedp.Do(ctx); err != nil {
		w.t.Fatalf("chromium (apt-get install chromium): %v", err)
	}
	v := &viewer{w.t, ctx, fmt.Sprintf("http://127.0.0.1:%d", w.port())}
	v.do(chromedp.Navigate(v.base+"/login"), chromedp.SendKeys(chromedp.CSS("#token"), w.token()),
		chromedp.Click(chromedp.CSS("button.primary")), chromedp.WaitVisible(chromedp.CSS("#live")))
	return v
}

// token is what the dashboard and the API over TCP want to be shown.
func (w *Weir) token() string {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "data", "token"))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func (v *viewer) do(actions ...chromedp.Action[chromedp.Void]) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		v.t.Fatalf("the browser: %v", err)
	}
}

// number evaluates an expression of the page's.
func (v *viewer) number(expression string) int {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.ctx, time.Minute)
	defer cancel()
	n, err := chromedp.Run(ctx, chromedp.Evaluate[int](expression))
	if err != nil {
		v.t.Fatalf("the browser: %s: %v", expression, err)
	}
	return n
}

// newest is the number of the name in the page's first row.
const newest = `Number((/n(\d+)\.flood\.example/.exec((document.querySelector("#rows tr") || {}).innerText || "") || [0, -1])[1])`

// moves waits until the page shows rows that are newer than those it shows now.
func (v *viewer) moves() {
	v.t.Helper()
	before := v.number(newest)
	eventually(v.t, "newer rows", func() bool { return v.number(newest) > before })
}

// small checks that the page holds no more than it shows.
func (v *viewer) small() {
	v.t.Helper()
	if rows := v.number(`document.querySelectorAll("#rows tr").length`); rows > 200 {
		v.t.Errorf("the page has %d rows", rows)
	}
	if nodes := v.number(`document.querySelectorAll("*").length`); nodes > 6000 {
		v.t.Errorf("the page has %d elements", nodes)
	}
}

// ignores opens a stream over TCP and reads nothing of it.
func (v *viewer) ignores(path, header string) {
	v.t.Helper()
	address := strings.TrimPrefix(v.base, "http://")
	c, err := net.Dial("tcp", address)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(1024); err != nil {
		v.t.Fatal(err)
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n", path, address, header)
}

// cookie is that of another browser that logged in.
func (v *viewer) cookie(token string) string {
	v.t.Helper()
	request, err := http.NewRequest("POST", v.base+"/login", strings.NewReader(url.Values{"token": {token}}.Encode()))
	if err != nil {
		v.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Origin", v.base)
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		v.t.Fatal(err)
	}
	response.Body.Close()
	if len(response.Cookies()) == 0 {
		v.t.Fatalf("the login: %s", response.Status)
	}
	return "Cookie: " + response.Cookies()[0].String()
}

// Nothing is lost of a thousand events a second, who looks on goes on to see
// them, and who looks away holds nobody up. With WEIR_SOAK=10 this lasts a
// minute.
func TestAThousandEventsASecond(t *testing.T) {
	o := newOutside(t)
	quietEcho(o, "198.51.100.10:7")
	w := startPlainWeir(t, fmt.Sprintf("limits:\n  dns_queries_per_second: %d\n", 10*eventRate))
	ns, other := newNamespace(t), newNamespace(t)
	for _, name := range []string{ns, other} {
		w.run("attach", "netns:"+name, "--allow", "198.51.100.10:7")
	}
	length := time.Duration(min(times(t, 6), 60)) * time.Second
	v := w.browse()
	v.do(chromedp.Navigate(v.base + "/events"))

	flood := load(t, ns, "names", "n%d.flood.example", fmt.Sprint(eventRate))
	began := time.Now()
	measure := func() LoadResult {
		r := load(t, other, "paced", "198.51.100.10:7", "5ms").during(length / 3)
		if r.Refused > 0 || r.OK < 50 {
			t.Errorf("connections beside the events: %+v", r)
		}
		return r
	}
	v.moves()
	alone := measure()
	v.moves()
	v.small()

	cookie := v.cookie(w.token())
	for range 10 {
		v.ignores("/events/stream", cookie)
		v.ignores("/v1/events/stream", "Authorization: Bearer "+w.token())
	}
	beside := measure()
	t.Logf("connections: median %d µs, p99 %d µs; with 20 viewers that do not read: median %d µs, p99 %d µs: %.1f times",
		alone.P50, alone.P99, beside.P50, beside.P99, float64(beside.P99)/float64(alone.P99))
	// Everybody shares the processors: what must not be is that connections wait for viewers.
	if most := max(20*alone.P99, 200_000); beside.P99 > most {
		t.Errorf("with viewers that do not read the p99 rose from %d to %d µs", alone.P99, beside.P99)
	}

	// Whoever looks on can still choose what to see, and sees it come.
	v.moves()
	v.do(chromedp.SetAttributeValue(chromedp.CSS(`select[name=type] option:nth-child(2)`), "selected", ""), chromedp.Click(chromedp.CSS(".filters button.primary")))
	eventually(t, "the filter answers", func() bool {
		return v.number(`Number(new URLSearchParams(location.search).get("type") === "dns")`) == 1
	})
	v.moves()
	v.small()
	if rest := length - time.Since(began); rest > 0 {
		<-time.After(rest)
	}
	r := flood.during(0)
	t.Logf("%d events in %.1f s: %.0f a second", r.OK, r.Seconds, float64(r.OK)/r.Seconds)
	if r.Refused > 0 || r.Codes["NXDOMAIN"] != r.OK {
		t.Errorf("names that are not allowed: %+v", r)
	}
	if rate := float64(r.OK) / r.Seconds; rate < eventRate/2 {
		t.Errorf("%.0f events a second are too few for what this is to show", rate)
	}

	// Each name was asked for once: each is on record once, in order.
	var list []Event
	eventually(t, "everything is stored", func() bool {
		list = w.events("netns:"+ns, "--type", "dns")
		return len(list) >= r.OK
	})
	if len(list) != r.OK {
		t.Errorf("%d events of %d questions", len(list), r.OK)
	}
	seen := make([]bool, r.OK)
	last := int64(0)
	for _, e := range list {
		var n int
		if _, err := fmt.Sscanf(e.Host, "n%d.flood.example", &n); err != nil || n >= len(seen) || seen[n] {
			t.Fatalf("an event that nobody caused, or once too often: %+v", e)
		}
		if seen[n] = true; e.ID <= last {
			t.Fatalf("event %d comes after %d", e.ID, last)
		}
		last = e.ID
	}
	// Everybody who was let in is there as well.
	eventually(t, "an event for each connection", func() bool {
		return len(w.events("netns:"+other, "--type", "connect")) >= alone.OK+beside.OK
	})
}
