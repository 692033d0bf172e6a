package api

import (
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weir/audit"
	"weir/rules"
	"weir/session"
)

// Metrics are what GET /metrics shows, in a registry of their own. Decisions
// and bytes are counted as their events are stored, so that counting costs a
// connection nothing; what is told on the data path goes into histograms that
// are updated without a lock. No label is ever a host, a path or anything else
// that a container chooses.
type Metrics struct {
	registry   *prometheus.Registry
	events     *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	decisions  [rules.GraphQL + 1]prometheus.Observer // by stage
	handshakes [2][2]prometheus.Observer              // by side; failed, done
	dns        [2]prometheus.Observer                 // failed, answered
	append     [2]prometheus.Observer                 // failed, stored
	viewers    prometheus.Gauge
	live       *liveCollector
}

// outcomes are the values of the label result, as the arrays above have them.
var outcomes = [2]string{"failed", "done"}

// NewMetrics returns metrics that count from zero.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_events_total", Help: "Stored events; those with a verdict are decisions.",
		}, []string{"type", "verdict", "layer"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weir_duration_seconds", Help: "From the start of a connection or request to its end.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600},
		}, []string{"type"}),
		viewers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weir_viewers", Help: "Open streams of events, of the API and of the dashboard.",
		}),
		live: newLiveCollector(),
	}
	decisions := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weir_decision_seconds", Help: "How long the policy took to answer, once for each time that it was asked.",
		// From 250 ns to 16 ms, each four times the one before.
		Buckets: prometheus.ExponentialBuckets(250e-9, 4, 9),
	}, []string{"stage"})
	for stage, name := range map[rules.Stage]string{
		rules.Resolve: "resolve", rules.Connect: "connect", rules.Hello: "hello", rules.HTTP: "http", rules.GraphQL: "graphql",
	} {
		m.decisions[stage] = decisions.WithLabelValues(name)
	}
	handshakes := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weir_tls_handshake_seconds", Help: "How long opening TLS took on one side of an inspected connection.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
	}, []string{"side", "result"})
	dns := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weir_dns_upstream_seconds", Help: "How long questions took that had to be put to the name servers.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
	}, []string{"result"})
	store := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "weir_event_append_seconds", Help: "How long storing a batch of events took.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30},
	}, []string{"result"})
	for i, result := range outcomes {
		for _, side := range []session.Side{session.ClientSide, session.ServerSide} {
			m.handshakes[side][i] = handshakes.WithLabelValues(side.String(), result)
		}
		m.dns[i], m.append[i] = dns.WithLabelValues(result), store.WithLabelValues(result)
	}
	// What is alerted on is there from the start: Prometheus sees no increase in
	// a series that begins with 1.
	for _, kind := range []audit.Type{audit.Tamper, audit.Limit} {
		m.events.WithLabelValues(string(kind), "deny", "")
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weir_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.events, m.duration, decisions, handshakes, dns, store, m.viewers, info, m.live,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Count takes a batch of stored events.
func (m *Metrics) Count(batch []audit.Event) {
	var in, out int64
	for i := range batch {
		e := &batch[i]
		m.events.WithLabelValues(string(e.Type), e.Verdict, e.Layer).Inc()
		if e.Type == audit.Connect {
			in += e.BytesIn
			out += e.BytesOut
		}
		if e.Verdict == "allow" && e.Type != audit.DNS {
			m.duration.WithLabelValues(string(e.Type)).Observe(float64(e.DurationMS) / 1000)
		}
	}
	m.live.ended(in, out)
}

// Appended is told how long storing a batch took, and whether it is stored.
func (m *Metrics) Appended(took time.Duration, err error) {
	m.append[outcome(err == nil)].Observe(took.Seconds())
}

// Decided implements session.Meter.
func (m *Metrics) Decided(stage rules.Stage, took time.Duration) {
	if int(stage) < len(m.decisions) && m.decisions[stage] != nil {
		m.decisions[stage].Observe(took.Seconds())
	}
}

// Handshaken implements session.Meter.
func (m *Metrics) Handshaken(side session.Side, took time.Duration, done bool) {
	m.handshakes[side][outcome(done)].Observe(took.Seconds())
}

// Asked is told of each question that was put to the name servers.
func (m *Metrics) Asked(took time.Duration, answered bool) {
	m.dns[outcome(answered)].Observe(took.Seconds())
}

func outcome(good bool) int {
	if good {
		return 1
	}
	return 0
}

// handler shows the metrics, with gauges of what is live now.
func (m *Metrics) handler(c *session.Conductor, log *audit.Log) http.Handler {
	m.live.watch(c, log)
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// countViewers counts the streams that are open.
func (m *Metrics) countViewers(next http.Handler) http.Handler {
	counted := promhttp.InstrumentHandlerInFlight(m.viewers, next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/stream") {
			counted.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}
