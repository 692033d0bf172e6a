package api

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"weir/audit"
	"weir/rules"
	"weir/session"
)

// A series is what one line of /metrics says.
type series struct {
	labels map[string]string
	value  float64
}

// scrape reads /metrics as Prometheus does: series by name.
func (s *service) scrape() map[string][]series {
	s.t.Helper()
	a := s.send("GET", "/metrics", "")
	if a.status != http.StatusOK {
		s.t.Fatalf("metrics: %d %s", a.status, a.body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(a.body)))
	if err != nil {
		s.t.Fatal(err)
	}
	all := map[string][]series{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			h := m.GetHistogram()
			if h == nil {
				value := m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
				all[name] = append(all[name], series{labels, value})
				continue
			}
			all[name+"_count"] = append(all[name+"_count"], series{labels, float64(h.GetSampleCount())})
			all[name+"_sum"] = append(all[name+"_sum"], series{labels, h.GetSampleSum()})
			for _, b := range h.GetBucket() {
				withBound := maps.Clone(labels)
				withBound["le"] = "any"
				all[name+"_bucket"] = append(all[name+"_bucket"], series{withBound, float64(b.GetCumulativeCount())})
			}
		}
	}
	return all
}

// value is that of the one series with these labels and no others.
func value(t *testing.T, all map[string][]series, name string, labels map[string]string) float64 {
	t.Helper()
	for _, s := range all[name] {
		if maps.Equal(s.labels, labels) {
			return s.value
		}
	}
	t.Errorf("no %s%v in %v", name, labels, all[name])
	return -1
}

