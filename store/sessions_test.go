package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"weir/rules"
)

func putSession(t *testing.T, s *Store, id, container string, ttl time.Duration, rs ...rules.Rule) Session {
	t.Helper()
	return must[Session](t)(s.PutSession(t.Context(), Session{SessionState: rules.SessionState{
		ID: id, Container: container, Expires: noon.Add(ttl), Rules: rs,
	}}, noon))
}

func TestSessionRoundTrip(t *testing.T) {
	s := fresh(t)
	at := noon.UTC().Truncate(time.Microsecond)
	given := Session{
		SessionState: rules.SessionState{
			ID: "s1", Container: "web", Seq: 99, Ended: true, Expires: noon.Add(time.Hour), TTL: time.Hour, AllowAll: true, Ask: true,
			Inspect: []string{"api.test", "b.test:8443"}, Labels: map[string]string{"task": "1", "": "odd"},
			Rules: []rules.Rule{
				{Destination: "a.test", Ports: "443", Transport: rules.TCP, Action: rules.ActionAllow, Binaries: []string{"/bin/x"}, Notes: "n"},
				{ID: "x", Destination: "*", Action: rules.ActionDeny, Expires: noon, Order: 9},
			},
		},
		PolicyName: "github.yaml", PolicyText: "version: 1\nrules: []\n",
	}
	want := given
	want.Seq, want.Ended, want.Created, want.Expires = 1, false, at, at.Add(time.Hour)
	want.Rules = slices.Clone(given.Rules)
	for i := range want.Rules {
		r := &want.Rules[i]
		r.ID, r.Order = fmt.Sprintf("r%d", i+1), int64(i+1)
		r.Source, r.SessionID, r.Created, r.Expires = rules.Session, "s1", at, at.Add(time.Hour)
	}
	if d := cmp.Diff(want, must[Session](t)(s.PutSession(t.Context(), given, noon))); d != "" {
		t.Errorf("put (-want +got):\n%s", d)
	}
	s = reopen(t, s)
	if d := cmp.Diff(want, must[Session](t)(s.Session(t.Context(), "s1"))); d != "" {
		t.Errorf("read (-want +got):\n%s", d)
	}

	// A heartbeat takes the rules along.
	extended := must[Session](t)(s.ExtendSession(t.Context(), "s1", noon.Add(2*time.Hour), noon))
	for _, r := range extended.Rules {
		if !r.Expires.Equal(at.Add(2*time.Hour)) || !r.Expires.Equal(extended.Expires) {
			t.Errorf("after a heartbeat rule %s expires at %v, want with its session", r.ID, r.Expires)
		}
	}

	for _, bad := range []Session{
		{},
		{SessionState: rules.SessionState{ID: "x", Expires: noon}},
		{SessionState: rules.SessionState{ID: "x", Container: "web"}},
		{SessionState: rules.SessionState{ID: "s1", Container: "web", Expires: noon.Add(time.Hour), Rules: []rules.Rule{{Action: "maybe"}}}},
	} {
		if _, err := s.PutSession(t.Context(), bad, noon); err == nil {
			t.Errorf("session %+v was stored", bad)
		}
	}
	// The last of them got as far as the transaction, which left all as it was.
	if d := cmp.Diff(extended, must[Session](t)(s.Session(t.Context(), "s1"))); d != "" {
		t.Errorf("after a refused upsert (-want +got):\n%s", d)
	}
}

