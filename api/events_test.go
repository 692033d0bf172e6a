package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/audit"
)

type event = audit.Event

// events returns a page once n events can be read.
func (s *service) events(t *testing.T, query string, n int) EventPage {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		page := into[EventPage](s.send("GET", "/v1/events"+query, ""), 200)
		if len(page.Items) >= n {
			return page
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events, want %d", len(page.Items), n)
		}
	}
}

func (s *service) record(n int) (ids []int64) {
	for i := range n {
		ids = append(ids, s.log.Record(event{
			Type: audit.Connect, ContainerID: "c", ContainerName: "web", Verdict: []string{"allow", "deny"}[i%2], Reason: fmt.Sprint("no ", i),
		}))
	}
	return ids
}

func TestPages(t *testing.T) {
	s := newService(t)
	ids := s.record(25)
	s.events(t, "", 25)
	var got []int64
	cursor, pages := "", 0
	for {
		page := into[EventPage](s.send("GET", "/v1/events?limit=10&cursor="+cursor, ""), 200)
		pages++
		for _, e := range page.Items {
			got = append(got, e.ID)
		}
		if cursor = page.NextCursor; cursor == "" {
			break
		}
	}
	if !slices.Equal(got, ids) || pages != 3 {
		t.Errorf("%d pages: %v, want %v", pages, got, ids)
	}
	for query, want := range map[string]int{
		"?verdict=deny": 12, "?container=web": 25, "?container=c&verdict=allow": 13, "?container=we": 0, "?type=dns": 0,
		"?since=" + s.clock.Now().Add(time.Hour).UTC().Format(time.RFC3339): 0,
		"?since=2001-01-01T00:00:00Z":                                       25,
	} {
		if page := into[EventPage](s.send("GET", "/v1/events"+query, ""), 200); len(page.Items) != want {
			t.Errorf("%s: %d events, want %d", query, len(page.Items), want)
		}
	}
}

// follow reads events from a stream until it has n, and returns their ids as
// the stream gives them.
func (s *service) follow(t *testing.T, query, last string, n int) (ids []int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://weir/v1/events/stream"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", last)
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		t.Fatalf("%d %s", resp.StatusCode, kind)
	}
	lines := bufio.NewScanner(resp.Body)
	for len(ids) < n && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			number, err := strconv.ParseInt(id, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, number)
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var e event
			if err := json.Unmarshal([]byte(data), &e); err != nil || e.ID != ids[len(ids)-1] {
				t.Fatalf("%v: %s", err, data)
			}
		}
	}
	return ids
}

// A client that loses its stream again and again gets every event once.
func TestAStreamGoesOnWhereItBroke(t *testing.T) {
	s := newService(t)
	const total = 400
	first := s.record(1)[0]
	s.events(t, "", 1)
	var recorded []int64
	var recording sync.WaitGroup
	recording.Go(func() { recorded = s.record(total) })
	var got []int64
	last := first
	for len(got) < total {
		ids := s.follow(t, "", fmt.Sprint(last), min(37, total-len(got)))
		if len(ids) == 0 {
			t.Fatal("the stream ended without an event")
		}
		got = append(got, ids...)
		last = got[len(got)-1]
	}
	recording.Wait()
	if !slices.Equal(got, recorded) {
		t.Errorf("got %d events, recorded %d, or not the same", len(got), len(recorded))
	}

	// Where to begin, without a Last-Event-ID.
	if ids := s.follow(t, "?cursor=0", "", total+1); len(ids) != total+1 || ids[0] != first {
		t.Errorf("from the beginning: %d", len(ids))
	}
	if ids := s.follow(t, "?since=2001-01-01T00:00:00Z&verdict=deny", "", total/2); len(ids) != total/2 {
		t.Errorf("since: %d", len(ids))
	}
	later := make(chan int64, 1)
	time.AfterFunc(50*time.Millisecond, func() { later <- s.record(1)[0] })
	if ids := s.follow(t, "", "", 1); len(ids) != 1 || ids[0] != <-later {
		t.Errorf("from now on: %v", ids)
	}
	req, err := http.NewRequest("GET", "http://weir/v1/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Last-Event-ID", "the last one")
	s.do(s.client, req).problem(422, "Last-Event-ID")
}

func TestTheClientFollows(t *testing.T) {
	s := newService(t)
	client := NewClient(s.socket)
	ids := s.record(5)
	s.events(t, "", 5)
	var got []int64
	enough := errors.New("enough")
	err := client.Follow(t.Context(), EventQuery{}, ids[1], func(e event) error {
		if got = append(got, e.ID); len(got) == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || !slices.Equal(got, ids[2:]) {
		t.Errorf("%v: %v, want %v", err, got, ids[2:])
	}
	var problem *Problem
	if err := client.Follow(t.Context(), EventQuery{Verdict: "maybe"}, 0, nil); !errors.As(err, &problem) || problem.Status != 422 {
		t.Errorf("%v", err)
	}
	if _, err := client.Events(t.Context(), EventQuery{Limit: 2}); err != nil {
		t.Error(err)
	}
}
