package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"weir/audit"
)

func TestRelayServerSentEvents(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy)
			next := make(chan int)
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for i := range next {
					fmt.Fprintf(w, "data: %d\n\n", i)
					w.(http.Flusher).Flush()
				}
			}), protocolsOf(form.h2)...)
			go func() { next <- 0 }()
			res, err := l.client(form.h2).Get(l.url("/ok/stream"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			br := bufio.NewReader(res.Body)
			for i := range 5 {
				if i > 0 {
					next <- i
				}
				if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("%q %v", line, err)
				}
				br.ReadString('\n')
			}
			close(next)
			if _, err := io.ReadAll(br); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRelayTrailers(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy)
			got := make(chan string, 1)
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "X-Announced")
				io.Copy(io.Discard, r.Body)
				got <- r.Trailer.Get("X-Sum")
				io.WriteString(w, "hello")
				w.Header().Set("X-Announced", "a")
				w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			}), protocolsOf(form.h2)...)
			req, _ := http.NewRequest("POST", l.url("/ok/x"), io.MultiReader(strings.NewReader("body")))
			req.Trailer = http.Header{"X-Sum": {"s"}}
			res, err := l.client(form.h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(res.Body)
			if err != nil || string(text) != "hello" {
				t.Fatalf("%q %v", text, err)
			}
			if s := <-got; s != "s" {
				t.Errorf("the server got the trailer %q", s)
			}
			if res.Trailer.Get("X-Announced") != "a" || res.Trailer.Get("Grpc-Status") != "0" {
				t.Errorf("the client got the trailer %v", res.Trailer)
			}
		})
	}
}

// A unary or streaming gRPC call is, on the wire, what this does: both sides
// send as they like, and the result is in the trailer.
func TestRelayStreamsBothWays(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		br := bufio.NewReader(r.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				break
			}
			io.WriteString(w, "echo "+line)
			w.(http.Flusher).Flush()
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	}), "h2")
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", l.url("/ok/pkg.Service/Method"), pr)
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	client := l.client(true)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(res.Body)
	for i := range 3 {
		fmt.Fprintf(pw, "%d\n", i)
		if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("echo %d\n", i) {
			t.Fatalf("%q %v", line, err)
		}
	}
	pw.Close()
	io.Copy(io.Discard, br)
	if res.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("trailer %v", res.Trailer)
	}
	// Denied, in the form that gRPC clients show.
	req, _ = http.NewRequest("POST", l.url("/no.Service/Method"), strings.NewReader("x"))
	req.Header.Set("Content-Type", "application/grpc+proto")
	res, err = client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 200 || res.Header.Get("Grpc-Status") != "7" || !strings.Contains(res.Header.Get("Grpc-Message"), "not among") {
		t.Errorf("denied: %d %v", res.StatusCode, res.Header)
	}
	res.Body.Close()
}

func TestRelayCancelReachesTheServer(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy, func(l *relayLab) { l.relay.Limits.Gone = time.Millisecond })
			here, gone := make(chan struct{}), make(chan struct{})
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(here)
				<-r.Context().Done()
				close(gone)
			}), protocolsOf(form.h2)...)
			ctx, cancel := context.WithCancel(context.Background())
			req, _ := http.NewRequestWithContext(ctx, "GET", l.url("/ok/slow"), nil)
			go func() {
				<-here
				cancel()
			}()
			if _, err := l.client(form.h2).Do(req); err == nil {
				t.Error("a cancelled request was answered")
			}
			<-gone
			if e := l.event(audit.HTTP); e.Verdict != "allow" {
				t.Errorf("event: %+v", e)
			}
		})
	}
}

