package api

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"weir/audit"
	"weir/rules"
	"weir/session"
)

// liveCollector counts what there is when it is asked.
type liveCollector struct {
	attachments, sessions, flows, used, fullest, queue, queueLimit, bytes, questions, held *prometheus.Desc

	mu        sync.Mutex
	conductor *session.Conductor // nil until watch was called
	log       *audit.Log
	in, out   moved
}

// moved is how much went in one direction: by what has ended, and shown last.
type moved struct{ ended, shown int64 }

// with is what to show when what is open has moved so much. Between its end
// and its event a connection counts nowhere, and a counter must not go back.
func (m *moved) with(open int64) float64 {
	m.shown = max(m.shown, m.ended+open)
	return float64(m.shown)
}

func newLiveCollector() *liveCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &liveCollector{
		attachments: desc("weir_attachments", "Attached containers.", "state"),
		sessions:    desc("weir_sessions", "Live sessions.", "mode"),
		flows:       desc("weir_flows", "Open connections and UDP associations.", "transport"),
		questions:   desc("weir_questions", "Questions that wait for a person's answer."),
		held:        desc("weir_held_flows", "Connections that wait for a person's answer."),
		used:        desc("weir_limit_used", "How much is in use of the limits that each container has, in all containers.", "limit"),
		fullest:     desc("weir_limit_used_ratio", "The part of a limit that is in use in the container that has least left; at 1 it is refused.", "limit"),
		queue:       desc("weir_event_queue", "Events recorded and not stored yet; at weir_event_queue_limit connections wait."),
		queueLimit:  desc("weir_event_queue_limit", "How many events may wait to be stored."),
		bytes:       desc("weir_bytes_total", "Bytes moved by connections and UDP associations.", "direction"),
	}
}

func (l *liveCollector) watch(c *session.Conductor, log *audit.Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conductor, l.log = c, log
}

// ended adds what connections have moved whose events are stored.
func (l *liveCollector) ended(in, out int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in.ended += in
	l.out.ended += out
}

// Describe implements prometheus.Collector.
func (l *liveCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{l.attachments, l.sessions, l.flows, l.used, l.fullest, l.queue, l.queueLimit, l.bytes, l.questions, l.held} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (l *liveCollector) Collect(to chan<- prometheus.Metric) {
	l.mu.Lock()
	conductor, log := l.conductor, l.log
	l.mu.Unlock()
	if conductor == nil {
		return
	}
	attached := map[string]int{"attached": 0, "waiting": 0}
	for _, a := range conductor.Attachments() {
		attached[attachmentOf(a).State]++
	}
	sessions := map[string]int{"enforce": 0, "asking": 0, "learning": 0}
	for _, s := range conductor.Sessions() {
		sessions[rules.Mode(s.AllowAll, s.Ask)]++
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for state, n := range attached {
		gauge(l.attachments, float64(n), state)
	}
	for m, n := range sessions {
		gauge(l.sessions, float64(n), m)
	}
	gauge(l.queue, float64(log.Waiting()))
	questions, held := conductor.Asking()
	gauge(l.questions, float64(questions))
	gauge(l.held, float64(held))
	gauge(l.queueLimit, audit.QueueSize)

	load := conductor.Load()
	flows := map[string]int64{"tcp": 0, "udp": 0}
	for _, level := range load.Levels {
		gauge(l.used, float64(level.Now), level.Limit)
		gauge(l.fullest, level.Fullest, level.Limit)
		switch level.Limit {
		case "connections":
			flows["tcp"] = level.Now
		case "udp_associations":
			flows["udp"] = level.Now
		}
	}
	for transport, n := range flows {
		gauge(l.flows, float64(n), transport)
	}
	l.mu.Lock()
	in, out := l.in.with(load.BytesIn), l.out.with(load.BytesOut)
	l.mu.Unlock()
	to <- prometheus.MustNewConstMetric(l.bytes, prometheus.CounterValue, in, "in")
	to <- prometheus.MustNewConstMetric(l.bytes, prometheus.CounterValue, out, "out")
}
