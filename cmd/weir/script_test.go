package main

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"weir/api"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"weir": main})
}

// TestScripts runs testdata/script/*.txtar: the specification of the command
// line, of all that needs no container.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("WEIR_SOCKET", e.WorkDir+"/weir.sock")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"ready": ready,
			"until": untilMatch,
		},
		RequireExplicitExec: true,
	})
}

// exits CODE COMMAND... runs a command that must end with that very code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// ready waits for the daemon behind $WEIR_SOCKET.
func ready(ts *testscript.TestScript, neg bool, _ []string) {
	if neg {
		ts.Fatalf("usage: ready")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := api.NewClient(ts.Getenv("WEIR_SOCKET"))
	for {
		_, err := client.Health(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("no daemon: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// untilMatch PATTERN COMMAND... runs a command until its output matches: events
// are read from the store, a moment after they happened.
func untilMatch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; {
		ts.Check(ts.Exec(args[1], args[2:]...))
		if pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("never matched %s", pattern)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestSplitDestination(t *testing.T) {
	for in, want := range map[string][2]string{
		"example.com":                  {"example.com", ""},
		"example.com:443":              {"example.com", "443"},
		"example.com:80,443,8000-9000": {"example.com", "80,443,8000-9000"},
		"*.example.com:443":            {"*.example.com", "443"},
		"*":                            {"*", ""},
		"*:53":                         {"*", "53"},
		"10.0.0.7":                     {"10.0.0.7", ""},
		"10.0.0.7:22":                  {"10.0.0.7", "22"},
		"10.0.0.0/8":                   {"10.0.0.0/8", ""},
		"10.0.0.0/8:22":                {"10.0.0.0/8", "22"},
		"::1":                          {"::1", ""},
		"2001:db8::1":                  {"2001:db8::1", ""},
		"2001:db8::/32":                {"2001:db8::/32", ""},
		"[2001:db8::1]":                {"2001:db8::1", ""},
		"[2001:db8::1]:443":            {"2001:db8::1", "443"},
		"[2001:db8::/32]:443":          {"2001:db8::/32", "443"},
		"fe80::1%eth0":                 {"fe80::1%eth0", ""},
	} {
		dest, ports, _, err := splitDestination(in, "")
		if err != nil || dest != want[0] || ports != want[1] {
			t.Errorf("%q: %q %q %v, want %q", in, dest, ports, err, want)
		}
	}
	for _, in := range []string{"", ":443", "example.com:", "[2001:db8::1", "[::1]443", "[::1]:", "2001:db8::/32:443", "a:b:c", "https://example.com/"} {
		if dest, ports, _, err := splitDestination(in, ""); err == nil {
			t.Errorf("%q: no error: %q %q", in, dest, ports)
		}
	}
}

func TestSplitTransport(t *testing.T) {
	for in, want := range map[string][4]string{
		"example.com:443":            {"", "example.com", "443", ""},
		"example.com:443/udp":        {"", "example.com", "443", "udp"},
		"example.com/tcp":            {"", "example.com", "", "tcp"},
		"10.0.0.0/8/udp":             {"", "10.0.0.0/8", "", "udp"},
		"10.0.0.0/8:22,23/tcp":       {"tcp", "10.0.0.0/8", "22,23", "tcp"},
		"[2001:db8::1]:443/udp":      {"udp", "2001:db8::1", "443", "udp"},
		"2001:db8::1/udp":            {"", "2001:db8::1", "", "udp"},
		"198.51.100.5:5000":          {"udp", "198.51.100.5", "5000", "udp"},
		"example.com:5000-6000,7000": {"any", "example.com", "5000-6000,7000", "any"},
	} {
		dest, ports, transport, err := splitDestination(in, want[0])
		if err != nil || dest != want[1] || ports != want[2] || transport != want[3] {
			t.Errorf("%q: %q %q %q %v, want %q", in, dest, ports, transport, err, want)
		}
	}
	for in, flag := range map[string]string{"example.com:443/udp": "tcp", "example.com:443/": "", "/udp": "", "example.com/tcp": "any"} {
		if dest, ports, transport, err := splitDestination(in, flag); err == nil {
			t.Errorf("%q: no error: %q %q %q", in, dest, ports, transport)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"10m": now.Add(-10 * time.Minute), "0s": now, "2026-05-01T13:00:00+02:00": now.Add(-time.Hour),
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, in := range []string{"-10m", "yesterday", "2026-05-01"} {
		if got, err := parseSince(in, now); err == nil {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestConfiguration(t *testing.T) {
	if _, err := loadConfig("testdata/none.yaml"); err == nil {
		t.Error("a file that was named and is not there")
	}
	path := t.TempDir() + "/config.yaml"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("dns: {upstreams: [9.9.9.9, \"[2620:fe::fe]:5353\"]}\nevents: {max_age: 48h, max_mb: 5}\nlimits: {idle: \"1m\", udp_idle: 1h2m}\n")
	c, err := loadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.upstreams[0].String() + " " + c.upstreams[1].String(); got != "9.9.9.9:53 [2620:fe::fe]:5353" {
		t.Error(got)
	}
	if r := c.retention(); r.MaxAge != 48*time.Hour || r.MaxBytes != 5<<20 {
		t.Errorf("%+v", r)
	}
	write("")
	if c, err = loadConfig(path); err != nil || c.retention().MaxAge != 30*24*time.Hour {
		t.Errorf("an empty file: %+v %v", c, err)
	}
	write("events:\n")
	if c, err = loadConfig(path); err != nil || c.retention().MaxBytes != 1024<<20 {
		t.Errorf("a key without a value: %+v %v", c, err)
	}
	write("limits: {buffered_mb: 8, connections: , dns_queries_per_second: 1000000000}\n")
	if c, err = loadConfig(path); err != nil || c.relayLimits().Buffered != 8<<20 || c.proxyLimits(1<<20).Connections != 8192 {
		t.Errorf("limits: %+v %v", c, err)
	}
	if l := c.proxyLimits(1200); 2*l.Connections+l.Associations+2*l.Pipes > 600 || l.Connections < 100 {
		t.Errorf("with few files one container may take them all: %+v", l)
	}
	// What cannot be meant is refused, with its place and what is wanted.
	for text, want := range map[string]string{
		"events: {max_age: 5}":                                  "[1:19] 5: want a second or more with its unit",
		"events: {max_age: 0}":                                  "[1:19] 0: want a second",
		"events: {max_rows: -1}":                                "[1:20] -1: want a number",
		"events: {file_keep: 0}":                                "[1:21] 0: want a number from 1 to 1000000000; leave the key out for its default",
		"events: {max_mb: 8796093022208}":                       "want a number",
		"events: {max_mb: 99999999999999999999}":                "want a number",
		"limits: {idle: 30}":                                    "want a second",
		"limits: {idle: -5m}":                                   "want a second",
		"limits: {idle: 300ms}":                                 "want a second",
		"limits: {udp_idle: 30}":                                "want a second",
		"limits: {idle: 5 minutes}":                             "5 minutes: want a second",
		"limits: {idle: [5m]}":                                  "want a second",
		"limits: {idle: 1d}":                                    "want a second",
		"limits: {connections: 0}":                              "[1:23] 0: want a number",
		"limits: {connections: 8k}":                             "8k: want a number",
		"limits: {connections: 1.5}":                            "1.5: want a number",
		"limits: {connections: {a: 1}}":                         "want a number",
		"limits: {dns_queries_per_second: 9223372036854775807}": "want a number",
		"limits: {buffered_mb: 64MB}":                           "64MB: want a number",
	} {
		write(text + "\n")
		if c, err := loadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v %v", text, c, err)
		}
	}
}
