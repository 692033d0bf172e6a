package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"weir/audit"
	"weir/rules"
)

// In TestKill's child this names the database that it is to write to.
const childDatabase = "WEIR_STORE_TEST_DATABASE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childDatabase); path != "" {
		writeUntilKilled(path)
	}
	os.Exit(m.Run())
}

// writeUntilKilled writes as fast as it can and says, after each write that
// succeeded, what it was.
func writeUntilKilled(path string) {
	ctx := context.Background()
	s, err := Open(ctx, path)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	die := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	go func() {
		last, err := s.LastEventID(ctx)
		die(err)
		for {
			batch := make([]audit.Event, 1+rand.IntN(audit.BatchSize))
			for i := range batch {
				last = max(last+1, time.Now().UnixMicro())
				batch[i] = audit.Event{ID: last, Time: time.UnixMicro(1), ContainerID: "c", BytesIn: int64(len(batch))}
			}
			die(s.AppendEvents(ctx, batch))
			fmt.Println("events", batch[0].ID, last, len(batch))
		}
	}()
	run := rand.Uint64()
	for i := 0; ; i++ {
		id := fmt.Sprintf("s%d-%d", run, i)
		rs := make([]rules.Rule, rand.IntN(5))
		for k := range rs {
			rs[k] = rules.Rule{Destination: "a.test", Action: rules.ActionAllow}
		}
		_, err := s.PutSession(ctx, Session{SessionState: rules.SessionState{ID: id, Container: "c", Expires: noon.Add(time.Hour), Rules: rs}}, noon)
		die(err)
		fmt.Println("session", id, len(rs))
		r, err := s.AddRule(ctx, rules.Rule{Destination: id, Action: rules.ActionDeny, Created: noon})
		die(err)
		fmt.Println("rule", r.ID, id)
		if i%3 == 0 {
			die(s.EndSession(ctx, id, noon))
			fmt.Println("ended", id)
		}
	}
}

// What was acknowledged is there after a SIGKILL, and nothing is there by half.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weir.db")
	type span struct{ first, last, n int64 }
	var spans []span
	checked := 0
	const rounds = 20
	sessions := map[string]int{} // acknowledged: number of rules; -1: ended
	globals := map[string]string{}
	for round := range rounds {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childDatabase+"="+path)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n, at := 0, 1+rand.IntN(80); lines.Scan(); n++ {
			var v span
			var id, text string
			var count int
			line := lines.Text()
			switch {
			case scanned(line, "events %d %d %d", &v.first, &v.last, &v.n):
				spans = append(spans, v)
			case scanned(line, "session %s %d", &id, &count):
				sessions[id] = count
			case scanned(line, "rule %s %s", &id, &text):
				globals[id] = text
			case scanned(line, "ended %s", &id):
				sessions[id] = -1
			default:
				t.Fatalf("round %d: the child said %q", round, line)
			}
			if n == at { // what it said until it died is still read
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); err == nil {
			t.Fatal("the child was not killed")
		}

		s := open(t, path)
		var sound string
		if err := s.readers.QueryRow(`PRAGMA integrity_check`).Scan(&sound); err != nil || sound != "ok" {
			t.Fatalf("round %d: integrity: %q, %v", round, sound, err)
		}
		due := spans
		if round < rounds-1 {
			due = spans[checked:] // all of them once more in the end
			checked = len(spans)
		}
		for _, v := range due {
			got := must[[]audit.Event](t)(s.Events(t.Context(), audit.Filter{Cursor: v.first - 1, Limit: int(v.n)}))
			if int64(len(got)) != v.n || got[0].ID != v.first || got[len(got)-1].ID != v.last {
				t.Fatalf("round %d: of batch %+v, %d events are there", round, v, len(got))
			}
		}
		// Batches that were not acknowledged are there whole or not at all.
		sizes := map[int64]int64{}
		rows, err := s.readers.Query(`SELECT bytes_in, COUNT(*) FROM events GROUP BY bytes_in`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var size, n int64
			if err := rows.Scan(&size, &n); err != nil {
				t.Fatal(err)
			}
			sizes[size] = n
		}
		rows.Close()
		for size, n := range sizes {
			if n%size != 0 {
				t.Errorf("round %d: %d events of batches of %d", round, n, size)
			}
		}
		stored := map[string]Session{}
		for _, v := range must[[]Session](t)(s.Sessions(t.Context(), SessionFilter{})) {
			stored[v.ID] = v
			if v.Ended && len(v.Rules) > 0 {
				t.Errorf("round %d: ended session %s has %d rules", round, v.ID, len(v.Rules))
			}
		}
		for id, n := range sessions {
			v, ok := stored[id]
			// An end that was not acknowledged may have happened.
			if !ok || n >= 0 && !v.Ended && len(v.Rules) != n || n < 0 && !v.Ended {
				t.Errorf("round %d: session %s: stored %v, ended %v, %d rules, acknowledged %d", round, id, ok, v.Ended, len(v.Rules), n)
			}
		}
		for id, text := range globals {
			if r, err := s.Rule(t.Context(), id); err != nil || r.Destination != text {
				t.Errorf("round %d: rule %s is %q, %v, want %q", round, id, r.Destination, err, text)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(spans) == 0 || len(sessions) == 0 || len(globals) == 0 {
		t.Errorf("acknowledged: %d batches, %d sessions, %d rules: the test tested nothing", len(spans), len(sessions), len(globals))
	}
}

func scanned(line, format string, into ...any) bool {
	n, err := fmt.Sscanf(line, format, into...)
	return err == nil && n == len(into)
}