func TestEndedSessionLeavesNothing(t *testing.T) {
	allow := rules.Rule{Destination: "a.test", Action: rules.ActionAllow}
	over := func(s Session) Session { // what is kept as history
		s.Ended, s.Rules, s.PolicyText = true, nil, ""
		return s
	}
	for _, c := range []struct {
		name string
		end  func(*Store, Session) error
		want func(Session) Session // nil: gone
	}{
		{"ended", func(s *Store, v Session) error { return s.EndSession(t.Context(), v.ID, noon.Add(time.Second)) }, func(v Session) Session {
			v.EndedAt = noon.UTC().Truncate(time.Microsecond).Add(time.Second)
			return over(v)
		}},
		{"expired", func(s *Store, v Session) error {
			swept, err := s.Sweep(t.Context(), v.Expires, time.Hour)
			v.EndedAt = v.Expires
			if d := cmp.Diff([]Session{over(v)}, swept.Sessions); d != "" {
				t.Errorf("swept (-want +got):\n%s", d)
			}
			return err
		}, func(v Session) Session { v.EndedAt = v.Expires; return over(v) }},
		{"deleted", func(s *Store, v Session) error { return s.DeleteSession(t.Context(), v.ID) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fresh(t)
			other := putSession(t, s, "other", "web", 2*time.Hour, allow)
			v := must[Session](t)(s.PutSession(t.Context(), Session{
				SessionState: rules.SessionState{ID: "s", Container: "web", Expires: noon.Add(time.Hour), Rules: []rules.Rule{allow, allow}},
				PolicyText:   "version: 1",
			}, noon))
			if err := c.end(s, v); err != nil {
				t.Fatal(err)
			}
			want := []Session{other}
			if c.want != nil {
				want = append(want, c.want(v))
			}
			if d := cmp.Diff(want, must[[]Session](t)(s.Sessions(t.Context(), SessionFilter{}))); d != "" {
				t.Errorf("sessions (-want +got):\n%s", d)
			}
			var left int
			if err := s.readers.QueryRow(`SELECT COUNT(*) FROM rules`).Scan(&left); err != nil || left != 1 {
				t.Errorf("%d rules left, %v, want the other session's one", left, err)
			}
			if _, err := s.ExtendSession(t.Context(), "s", noon.Add(3*time.Hour), noon.Add(time.Second)); !errors.Is(err, ErrNotFound) {
				t.Errorf("heartbeat = %v, want ErrNotFound", err)
			}
			if err := s.EndSession(t.Context(), "s", noon.Add(time.Second)); !errors.Is(err, ErrNotFound) {
				t.Errorf("second end = %v, want ErrNotFound", err)
			}
			again := putSession(t, s, "s", "web", time.Hour)
			if again.Seq <= v.Seq {
				t.Errorf("a new session of an old name has Seq %d, want above %d", again.Seq, v.Seq)
			}
		})
	}
}

