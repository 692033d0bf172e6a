package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A person who has read nothing asks why, and sees the verdict first, then the
// reason in words, the rule, and commands that change it and work as printed.
func TestExplainCanBeReadByAnybody(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	o.addName("evil.example", "198.51.100.66")
	hello(o, "198.51.100.10:80")
	hello(o, "198.51.100.12:80")
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--session", "work", "--allow", "shop.example:80", "--allow", "evil.example:80")
	w.run("rule", "add", "deny", "**.evil.example", "--notes", "known bad")
	denies := w.rules("--source", "global")[0].ID
	box.curl("http://shop.example/")

	gateway := strings.TrimSpace(run(t, "docker", "inspect", "-f", "{{.NetworkSettings.Gateway}}", box.Name))
	for _, c := range []struct {
		destination string
		first       string
		want        []string
		hints       bool
	}{
		{"unheard.example:80", "DENIED", []string{"no rule", "unheard.example", "default deny"}, true},
		{"198.51.100.99:22", "DENIED", []string{"no rule", "198.51.100.99:22", "default deny"}, true},
		{"evil.example:80", "DENIED", []string{"global rule", denies, "deny **.evil.example"}, true},
		{"shop.example:80", "ALLOWED", []string{"session rule", "allow shop.example", "ports 80"}, false},
		{"shop.example:443", "DENIED", []string{"port", "default deny"}, true},
		{"169.254.169.254:80", "DENIED", []string{"169.254.169.254", "default deny", "weir rule add allow 169.254.169.254:80"}, true},
		{gateway + ":80", "DENIED", []string{gateway, "default deny", "no rule for " + gateway + ":80 would open it", "host"}, true},
		{"[ff02::1]:80", "DENIED", []string{"[ff02::1]:80", "would open it", "multicast"}, true},
	} {
		out := w.run("explain", box.Name, c.destination)
		t.Logf("weir explain %s %s\n%s", box.Name, c.destination, out)
		if first, _, _ := strings.Cut(out, "\n"); !strings.HasPrefix(first, c.first) {
			t.Errorf("%s: the first line is %q, want %s", c.destination, first, c.first)
		}
		for _, word := range c.want {
			if !strings.Contains(out, word) {
				t.Errorf("%s: no word of %q: %s", c.destination, word, out)
			}
		}
		if has := strings.Contains(out, "To change it:"); has != c.hints {
			t.Errorf("%s: says what to do: %v, want %v: %s", c.destination, has, c.hints, out)
		}
	}

	// What it proposes works when it is typed as it stands.
	_, hints, _ := strings.Cut(w.run("explain", box.Name, "198.51.100.12:80"), "To change it:\n")
	typed := 0
	for line := range strings.Lines(hints) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
		if args, ok := strings.CutPrefix(line, "weir rule add "); ok {
			typed++
			w.run(append([]string{"rule", "add"}, strings.Fields(args)...)...)
		}
	}
	if typed != 1 {
		t.Errorf("%d commands to type in %q", typed, hints)
	}
	if out, ok := box.curl("http://198.51.100.12/"); !ok {
		t.Errorf("not reached after the proposed command: %s", out)
	}

	// Learning mode: allowed, with what enforcement would say.
	w.run("session", "create", box.Name, "--id", "watch", "--allow-all")
	out := w.run("explain", box.Name, "unheard.example:80")
	t.Logf("learning\n%s", out)
	for _, word := range []string{"ALLOWED", "learning", "without learning mode: DENIED", "no rule"} {
		if !strings.Contains(out, word) {
			t.Errorf("learning mode: no word of %q: %s", word, out)
		}
	}
	if out := w.run("explain", box.Name, "169.254.169.254:80"); !strings.HasPrefix(out, "DENIED") {
		t.Errorf("learning mode opens the metadata service: %s", out)
	}
	if out := w.run("explain", box.Name, "unheard.example:80", "--binary", "/usr/bin/curl"); strings.Contains(out, "\x1b") {
		t.Errorf("colours outside a terminal: %q", out)
	}
}