func TestRelayExpectContinue(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	c := l.dial()
	br := bufio.NewReader(c)
	// Allowed: the server's own 100 comes first, then the body goes out.
	io.WriteString(c, "POST /ok/x HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	if line, err := br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	br.ReadString('\n')
	io.WriteString(c, "hello")
	res, err := http.ReadResponse(br, nil)
	if code, _, err := readRes(res, err); err != nil || code != 200 {
		t.Fatalf("%d %v", code, err)
	}
	if !strings.Contains(server.text(), "hello") {
		t.Errorf("the server saw %q", server.text())
	}
	// Denied: no 100, and the body is not waited for.
	io.WriteString(c, "POST /no HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
	res, err = http.ReadResponse(br, nil)
	if code, _, err := readRes(res, err); err != nil || code != 403 || !res.Close {
		t.Errorf("%d %v", code, err)
	}
}

func TestRelayEarlyHints(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, form.port, restPolicy)
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", "</a>")
				w.WriteHeader(http.StatusEarlyHints)
				w.WriteHeader(200)
			}), protocolsOf(form.h2)...)
			hints := ""
			ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints = fmt.Sprint(code, h.Get("Link"))
				return nil
			}})
			req, _ := http.NewRequestWithContext(ctx, "GET", l.url("/ok/"), nil)
			if code, _, err := readRes(l.client(form.h2).Do(req)); err != nil || code != 200 || hints != "103</a>" {
				t.Errorf("%d %v %q", code, err, hints)
			}
		})
	}
}

// zeros is an endless source whose end is somewhere else.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// bigBody is 256 MiB, or 10 GiB in a run that may take long.
func bigBody() int64 {
	if os.Getenv("WEIR_SOAK") != "" {
		return 10 << 30
	}
	return 256 << 20
}

// heapWatch notes the most heap in use, as reads of a body go by.
type heapWatch struct {
	io.Reader
	reads  int
	before uint64
	most   uint64
}

func (h *heapWatch) Read(p []byte) (int, error) {
	if h.reads++; h.reads%1000 == 1 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if h.before == 0 {
			h.before = m.HeapInuse
		}
		h.most = max(h.most, m.HeapInuse)
	}
	return h.Reader.Read(p)
}

func TestRelayBigDownloadInConstantMemory(t *testing.T) {
	size := bigBody()
	for name, h2 := range map[string]bool{"h1": false, "h2": true} {
		t.Run(name, func(t *testing.T) {
			l := newRelayLab(t, 443, restPolicy)
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(w, io.LimitReader(zeros{}, size))
			}), protocolsOf(h2)...)
			client := l.client(h2)
			client.Timeout = 0
			res, err := client.Get(l.url("/ok/big"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			runtime.GC()
			watched := &heapWatch{Reader: res.Body}
			if n, err := io.Copy(io.Discard, watched); err != nil || n != size {
				t.Errorf("%d bytes came: %v", n, err)
			}
			if watched.most > watched.before+64<<20 {
				t.Errorf("%d MB of heap in use, %d MB before", watched.most>>20, watched.before>>20)
			}
			if e := l.event(audit.HTTP); e.BytesIn < size {
				t.Errorf("bytes in %d", e.BytesIn)
			}
		})
	}
}

func TestRelayBigUploadInConstantMemory(t *testing.T) {
	size := bigBody()
	for _, form := range []struct {
		name    string
		h2      bool
		chunked bool
	}{{"h1", false, false}, {"h1 chunked", false, true}, {"h2", true, false}} {
		t.Run(form.name, func(t *testing.T) {
			l := newRelayLab(t, 443, restPolicy)
			got := make(chan int64, 1)
			l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, _ := io.Copy(io.Discard, r.Body)
				got <- n
			}), protocolsOf(form.h2)...)
			runtime.GC()
			watched := &heapWatch{Reader: io.LimitReader(zeros{}, size)}
			req, _ := http.NewRequest("PUT", l.url("/ok/big"), watched)
			if !form.chunked {
				req.ContentLength = size
			}
			client := l.client(form.h2)
			client.Timeout = 0
			if code, _, err := readRes(client.Do(req)); err != nil || code != 200 {
				t.Fatalf("%d %v", code, err)
			}
			if n := <-got; n != size {
				t.Errorf("the server got %d bytes", n)
			}
			if watched.most > watched.before+64<<20 {
				t.Errorf("%d MB of heap in use, %d MB before", watched.most>>20, watched.before>>20)
			}
			if e := l.event(audit.HTTP); e.BytesOut < size {
				t.Errorf("bytes out %d", e.BytesOut)
			}
		})
	}
}