func TestSweepOfRules(t *testing.T) {
	s := fresh(t)
	add := func(expires time.Time) Rule {
		return must[Rule](t)(s.AddRule(t.Context(), rules.Rule{Destination: "a.test", Action: rules.ActionDeny, Created: noon, Expires: expires}))
	}
	never, now, later := add(time.Time{}), add(noon), add(noon.Add(time.Microsecond))
	swept := must[Swept](t)(s.Sweep(t.Context(), noon, time.Hour))
	if d := cmp.Diff(Swept{Rules: []Rule{now}}, swept); d != "" {
		t.Errorf("swept (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]Rule{never, later}, must[[]Rule](t)(s.Rules(t.Context(), RuleFilter{}))); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
}

// The model: sessions in a map, by the words of the semantics.
type model struct {
	now  time.Time
	seq  int64
	live map[string]*Session // by id, expired ones that nobody noticed among them
	past map[string]Session  // history
}

func (m *model) isLive(id string) bool {
	s := m.live[id]
	return s != nil && s.Expires.After(m.now)
}

func (m *model) end(id string, at time.Time) {
	s := *m.live[id]
	s.Ended, s.EndedAt, s.Rules, s.PolicyText = true, at, nil, ""
	delete(m.live, id)
	m.past[id] = s
}

func TestSessionsModel(t *testing.T) {
	s := fresh(t)
	defer func() { s.Close() }() // the one of the last restart
	rapid.Check(t, func(t *rapid.T) {
		ctx := t.Context()
		if _, err := s.writer.Exec(`DELETE FROM sessions`); err != nil {
			t.Fatal(err)
		}
		m := model{now: noon.UTC().Truncate(time.Microsecond), live: map[string]*Session{}, past: map[string]Session{}}
		ids := rapid.SampledFrom([]string{"a", "b", "c"})
		containers := rapid.SampledFrom([]string{"web", "db"})
		ttls := rapid.Map(rapid.IntRange(1, 5), func(n int) time.Duration { return time.Duration(n) * time.Minute })
		const keep = 3 * time.Minute
		notFound := func(err error, want bool) {
			t.Helper()
			if errors.Is(err, ErrNotFound) != want || err != nil && !want {
				t.Fatalf("error %v, want not found: %v", err, want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				v := Session{SessionState: rules.SessionState{
					ID: ids.Draw(t, "id"), Container: containers.Draw(t, "container"),
					Expires: m.now.Add(ttls.Draw(t, "ttl")), AllowAll: rapid.Bool().Draw(t, "all"), Ask: rapid.Bool().Draw(t, "ask"),
				}, PolicyText: rapid.SampledFrom([]string{"", "version: 1"}).Draw(t, "policy")}
				for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
					v.Rules = append(v.Rules, rules.Rule{Destination: fmt.Sprintf("%d.test", i), Action: rules.ActionAllow})
				}
				got, err := s.PutSession(ctx, v, m.now)
				if err != nil {
					t.Fatal(err)
				}
				v.Created = m.now
				if m.isLive(v.ID) {
					v.Seq, v.Created = m.live[v.ID].Seq, m.live[v.ID].Created
				} else {
					if got.Seq <= m.seq {
						t.Fatalf("new session has Seq %d, and %d was given out", got.Seq, m.seq)
					}
					v.Seq, m.seq = got.Seq, got.Seq
				}
				delete(m.past, v.ID)
				v.Rules = slices.Clone(v.Rules)
				for i := range v.Rules {
					r := &v.Rules[i]
					r.Source, r.SessionID, r.Created, r.Expires = rules.Session, v.ID, m.now, v.Expires
				}
				m.live[v.ID] = &v
			},
			"extend": func(t *rapid.T) {
				id, expires := ids.Draw(t, "id"), m.now.Add(ttls.Draw(t, "ttl"))
				live := m.isLive(id)
				_, err := s.ExtendSession(ctx, id, expires, m.now)
				notFound(err, !live)
				if live {
					m.live[id].Expires = expires
					for i := range m.live[id].Rules {
						m.live[id].Rules[i].Expires = expires
					}
				}
			},
			"add a rule": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				live := m.isLive(id)
				r := rules.Rule{Destination: "more.test", Action: rules.ActionDeny, Created: m.now}
				_, err := s.AddSessionRule(ctx, id, r, m.now)
				notFound(err, !live)
				if live {
					r.Source, r.SessionID, r.Expires = rules.Session, id, m.live[id].Expires
					m.live[id].Rules = append(m.live[id].Rules, r)
				}
			},
			"end": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				live := m.isLive(id)
				notFound(s.EndSession(ctx, id, m.now), !live)
				if live {
					m.end(id, m.now)
				}
			},
			"delete": func(t *rapid.T) {
				id := ids.Draw(t, "id")
				_, past := m.past[id]
				notFound(s.DeleteSession(ctx, id), m.live[id] == nil && !past)
				delete(m.live, id)
				delete(m.past, id)
			},
			"sweep": func(t *rapid.T) {
				swept, err := s.Sweep(ctx, m.now, keep)
				if err != nil {
					t.Fatal(err)
				}
				var want []string
				for id, v := range m.live {
					if !m.isLive(id) {
						want = append(want, id)
						m.end(id, v.Expires)
					}
				}
				for id, v := range m.past {
					if !v.EndedAt.After(m.now.Add(-keep)) {
						delete(m.past, id)
					}
				}
				var got []string
				for _, v := range swept.Sessions {
					got = append(got, v.ID)
				}
				slices.Sort(want)
				slices.Sort(got)
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("swept (-want +got):\n%s", d)
				}
			},
			"tick": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 120).Draw(t, "seconds")) * time.Second)
			},
			"restart": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				again, err := Open(ctx, s.Path())
				if err != nil {
					t.Fatal(err)
				}
				s = again
			},
			"": func(t *rapid.T) {
				var want, live []Session
				rulesWanted := 0
				for id, v := range m.live {
					want = append(want, *v)
					rulesWanted += len(v.Rules)
					if m.isLive(id) {
						live = append(live, *v)
					}
				}
				for _, v := range m.past {
					want = append(want, v)
				}
				bySeq := func(a, b Session) int { return int(a.Seq - b.Seq) }
				slices.SortFunc(want, bySeq)
				slices.SortFunc(live, bySeq)
				// Ids and orders of rules are the store's own.
				options := cmp.Options{cmpopts.EquateEmpty(), cmpopts.IgnoreFields(rules.Rule{}, "ID", "Order")}
				got, err := s.Sessions(ctx, SessionFilter{})
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, got, options); d != "" {
					t.Fatalf("all sessions (-want +got):\n%s", d)
				}
				if got, err = s.Sessions(ctx, SessionFilter{LiveAt: m.now}); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(live, got, options); d != "" {
					t.Fatalf("live sessions (-want +got):\n%s", d)
				}
				rs, err := s.Rules(ctx, RuleFilter{})
				if err != nil {
					t.Fatal(err)
				}
				if len(rs) != rulesWanted {
					t.Fatalf("%d rules stored, want %d", len(rs), rulesWanted)
				}
			},
		})
	})
}

func TestSetInspect(t *testing.T) {
	s := fresh(t)
	putSession(t, s, "s1", "web", time.Hour)
	for _, hosts := range [][]string{{"a.test", "b.test:8443"}, nil} {
		if err := s.SetInspect(t.Context(), "s1", hosts, noon); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(hosts, must[Session](t)(s.Session(t.Context(), "s1")).Inspect); d != "" {
			t.Errorf("hosts (-want +got):\n%s", d)
		}
	}
	if err := s.SetInspect(t.Context(), "s1", nil, noon.Add(time.Hour)); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an expired session: %v", err)
	}
	// A session that is replaced forgets them.
	if err := s.SetInspect(t.Context(), "s1", []string{"a.test"}, noon); err != nil {
		t.Fatal(err)
	}
	if again := putSession(t, s, "s1", "web", time.Hour); again.Inspect != nil {
		t.Errorf("replaced: %v", again.Inspect)
	}
}
