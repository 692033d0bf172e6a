package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// memory stores events for a Log.
type memory struct {
	mu     sync.Mutex
	events []Event
}

func (m *memory) append(_ context.Context, batch []Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, batch...)
	return nil
}

func (m *memory) page(_ context.Context, f Filter) ([]Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var page []Event
	for i := range m.events {
		if f.Match(&m.events[i]) && len(page) < f.Page() {
			page = append(page, m.events[i])
		}
	}
	return page, nil
}

// fickle is a writer that fails now and then.
type fickle struct {
	bytes.Buffer
	calls int
}

func (f *fickle) Write(p []byte) (int, error) {
	if f.calls++; f.calls%3 == 2 {
		return 0, errors.New("no room")
	}
	return f.Buffer.Write(p)
}

func TestExportWritesEveryEventOnceOverRestartsAndFailures(t *testing.T) {
	var stored memory
	var to fickle
	cursor := filepath.Join(t.TempDir(), "cursor")
	if err := os.WriteFile(cursor, []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const rounds, each = 6, 700
	last := int64(0)
	for range rounds {
		log := NewLog(Config{Append: stored.append, Events: stored.page, Last: last})
		served := make(chan error, 1)
		go func() { served <- log.Serve() }()
		done := make(chan struct{})
		go func() {
			defer close(done)
			x := &Export{To: &to, CursorFile: cursor}
			for x.Run(context.Background(), log) != nil { // as often as the writer fails
			}
		}()
		for range each {
			last = log.Record(Event{Type: Connect, Verdict: "deny", Host: "a<b>.example"})
		}
		if err := log.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		<-done
	}
	var ids []int64
	for _, line := range strings.Split(strings.TrimSpace(to.String()), "\n") {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ids = append(ids, e.ID)
	}
	if len(ids) != rounds*each {
		t.Errorf("%d lines for %d events", len(ids), rounds*each)
	}
	for i := 1; i < len(ids); i++ {
		if ids[i] <= ids[i-1] {
			t.Fatalf("line %d: event %d after %d", i, ids[i], ids[i-1])
		}
	}
}

func TestExportRefusesACursorItCannotRead(t *testing.T) {
	cursor := filepath.Join(t.TempDir(), "cursor")
	x := &Export{To: &bytes.Buffer{}, CursorFile: cursor}
	if err := os.WriteFile(cursor, []byte("elsewhere"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := NewLog(Config{Append: (&memory{}).append, Events: (&memory{}).page})
	if err := x.Run(context.Background(), log); err == nil || !strings.Contains(err.Error(), cursor) {
		t.Errorf("want an error that names the file, got %v", err)
	}
}