func TestMetricsCountWhatTheyAreTold(t *testing.T) {
	m := NewMetrics("test")
	s := newServiceWith(t, m)
	s.send("POST", "/v1/attachments", `{"container":"`+s.netns()+`"}`)
	m.Count([]audit.Event{
		{Type: audit.Connect, Verdict: "allow", Layer: "session", BytesIn: 100, BytesOut: 7, DurationMS: 20},
		{Type: audit.Connect, Verdict: "deny", Layer: "default"},
		{Type: audit.HTTP, Verdict: "allow", Layer: "session", BytesIn: 90, BytesOut: 5},
		{Type: audit.DNS, Verdict: "deny", Layer: "default"},
	})
	for stage := rules.Resolve; stage <= rules.GraphQL; stage++ {
		m.Decided(stage, time.Microsecond)
	}
	m.Decided(0, time.Second) // no stage: counts nowhere
	m.Handshaken(session.ClientSide, time.Millisecond, true)
	m.Handshaken(session.ServerSide, time.Millisecond, false)
	m.Asked(time.Millisecond, true)
	m.Appended(time.Millisecond, errors.New("disk full"))
	all := s.scrape()
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   float64
	}{
		{"weir_events_total", map[string]string{"type": "connect", "verdict": "allow", "layer": "session"}, 1},
		{"weir_events_total", map[string]string{"type": "connect", "verdict": "deny", "layer": "default"}, 1},
		{"weir_events_total", map[string]string{"type": "dns", "verdict": "deny", "layer": "default"}, 1},
		{"weir_events_total", map[string]string{"type": "tamper", "verdict": "deny", "layer": ""}, 0},
		{"weir_events_total", map[string]string{"type": "limit", "verdict": "deny", "layer": ""}, 0},
		{"weir_bytes_total", map[string]string{"direction": "in"}, 100},
		{"weir_bytes_total", map[string]string{"direction": "out"}, 7},
		{"weir_duration_seconds_count", map[string]string{"type": "connect"}, 1},
		{"weir_decision_seconds_count", map[string]string{"stage": "resolve"}, 1},
		{"weir_decision_seconds_count", map[string]string{"stage": "graphql"}, 1},
		{"weir_decision_seconds_sum", map[string]string{"stage": "hello"}, 1e-6},
		{"weir_tls_handshake_seconds_count", map[string]string{"side": "client", "result": "done"}, 1},
		{"weir_tls_handshake_seconds_count", map[string]string{"side": "client", "result": "failed"}, 0},
		{"weir_tls_handshake_seconds_count", map[string]string{"side": "server", "result": "failed"}, 1},
		{"weir_dns_upstream_seconds_count", map[string]string{"result": "done"}, 1},
		{"weir_event_append_seconds_count", map[string]string{"result": "failed"}, 1},
		{"weir_attachments", map[string]string{"state": "attached"}, 1},
		{"weir_attachments", map[string]string{"state": "waiting"}, 0},
		{"weir_sessions", map[string]string{"mode": "learning"}, 0},
		{"weir_flows", map[string]string{"transport": "tcp"}, 0},
		{"weir_limit_used", map[string]string{"limit": "dialing"}, 0},
		{"weir_limit_used_ratio", map[string]string{"limit": "first_messages"}, 0},
		{"weir_limit_used_ratio", map[string]string{"limit": "dns_upstream"}, 0},
		{"weir_event_queue_limit", map[string]string{}, audit.QueueSize},
		{"weir_viewers", map[string]string{}, 0},
	} {
		if got := value(t, all, c.name, c.labels); got != c.want {
			t.Errorf("%s%v is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
}

// Bytes of what is open count while it is open, and a counter never goes back.
func TestMovedNeverGoesBack(t *testing.T) {
	var m moved
	for _, step := range []struct {
		ended, open int64
		want        float64
	}{{0, 10, 10}, {0, 30, 30}, {0, 0, 30}, {30, 0, 30}, {30, 5, 35}} {
		m.ended = step.ended
		if got := m.with(step.open); got != step.want {
			t.Errorf("%d ended, %d open: %v, want %v", step.ended, step.open, got, step.want)
		}
	}
}

func TestMetricsOnTheDataPathAllocateNothing(t *testing.T) {
	m := NewMetrics("test")
	if n := testing.AllocsPerRun(1000, func() {
		m.Decided(rules.Connect, time.Microsecond)
		m.Handshaken(session.ClientSide, time.Millisecond, true)
		m.Asked(time.Millisecond, false)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkMetricsDecided(b *testing.B) {
	m := NewMetrics("test")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Decided(rules.Connect, time.Microsecond)
		}
	})
}

func TestOpenStreamsAreCounted(t *testing.T) {
	s := newServiceWith(t, NewMetrics("test"))
	viewers := func(want float64) {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			got := value(t, s.scrape(), "weir_viewers", map[string]string{})
			if got == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%v viewers, want %v", got, want)
			}
		}
	}
	req, err := http.NewRequest("GET", "http://weir/v1/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	go s.log.Record(audit.Event{Type: audit.Lifecycle, Reason: "so that there is something to send"})
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	viewers(1)
	resp.Body.Close()
	viewers(0)
}

var (
	quoted   = regexp.MustCompile(`"[^"]*"`)
	selector = regexp.MustCompile(`\b(weir|process|go|up)(_[a-z_]+)?\b(?:\{([^}]*)\})?`)
	grouped  = regexp.MustCompile(`by \(([a-z_, ]+)\)`)
	// ofHistogram is what the parts of a histogram are called by.
	ofHistogram = regexp.MustCompile(`_(count|sum|bucket)$`)
	matcher     = regexp.MustCompile(`(\w+)\s*(=~|=|!=|!~)\s*"([^"]*)"`)
)

// What the examples for Grafana and Prometheus ask for is there, label by
// label and value by value.
func TestTheMonitoringExamplesUseWhatIsThere(t *testing.T) {
	m := NewMetrics("test")
	s := newServiceWith(t, m)
	s.send("POST", "/v1/attachments", `{"container":"`+s.netns()+`"}`)
	for _, e := range []audit.Type{audit.DNS, audit.Connect, audit.HTTP, audit.GraphQL} {
		for _, verdict := range []string{"allow", "deny"} {
			m.Count([]audit.Event{{Type: e, Verdict: verdict, Layer: "session"}})
		}
	}
	all := s.scrape()
	all["up"] = []series{{labels: map[string]string{}}} // Prometheus's own
	used := map[string]bool{}
	check := func(where, expression string) {
		found := selector.FindAllStringSubmatch(expression, -1)
		if len(found) == 0 {
			t.Errorf("%s asks for nothing of Weir's: %s", where, expression)
		}
		for _, f := range found {
			name := f[1] + f[2]
			have, ok := all[name]
			if !ok {
				t.Errorf("%s: /metrics has no %s", where, name)
			}
			used[name] = true
			for _, m := range matcher.FindAllStringSubmatch(f[3], -1) {
				label, operator, want := m[1], m[2], m[3]
				if label == "instance" || label == "job" {
					continue // Prometheus adds them
				}
				values := []string{want}
				if strings.Contains(operator, "~") {
					values = strings.Split(want, "|")
				}
				for _, v := range values {
					if !slices.ContainsFunc(have, func(s series) bool { return s.labels[label] == v }) {
						t.Errorf("%s: no %s has %s=%q", where, name, label, v)
					}
				}
			}
		}
		for _, g := range grouped.FindAllStringSubmatch(quoted.ReplaceAllString(expression, ""), -1) {
			for _, label := range strings.Split(g[1], ", ") {
				if label == "instance" {
					continue
				}
				for _, f := range found {
					if name := f[1] + f[2]; !slices.ContainsFunc(all[name], func(s series) bool { _, has := s.labels[label]; return has }) {
						t.Errorf("%s: no %s has the label %s", where, name, label)
					}
				}
			}
		}
	}

	examples := filepath.Join("..", "docs", "examples", "monitoring")
	text, err := os.ReadFile(filepath.Join(examples, "grafana.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	if len(dashboard.Panels) < 10 {
		t.Errorf("%d panels", len(dashboard.Panels))
	}
	for _, p := range dashboard.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("the panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			check("the panel "+p.Title, target.Expr)
		}
	}

	if text, err = os.ReadFile(filepath.Join(examples, "alerts.yaml")); err != nil {
		t.Fatal(err)
	}
	var alerts struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations struct{ Summary, Action string }
			}
		}
	}
	if err := yaml.Unmarshal(text, &alerts); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range alerts.Groups[0].Rules {
		check("the alert "+r.Alert, r.Expr)
		if r.Annotations.Summary == "" || r.Annotations.Action == "" {
			t.Errorf("the alert %s does not say what is the matter and what to do", r.Alert)
		}
		if !strings.Contains(string(page), "`"+r.Alert+"`") {
			t.Errorf("docs/operations.md does not say why there is an alert %s", r.Alert)
		}
	}
	listed := regexp.MustCompile("`(weir_[a-z_]+)")
	var inPage, shown []string
	for _, l := range listed.FindAllStringSubmatch(string(page), -1) {
		inPage = append(inPage, l[1])
	}
	for name := range all {
		if strings.HasPrefix(name, "weir_") {
			shown = append(shown, ofHistogram.ReplaceAllString(name, ""))
		}
	}
	slices.Sort(inPage)
	slices.Sort(shown)
	if diff := cmp.Diff(slices.Compact(inPage), slices.Compact(shown)); diff != "" {
		t.Errorf("docs/operations.md lists others than /metrics shows:\n%s", diff)
	}
	for _, name := range []string{"weir_event_queue", "weir_limit_used_ratio", "weir_decision_seconds_bucket", "weir_tls_handshake_seconds_count"} {
		if !used[name] {
			t.Errorf("neither panel nor alert uses %s", name)
		}
	}
}
