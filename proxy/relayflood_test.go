package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"weir/audit"
)

// A flooder is an HTTP/2 client that need not follow the rules.
type flooder struct {
	net.Conn
	*http2.Framer
	block bytes.Buffer
	hpack *hpack.Encoder
	next  uint32 // stream
}

func (l *relayLab) flooder() *flooder {
	l.t.Helper()
	f := &flooder{Conn: l.dial("h2"), next: 1}
	f.Framer = http2.NewFramer(f.Conn, f.Conn)
	f.hpack = hpack.NewEncoder(&f.block)
	if _, err := io.WriteString(f.Conn, http2.ClientPreface); err != nil {
		l.t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		l.t.Fatal(err)
	}
	return f
}

// fields is an encoded request, with more fields behind.
func (f *flooder) fields(method, path string, more ...string) []byte {
	f.block.Reset()
	list := append([]string{":method", method, ":scheme", "https", ":authority", labHost, ":path", path}, more...)
	for i := 0; i < len(list); i += 2 {
		f.hpack.WriteField(hpack.HeaderField{Name: list[i], Value: list[i+1]})
	}
	return f.block.Bytes()
}

// open begins a stream and returns its number.
func (f *flooder) open(end bool, fields []byte) (uint32, error) {
	id := f.next
	f.next += 2
	return id, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fields, EndHeaders: true, EndStream: end})
}

// drain reads what comes until the connection ends.
func (f *flooder) drain() <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			if _, err := f.ReadFrame(); err != nil {
				return
			}
		}
	}()
	return over
}

// Frames that cost their sender little and could cost much to take: each flood
// ends in an end of its connection, or goes on without piling anything up, and
// others are served meanwhile and after.
func TestRelayHTTP2FloodsAreBounded(t *testing.T) {
	bare := func(f *flooder, step func(i int) error) (steps int) {
		for steps = range 50_000 {
			if step(steps) != nil {
				return steps
			}
		}
		return steps
	}
	for name, flood := range map[string]struct {
		run func(f *flooder) (steps int)
		// reads: the client takes what is sent to it.
		reads bool
		// ends: the connection ends long before the flood does. Another one may
		// be let be, or ended if the machine is slow.
		ends bool
	}{
		"rapid reset": {func(f *flooder) int {
			return bare(f, func(int) error {
				id, err := f.open(true, f.fields("GET", "/ok/a"))
				if err != nil {
					return err
				}
				return f.WriteRSTStream(id, http2.ErrCodeCancel)
			})
		}, true, false},
		"CONTINUATION without end": {func(f *flooder) int {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields("GET", "/ok/a")})
			f.block.Reset()
			f.hpack.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 1000), Sensitive: true})
			field := bytes.Clone(f.block.Bytes())
			return bare(f, func(int) error { return f.WriteContinuation(1, false, field) })
		}, true, true},
		"empty CONTINUATION": {func(f *flooder) int {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields("GET", "/ok/a")})
			return bare(f, func(int) error { return f.WriteContinuation(1, false, nil) })
		}, true, false},
		"empty DATA": {func(f *flooder) int {
			id, _ := f.open(false, f.fields("POST", "/ok/a"))
			return bare(f, func(int) error { return f.WriteData(id, false, nil) })
		}, true, false},
		"padded DATA": {func(f *flooder) int {
			id, _ := f.open(false, f.fields("POST", "/ok/a"))
			return bare(f, func(int) error { return f.WriteDataPadded(id, false, nil, make([]byte, 255)) })
		}, false, false},
		"PING without reading": {func(f *flooder) int {
			return bare(f, func(int) error { return f.WritePing(false, [8]byte{}) })
		}, false, false},
		"SETTINGS without reading": {func(f *flooder) int {
			return bare(f, func(int) error { return f.WriteSettings() })
		}, false, false},
		"resets of the server's": {func(f *flooder) int { // each stream is a refused one
			return bare(f, func(int) error { _, err := f.open(true, f.fields("GET", "no-path")); return err })
		}, false, false},
		"WINDOW_UPDATE and PRIORITY": {func(f *flooder) int {
			return bare(f, func(i int) error {
				if i%2 == 0 {
					return f.WriteWindowUpdate(0, 1)
				}
				return f.WritePriority(uint32(2*i+1), http2.PriorityParam{Weight: 1})
			})
		}, true, false},
		"more streams than allowed": {func(f *flooder) int {
			fields := bytes.Clone(f.fields("POST", "/ok/a"))
			return bare(f, func(int) error { _, err := f.open(false, fields); return err })
		}, true, false},
		"fields that grow when decoded": {func(f *flooder) int {
			long := strings.Repeat("z", 3000)
			if _, err := f.open(true, f.fields("GET", "/ok/a", "bomb", long)); err != nil { // from now on one byte is enough
				return 0
			}
			more := make([]string, 0, 20000)
			for range 10000 {
				more = append(more, "bomb", long)
			}
			fields := bytes.Clone(f.fields("GET", "/ok/a", more...))
			return bare(f, func(i int) error {
				if i == 2000 {
					return io.EOF
				}
				_, err := f.open(true, fields)
				return err
			})
		}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			var events atomic.Int64
			l := newRelayLab(t, 443, restPolicy, func(l *relayLab) {
				l.relay.Record = func(audit.Event) int64 { return events.Add(1) }
			})
			l.serve(new(canary), "h2")
			good := l.client(true)
			ask := func(when string) {
				t.Helper()
				if status, _, err := readRes(good.Get(l.url("/ok/other"))); err != nil || status != 200 {
					t.Errorf("%s: %d %v", when, status, err)
				}
			}
			ask("before")
			before := heapNow()
			f := l.flooder()
			f.SetDeadline(time.Now().Add(30 * time.Second))
			if flood.reads {
				f.drain()
			}
			steps := flood.run(f)
			ask("during the flood")
			if grown := heapNow() - before; grown > 32<<20 {
				t.Errorf("%d bytes more after %d steps", grown, steps)
			}
			if goroutines := runtime.NumGoroutine(); goroutines > 4000 {
				t.Errorf("%d goroutines", goroutines)
			}
			if flood.ends && steps >= 49_999 {
				t.Errorf("went on for %d steps", steps)
			}
			t.Logf("%d steps, %d events", steps, events.Load())
			f.Close()
			ask("after")
		})
	}
}

