// Client is a program for the tests that runs inside containers and speaks
// HTTP in ways that curl does not.
//
//	client request [-2] [-X METHOD] [-H "Name: value"]... [-chunked] [-target T] URL <BODY
//	client authorities HOST:PORT PATH AUTHORITY...
//	client raw [-plain] HOST:PORT <BYTES
//	client ws [-protocol P] URL <LINES
//	client ech HOST:PORT INNERNAME
//
// Every answer is one line of JSON.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	commands := map[string]func(context.Context, []string) error{
		"request": request, "authorities": authorities, "raw": raw, "ws": ws, "ech": ech,
	}
	var err error
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		err = errors.New("want request, authorities, raw, ws or ech")
	} else {
		err = commands[os.Args[1]](ctx, os.Args[2:])
	}
	if err != nil {
		say(map[string]any{"failed": err.Error()})
		os.Exit(1)
	}
}

func say(v any) { json.NewEncoder(os.Stdout).Encode(v) }

type headers struct{ http.Header }

func (h headers) String() string { return "" }

func (h headers) Set(s string) error {
	name, value, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("%q: want Name: value", s)
	}
	// As written: case is the server's to ignore.
	h.Header[name] = append(h.Header[name], strings.TrimSpace(value))
	return nil
}

func transport(h2 bool) *http.Transport {
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	return tr
}

func show(res *http.Response) error {
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	say(map[string]any{"status": res.StatusCode, "proto": res.Proto, "event": res.Header.Get("X-Weir-Event"),
		"grpc": res.Header.Get("Grpc-Status"), "body": string(body)})
	return err
}

func request(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("request", flag.ExitOnError)
	h := headers{make(http.Header)}
	h2 := flags.Bool("2", false, "HTTP/2")
	method := flags.String("X", "POST", "method")
	chunked := flags.Bool("chunked", false, "length not said")
	target := flags.String("target", "", "send this instead of what the URL says, HTTP/1 and 2 alike")
	flags.Var(h, "H", "header field")
	flags.Parse(args)
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var body io.Reader
	switch {
	case *chunked: // one byte a chunk
		body = io.MultiReader(bytes.NewReader(text[:1]), &oneByOne{text[1:]})
	case len(text) > 0:
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, *method, flags.Arg(0), body)
	if err != nil {
		return err
	}
	req.Header = h.Header
	if *target != "" {
		// Opaque is sent as it is.
		req.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Opaque: *target}
		if strings.HasPrefix(*target, "//") {
			return fmt.Errorf("%q would be read as an authority", *target)
		}
	}
	res, err := transport(*h2).RoundTrip(req)
	if err != nil {
		return err
	}
	return show(res)
}

type oneByOne struct{ text []byte }

func (o *oneByOne) Read(b []byte) (int, error) {
	if len(o.text) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:1], o.text)
	o.text = o.text[n:]
	return n, nil
}

// authorities sends one request for each authority over one HTTP/2 connection.
func authorities(ctx context.Context, args []string) error {
	tr := transport(true)
	dials := 0
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	for _, a := range args[2:] {
		req, err := http.NewRequestWithContext(ctx, "GET", "https://"+args[0]+args[1], nil)
		if err != nil {
			return err
		}
		req.Host = a
		res, err := tr.RoundTrip(req)
		if err != nil {
			return err
		}
		if err := show(res); err != nil {
			return err
		}
	}
	say(map[string]any{"connections": dials})
	return nil
}

// raw sends bytes as they are and prints everything that comes, until the other
// side closes or, having answered, is silent for a while.
func raw(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("raw", flag.ExitOnError)
	plain := flags.Bool("plain", false, "no TLS")
	flags.Parse(args)
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var c net.Conn
	if *plain {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", flags.Arg(0))
	} else {
		c, err = (&tls.Dialer{Config: &tls.Config{NextProtos: []string{"http/1.1"}}}).DialContext(ctx, "tcp", flags.Arg(0))
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(text); err != nil {
		return err
	}
	var got []byte
	for wait := 15 * time.Second; ; wait = 3 * time.Second {
		c.SetReadDeadline(time.Now().Add(wait))
		b := make([]byte, 64<<10)
		var n int
		n, err = c.Read(b)
		if got = append(got, b[:n]...); err != nil {
			break
		}
	}
	var timeout net.Error
	say(map[string]any{"got": string(got), "open": errors.As(err, &timeout) && timeout.Timeout()})
	return nil
}

// ws sends lines as text messages, and prints what comes until the server closes
// or has been silent for two seconds. A line that starts with "binary:" is sent
// as a binary message.
func ws(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("ws", flag.ExitOnError)
	protocol := flags.String("protocol", "graphql-transport-ws", "subprotocol")
	flags.Parse(args)
	c, res, err := websocket.Dial(ctx, flags.Arg(0), &websocket.DialOptions{Subprotocols: []string{*protocol}})
	if err != nil {
		if res != nil {
			show(res)
			return nil
		}
		return err
	}
	defer c.CloseNow()
	var got []string
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		kind, text := websocket.MessageText, lines.Text()
		if rest, ok := strings.CutPrefix(text, "binary:"); ok {
			kind, text = websocket.MessageBinary, rest
		}
		if err := c.Write(ctx, kind, []byte(text)); err != nil {
			break // what the server said about it comes below
		}
	}
	for {
		wait, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, message, err := c.Read(wait)
		cancel()
		if err != nil {
			var closed websocket.CloseError
			errors.As(err, &closed)
			say(map[string]any{"messages": got, "closed": int(closed.Code), "reason": closed.Reason})
			return nil
		}
		got = append(got, string(message))
	}
}

// ech says hello with the real name encrypted (RFC 9849) and HOST as the outer one.
func ech(ctx context.Context, args []string) error {
	host, _, err := net.SplitHostPort(args[0])
	if err != nil {
		return err
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	prefixed := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	contents := slices.Concat(
		[]byte{1, 0, 0x20}, // id; DHKEM(X25519, HKDF-SHA256)
		prefixed(key.PublicKey().Bytes()),
		prefixed([]byte{0, 1, 0, 1}), // HKDF-SHA256, AES-128-GCM
		[]byte{64, byte(len(host))}, []byte(host),
		[]byte{0, 0}, // no extensions
	)
	list := prefixed(append([]byte{0xfe, 0x0d}, prefixed(contents)...))
	config := &tls.Config{ServerName: args[1], EncryptedClientHelloConfigList: list, MinVersion: tls.VersionTLS13}
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	say(map[string]any{"got": "handshake complete"})
	return nil
}
