package proxy

import (
	"fmt"
	"strings"
	"testing"

	"weir/audit"
	"weir/rules"
)

// An inspected connection's program is looked for once, however many requests
// it carries, and not at all while no rule lists binaries; one that is not
// found is none of those listed.
func TestRelayFindsTheProgramOncePerConnection(t *testing.T) {
	listed := strings.TrimRight(restPolicy, "\n") + "\n    binaries: [/usr/bin/curl]\n"
	for _, c := range []struct {
		name, policy string
		path         string // "" is not found
		asked        int64
		status       int
	}{
		{"listed", listed, "/usr/bin/curl", 1, 200},
		{"not listed", listed, "/usr/bin/nc", 1, 0},
		{"not found", listed, "", 1, 0},
		{"no binaries", restPolicy, "/usr/bin/nc", 0, 200},
	} {
		for _, form := range forms {
			t.Run(fmt.Sprint(c.name, " ", form.name), func(t *testing.T) {
				l := newRelayLab(t, form.port, c.policy)
				if c.path != "" {
					l.who.Store(&rules.Program{Path: c.path})
				}
				var server canary
				l.serve(&server, protocolsOf(form.h2)...)
				client := l.client(form.h2)
				for range 3 {
					code, text, err := readRes(client.Get(l.url("/ok/a")))
					if code != c.status || (err != nil) != (c.status == 0) {
						t.Errorf("%d %v %s", code, err, text)
					}
					if c.status == 0 {
						break // each try is a connection of its own
					}
				}
				if c.status == 0 {
					if e := l.event(audit.Connect); e.Verdict != "deny" || e.Binary != c.path || server.hits != 0 {
						t.Errorf("event %+v, the server saw %s", e, server.text())
					}
				}
				if n := l.asked.Load(); n != c.asked {
					t.Errorf("looked for the program %d times, want %d", n, c.asked)
				}
			})
		}
	}
}
