package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPulseBeatsAsLongAsTheDaemonIsWell(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "30000")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { systemd.Close() })
	hear := func(wait time.Duration) string {
		systemd.SetReadDeadline(time.Now().Add(wait))
		text := make([]byte, 200)
		n, err := systemd.Read(text)
		if err != nil {
			return ""
		}
		return string(text[:n])
	}
	const long = 10 * time.Second
	fine := func() error { return nil }
	p, err := startPulse(t.Context(), newKeeper(slog.New(slog.NewTextHandler(io.Discard, nil))), phase{well: fine, brief: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got, want := hear(long), "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=30000"; got != want {
			t.Fatalf("in a phase with a limit: %q, want %q", got, want)
		}
	}
	p.enter(phase{well: fine})
	for deadline := time.Now().Add(long); hear(long) != "WATCHDOG=1"; {
		if time.Now().After(deadline) {
			t.Fatal("the limit of the phase before is still put off")
		}
	}

	looked := make(chan bool)
	p.enter(phase{well: func() error { looked <- true; return errors.New("it hangs") }})
	<-looked
	for hear(time.Millisecond) != "" { // what was said before
	}
	for range 3 {
		<-looked
	}
	if got := hear(time.Millisecond); got != "" {
		t.Errorf("the daemon hangs, and systemd is told %q", got)
	}

	p.enter(phase{well: fine})
	go func() { // one look may be on its way
		select {
		case <-looked:
		case <-t.Context().Done():
		}
	}()
	if got := hear(long); got != "WATCHDOG=1" {
		t.Errorf("it gets on again, and systemd is told %q", got)
	}
}

func TestWithinEnds(t *testing.T) {
	if err := within(time.Hour, "this")(); err != nil {
		t.Error(err)
	}
	if err := within(-time.Second, "this")(); err == nil || !strings.Contains(err.Error(), "this takes longer") {
		t.Errorf("the limit has passed: %v", err)
	}
}
