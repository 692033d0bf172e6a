package web

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// chromium is the one browser of all tests; each test has a profile of its own.
var chromium struct {
	once  sync.Once
	ctx   context.Context
	close []func()
	err   error
}

func closeBrowser() {
	for _, f := range chromium.close {
		f()
	}
}

func openBrowser() {
	dir, err := os.MkdirTemp("", "weir-chromium")
	if err != nil {
		chromium.err = err
		return
	}
	options := []chromedp.ExecAllocatorOption{chromedp.UserDataDir(dir), chromedp.Flag("headless", true)}
	for _, flag := range []string{"no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(alloc)
	chromium.ctx, chromium.err = ctx, chromedp.Do(ctx)
	chromium.close = []func(){cancel, cancelAlloc, func() { os.RemoveAll(dir) }}
}

// tab is a browser's tab in a profile of its own.
type tab struct {
	t   testing.TB
	ctx context.Context
	s   *service
}

// open opens a tab. What the browser complains about, such as a script that
// its policy refuses, fails the test.
func (s *service) open() *tab {
	s.t.Helper()
	chromium.once.Do(openBrowser)
	if chromium.err != nil {
		s.t.Fatalf("chromium (apt-get install chromium): %v", chromium.err)
	}
	ctx, cancel := chromedp.NewContext(chromium.ctx, chromedp.WithNewBrowserContext())
	b := &tab{s.t, ctx, s}
	messages := chromedp.Console(ctx)
	var listening sync.WaitGroup
	listening.Go(func() {
		for m, err := range messages {
			if err != nil {
				return // the tab is closed
			}
			// Answers such as 422 are errors of the network; a stream that ended
			// is one that htmx prints.
			if m.IsException() || m.Type == "error" && m.Source != "network" && m.Text != "[object Event]" {
				s.t.Errorf("the browser complains: %s", m)
			}
		}
	})
	s.t.Cleanup(func() {
		cancel()
		listening.Wait()
	})
	return b
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatalf("%v on:\n%s", err, b.text())
	}
}

func (b *tab) to(path string) { b.t.Helper(); b.do(chromedp.Navigate(b.s.base + path)) }

// logIn shows the token, as a user does.
func (b *tab) logIn() {
	b.t.Helper()
	b.to("/")
	b.do(chromedp.SendKeys(chromedp.CSS("#token"), token))
	b.click("button.primary")
	b.do(chromedp.WaitVisible(chromedp.CSS("#live")))
}

// eval evaluates an expression.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// wait waits until an expression is true. A page that goes away while it is
// looked at is looked at again.
func (b *tab) wait(what, expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for {
		v, err := chromedp.Run(ctx, chromedp.Evaluate[bool](expression))
		switch {
		case v:
			return
		case ctx.Err() != nil:
			b.t.Fatalf("waiting until %s: %v\n%s", what, err, b.text())
		}
		<-time.After(20 * time.Millisecond)
	}
}

// text is what the page says.
func (b *tab) text() string { b.t.Helper(); return eval[string](b, "document.body.innerText") }

func (b *tab) says(what ...string) {
	b.t.Helper()
	text := b.text()
	for _, w := range what {
		if !strings.Contains(text, w) {
			b.t.Errorf("the page does not say %q:\n%s", w, text)
		}
	}
}

// fill sets fields of a form by their names.
func (b *tab) fill(form string, pairs ...string) {
	b.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		b.do(chromedp.SetValue(chromedp.CSS(fmt.Sprintf("%s [name=%s]", form, pairs[i])), pairs[i+1]))
	}
}

// click clicks what loads another page, and waits for it.
func (b *tab) click(selector string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.RunResponse(ctx, chromedp.Click(chromedp.CSS(selector))); err != nil {
		b.t.Fatalf("%s: %v on:\n%s", selector, err, b.text())
	}
}

// The two widths that pages are looked at in.
var widths = []int64{1280, 390}

// shoot takes pictures of the page in both widths, and checks that nothing
// sticks out.
func (b *tab) shoot(dir, name string, dark bool) {
	b.t.Helper()
	for _, width := range widths {
		scheme := map[bool]string{true: "dark", false: "light"}[dark]
		b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
			_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}), chromedp.EmulateViewport(width, 900))
		picture, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
		if err != nil {
			b.t.Fatal(err)
		}
		if over := eval[int64](b, "document.documentElement.scrollWidth"); over > width {
			b.t.Errorf("%s is %d wide in a window of %d", name, over, width)
		}
		if over := eval[int64](b, `Math.max(0, ...[...document.querySelectorAll(".scroll")].map(e => e.scrollWidth - e.clientWidth))`); over > 0 {
			b.t.Errorf("%s: a table is %d too wide in a window of %d", name, over, width)
		}
		file := filepath.Join(dir, fmt.Sprintf("%s-%s-%d.png", name, scheme, width))
		if err := os.WriteFile(file, picture, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
}