func TestRelayPipelining(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	c := l.dial()
	io.WriteString(c, "GET /ok/1 HTTP/1.1\r\nHost: api.example.com\r\n\r\nGET /no HTTP/1.1\r\nHost: api.example.com\r\n\r\n"+
		"POST /ok/2 HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\n\r\nabcPOST /no HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\n\r\nGET"+
		"HEAD /no HTTP/1.1\r\nHost: api.example.com\r\n\r\n"+
		"HEAD /ok/3 HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
	br := bufio.NewReader(c)
	for i, want := range []int{200, 403, 200, 403, 403, 200} {
		method := "GET"
		if i >= 4 {
			method = "HEAD"
		}
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if code, _, err := readRes(res, err); err != nil || code != want {
			t.Fatalf("response %d: %d %v", i, code, err)
		}
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("after Connection: close: %v", err)
	}
	if server.hits != 3 {
		t.Errorf("the server saw %s", server.text())
	}
}

func TestRelayHTTP10(t *testing.T) {
	l := newRelayLab(t, 80, restPolicy)
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Host)
		w.(http.Flusher).Flush() // chunked towards HTTP/1.1
		io.WriteString(w, "!")
	}))
	c := l.dial()
	io.WriteString(c, "GET /ok/ HTTP/1.0\r\nHost: api.example.com\r\n\r\n")
	text, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(text), "\r\n\r\napi.example.com!") || strings.Contains(string(text), "chunked") {
		t.Errorf("%q %v", text, err)
	}
}

func TestRelayServerClosesIdleConnection(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ok/last" {
			server.ServeHTTP(w, r)
		} else {
			conn, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			conn.Close()
		}
	}))
	client := l.client(false)
	for _, path := range []string{"/ok/1", "/ok/last", "/ok/2"} {
		if code, _, err := readRes(client.Get(l.url(path))); err != nil || code != 200 {
			t.Errorf("%s: %d %v", path, code, err)
		}
	}
	if n := len(l.proxy.Flows()); n != 1 {
		t.Errorf("%d connections from the client", n)
	}
}

func TestRelayBadResponses(t *testing.T) {
	for _, text := range []string{
		"SMTP ready\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", "HTTP/1.1 101 Sure\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 200 OK\nX: y\n\n", "",
	} {
		l := newRelayLab(t, 80, restPolicy)
		ln := listen(t)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, text)
				c.(*net.TCPConn).CloseWrite()
			}
		}()
		l.upstream(ln.Addr().String())
		res, said, closed := l.raw("POST /ok/ HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 0\r\n\r\n")
		if res.StatusCode != 502 || !closed || !strings.Contains(said, "upstream_failed") {
			t.Errorf("%q: %d, closed %v, %s", text, res.StatusCode, closed, said)
		}
		if e := l.event(audit.HTTP); e.Verdict != "allow" || !strings.Contains(e.Reason, "server") {
			t.Errorf("%q: %+v", text, e)
		}
	}
}

func TestRelayRefusesUpgrades(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server)
	for _, up := range []string{"h2c", "websocket", "websocket, h2c", "TLS/1.0", "foo"} {
		res, _, _ := l.raw("GET /ok/ HTTP/1.1\r\nHost: api.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " + up +
			"\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
		if res.StatusCode != 403 {
			t.Errorf("%s: %d", up, res.StatusCode)
		}
	}
	if server.hits != 0 {
		t.Errorf("the server saw %s", server.text())
	}
}