// Explain says what then happens.
func TestExplainAgreesWithWhatHappens(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	o.addName("other.example", "198.51.100.11")
	for _, a := range []string{"198.51.100.10:80", "198.51.100.10:8080", "198.51.100.11:80", "198.51.100.12:80"} {
		hello(o, a)
	}
	w := startWeir(t, "")
	box := newBox(t)
	w.run("attach", box.Name, "--allow", "*.example:80", "--deny", "other.example", "--allow", "198.51.100.12")
	for _, to := range []string{"shop.example:80", "shop.example:8080", "other.example:80", "198.51.100.12:80", "198.51.100.13:80", "10.77.0.1:80"} {
		var d struct{ Verdict string }
		w.json(&d, "explain", box.Name, to)
		out, ok := box.curl("http://" + to + "/")
		if (d.Verdict == "allow") != ok {
			t.Errorf("%s: explained as %s, reached %v: %s", to, d.Verdict, ok, out)
		}
	}
}

func TestEveryListingIsAlsoJSON(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10")
	hello(o, "198.51.100.10:80")
	w := startWeir(t, "")
	box := newBox(t)
	// An empty listing is an empty list, for programs that count.
	for _, args := range [][]string{{"ps"}, {"session", "list"}} {
		if out := strings.TrimSpace(w.run(append(args, "-o", "json")...)); out != "[]" {
			t.Errorf("%v with nothing to list: %s", args, out)
		}
	}
	w.run("attach", box.Name, "--session", "work", "--allow", "shop.example:80", "--label", "job=1")
	w.run("rule", "add", "deny", "evil.example")
	box.curl("http://shop.example/")
	box.curl("http://evil.example/")
	for _, line := range []string{
		"ps", "session list", "session show work", "session heartbeat work", "rule list", "rule list --source builtin", "policy show " + box.Name,
		"explain " + box.Name + " shop.example:80", "explain " + box.Name + " evil.example", "dns " + box.Name, "doctor", "version",
		"learn " + box.Name, "ca show", "policy list",
	} {
		args := strings.Fields(line)
		var v any
		w.json(&v, args...)
		if v == nil {
			t.Errorf("weir %s: null", line)
		}
		if out := w.run(args...); strings.TrimSpace(out) == "" {
			t.Errorf("weir %s prints nothing", line)
		}
	}
	lines := 0
	for line := range strings.Lines(w.run("events", "-o", "json")) {
		lines++
		if !json.Valid([]byte(line)) {
			t.Errorf("events: not JSON: %s", line)
		}
	}
	for line := range strings.Lines(w.run("events", "-o", "ocsf")) {
		lines--
		var e struct {
			ClassUID int `json:"class_uid"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.ClassUID == 0 {
			t.Errorf("events: no OCSF event: %s", line)
		}
	}
	if lines != 0 {
		t.Errorf("as OCSF there are %d fewer events than as JSON", lines)
	}
}

func TestEventsFollowAndNames(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.10", "2001:db8:77::10")
	hello(o, "198.51.100.10:80")
	w := startWeir(t, "")
	box, other := newBox(t), newBox(t)
	w.run("attach", box.Name, "--allow", "shop.example:80")
	w.run("attach", other.Name)
	box.curl("http://198.51.100.99/")

	follow := exec.Command(w.binary, "--socket", w.socket, "events", "-f", "--container", box.Name, "--verdict", "deny")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			lines <- scan.Text()
		}
	}()
	t.Cleanup(func() { follow.Process.Kill(); follow.Wait() })
	next := func(want string) {
		t.Helper()
		select {
		case line, ok := <-lines:
			if !ok || !strings.Contains(line, want) || !strings.Contains(line, " deny ") {
				t.Errorf("the next line is %q, want one of %s", line, want)
			}
		case <-time.After(15 * time.Second):
			t.Fatalf("no line of %s within 15 s", want)
		}
	}
	next("198.51.100.99:80") // from before
	for i := range 3 {
		other.curl("http://198.51.100.98/")
		box.curl("http://shop.example/")
		box.curl(fmt.Sprintf("http://198.51.100.%d/", 100+i))
		next(fmt.Sprintf("198.51.100.%d:80", 100+i))
	}
	select {
	case line := <-lines:
		t.Errorf("a line too many: %q", line)
	default:
	}

	text := w.run("dns", box.Name)
	if !regexp.MustCompile(`(?m)^shop\.example +198\.51\.100\.10 +\d\d:\d\d:\d\d \(in .*s\)$`).MatchString(text) {
		t.Errorf("weir dns: %s", text)
	}
	if names := w.names(other.Name); len(names) != 0 {
		t.Errorf("another container's names: %v", names)
	}
}
