package api

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weir/audit"
	"weir/session"
)

// Metrics are what GET /metrics shows, in a registry of their own. They count
// stored events, so that counting costs a connection nothing. No label is ever
// a host, a path or anything else that a container chooses.
type Metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics returns metrics that count from zero.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_events_total", Help: "Stored events; those with a verdict are decisions.",
		}, []string{"type", "verdict", "layer"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_bytes_total", Help: "Bytes moved by connections that have ended.",
		}, []string{"direction"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "weir_duration_seconds", Help: "From the start of a connection or request to its end.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600},
		}, []string{"type"}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "weir_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.events, m.bytes, m.duration, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Count takes a batch of stored events.
func (m *Metrics) Count(batch []audit.Event) {
	for i := range batch {
		e := &batch[i]
		m.events.WithLabelValues(string(e.Type), e.Verdict, e.Layer).Inc()
		if e.Type == audit.Connect {
			m.bytes.WithLabelValues("in").Add(float64(e.BytesIn))
			m.bytes.WithLabelValues("out").Add(float64(e.BytesOut))
		}
		if e.Verdict == "allow" && e.Type != audit.DNS {
			m.duration.WithLabelValues(string(e.Type)).Observe(float64(e.DurationMS) / 1000)
		}
	}
}

// handler shows the metrics, with gauges of what is live now.
func (m *Metrics) handler(c *session.Conductor, log *audit.Log) http.Handler {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "weir_event_queue", Help: "Events recorded and not stored yet; at 4096 connections wait.",
		}, func() float64 { return float64(log.Waiting()) }),
		liveCollector{c},
	)
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// liveCollector counts attachments, sessions and flows when it is asked.
type liveCollector struct{ conductor *session.Conductor }

var (
	attachedDesc = prometheus.NewDesc("weir_attachments", "Attached containers.", []string{"state"}, nil)
	sessionsDesc = prometheus.NewDesc("weir_sessions", "Live sessions.", []string{"mode"}, nil)
	flowsDesc    = prometheus.NewDesc("weir_flows", "Live connections.", nil, nil)
)

// Describe implements prometheus.Collector.
func (l liveCollector) Describe(to chan<- *prometheus.Desc) {
	to <- attachedDesc
	to <- sessionsDesc
	to <- flowsDesc
}

// Collect implements prometheus.Collector.
func (l liveCollector) Collect(to chan<- prometheus.Metric) {
	attached := map[string]int{"attached": 0, "waiting": 0}
	flows := 0
	for _, a := range l.conductor.Attachments() {
		attached[attachmentOf(a).State]++
		flows += a.Flows
	}
	sessions := map[string]int{"enforce": 0, "asking": 0, "learning": 0}
	for _, s := range l.conductor.Sessions() {
		sessions[mode(s.AllowAll, s.Ask)]++
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	for state, n := range attached {
		gauge(attachedDesc, n, state)
	}
	for m, n := range sessions {
		gauge(sessionsDesc, n, m)
	}
	gauge(flowsDesc, flows)
}
