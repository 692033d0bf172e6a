package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"weir/api"
)

func TestWhatIsTakenForARestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	health := func() error {
		_, err := api.NewClient(socket).Health(context.Background())
		return err
	}
	if err := health(); !restarting(err) {
		t.Errorf("no socket: %v", err)
	}
	daemon, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Close() })
	answer := func(text string) {
		c, err := daemon.Accept()
		if err != nil {
			return
		}
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			t.Error(err)
		}
		io.WriteString(c, text)
		c.Close()
	}
	for text, want := range map[string]bool{
		"":                  true, // it ends before it answers
		"HTTP/1.1 503 no":   true,
		"HTTP/1.1 404 no":   false,
		"HTTP/1.1 409 no":   false,
		"something else":    false,
		"HTTP/1.1 200 fine": false,
	} {
		response := text
		if text != "" {
			response = fmt.Sprintf("%s\r\nContent-Length: 2\r\n\r\n{}", text)
		}
		go answer(response)
		if err := health(); restarting(err) != want {
			t.Errorf("%q: %v, want a restart: %v", text, err, want)
		}
	}
	daemon.SetUnlinkOnClose(false)
	daemon.Close()
	if err := health(); !restarting(err) {
		t.Errorf("nobody listens any more: %v", err)
	}
}