// A client that asks for much and takes nothing makes the relay hold little of
// it, with however many streams.
func TestRelayHTTP2AnswersThatNobodyTakes(t *testing.T) {
	const streams = 200
	var written, under atomic.Int64
	l := newRelayLab(t, 443, restPolicy)
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ok/big" {
			return
		}
		under.Add(1)
		defer under.Add(-1)
		for part := make([]byte, 64<<10); r.Context().Err() == nil; {
			n, err := w.Write(part)
			if written.Add(int64(n)); err != nil {
				return
			}
		}
	}), "h2")
	f := l.flooder()
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	away := f.drain()
	fields := bytes.Clone(f.fields("GET", "/ok/big"))
	for range streams {
		if _, err := f.open(true, fields); err != nil {
			t.Fatal(err)
		}
	}
	// Others get their answers while the server fills what it can.
	good := l.client(true)
	quiet, last := 0, int64(0)
	for n := 0; quiet < 200 || under.Load() < streams; n++ {
		if status, _, err := readRes(good.Get(l.url("/ok/other"))); err != nil || status != 200 || n > 5000 {
			t.Fatalf("%d %v, %d of %d streams", status, err, under.Load(), streams)
		}
		quiet++
		if now := written.Load(); now != last {
			quiet, last = 0, now
		}
	}
	// What the relay holds, and what is on its way in kernels and libraries.
	if n := written.Load(); n > serverWindow+32<<20 {
		t.Errorf("%d bytes of answers that nobody takes", n)
	}
	f.Close()
	<-away
}

func heapNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A head of a million lines is refused when it has more than may be, long
// before it has all been sent.
func TestRelayRefusesEndlessHeads(t *testing.T) {
	for name, line := range map[string]string{
		"many fields": "X: y\r\n", "one long field": strings.Repeat("x", 1000), "empty names": ": \r\n", "folded": " x\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newRelayLab(t, 443, restPolicy)
			l.serve(new(canary))
			c := l.dial()
			head := "GET /ok/a HTTP/1.1\r\nHost: api.example.com\r\nX: "
			sent := int64(len(head))
			if _, err := io.WriteString(c, head); err != nil {
				t.Fatal(err)
			}
			chunk := strings.Repeat(line, 1+16<<10/len(line))
			done := make(chan int64)
			go func() {
				for range 1_000_000 * len(line) / len(chunk) {
					n, err := io.WriteString(c, chunk)
					sent += int64(n)
					if err != nil {
						break
					}
				}
				done <- sent
			}()
			answer := make([]byte, 12)
			if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "HTTP/1.1 400" {
				t.Errorf("%q %v", answer, err)
			}
			io.Copy(io.Discard, c)
			if sent := <-done; sent > 8<<20 {
				t.Errorf("%d bytes were taken", sent)
			}
			if e := l.event(audit.HTTP); e.Verdict != "deny" || !strings.Contains(e.Reason, "head is longer") {
				t.Errorf("%+v", e)
			}
		})
	}
}

// Over HTTP/2 as well.
func TestRelayRefusesLongHeadsOverHTTP2(t *testing.T) {
	for name, more := range map[string]func() []string{
		"many fields": func() (list []string) {
			for i := range 1000 {
				list = append(list, fmt.Sprint("x-", i), "y")
			}
			return list
		},
		"one long field": func() []string { return []string{"x", strings.Repeat("y", 70<<10)} },
	} {
		t.Run(name, func(t *testing.T) {
			l := newRelayLab(t, 443, restPolicy)
			var server canary
			l.serve(&server, "h2")
			f := l.flooder()
			fields := f.fields("GET", "/ok/a", more()...)
			first := fields[:min(len(fields), 16<<10)]
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: len(first) == len(fields)})
			for rest := fields[len(first):]; len(rest) > 0; {
				part := rest[:min(len(rest), 16<<10)]
				rest = rest[len(part):]
				f.WriteContinuation(1, len(rest) == 0, part)
			}
			if e := l.event(audit.HTTP); e.Verdict != "deny" || !strings.Contains(e.Reason, "more than 256") && !strings.Contains(e.Reason, "head is longer") {
				t.Errorf("%+v", e)
			}
			if server.text() != "" {
				t.Errorf("the server saw %s", server.text())
			}
		})
	}
}
