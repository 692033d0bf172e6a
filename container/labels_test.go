package container

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseLabels(t *testing.T) {
	tests := []struct {
		labels map[string]string
		want   SessionLabels
		errs   []string
	}{
		{labels: nil},
		{labels: map[string]string{"com.example": "x"}},
		{labels: map[string]string{"weir.attach": "true"}, want: SessionLabels{Attach: true}},
		{labels: map[string]string{"weir.attach": "false"}},
		{
			labels: map[string]string{"weir.attach": "true", "weir.session.policy": "/etc/weir/web.yaml", "weir.session.ttl": "1h"},
			want:   SessionLabels{Attach: true, Session: true, PolicyFile: "/etc/weir/web.yaml", TTL: time.Hour},
		},
		{
			labels: map[string]string{"weir.attach": "true", "weir.session.allow-all": "true"},
			want:   SessionLabels{Attach: true, Session: true, AllowAll: true},
		},
		{
			labels: map[string]string{"weir.attach": "true", "weir.session.ask": "true"},
			want:   SessionLabels{Attach: true, Session: true, Ask: true},
		},
		{
			labels: map[string]string{"weir.attach": "true", "weir.session.ask": "true", "weir.session.allow-all": "true"},
			errs:   []string{"weir.session.allow-all and weir.session.ask"},
		},
		{labels: map[string]string{"weir.session.ttl": "24h", "weir.attach": "true"}, want: SessionLabels{Attach: true, Session: true, TTL: 24 * time.Hour}},
		{labels: map[string]string{"weir.session.ttl": "1h"}, errs: []string{"without weir.attach=true"}},
		{labels: map[string]string{"weir.attach": "yes"}, errs: []string{`weir.attach="yes"`, `"true" or "false"`}},
		{labels: map[string]string{"weir.attach": ""}, errs: []string{`weir.attach=""`}},
		{
			labels: map[string]string{"weir.attach": "true", "weir.session.polcy": "x", "weir.session.ttl": "25h", "weir.session.policy": "web.yaml"},
			errs:   []string{`weir.session.polcy="x": unknown label`, `weir.session.ttl="25h"`, `weir.session.policy="web.yaml"`, "absolute path"},
		},
		{labels: map[string]string{"weir.attach": "true", "weir.session.ttl": "-1h"}, errs: []string{`"-1h"`}},
		{labels: map[string]string{"weir.attach": "true", "weir.session.ttl": "900"}, errs: []string{`"900"`, "such as 15m"}},
	}
	for _, tt := range tests {
		got, err := ParseLabels(tt.labels)
		if (err != nil) != (len(tt.errs) > 0) {
			t.Errorf("%v: error %v", tt.labels, err)
			continue
		}
		for _, part := range tt.errs {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: error %q lacks %q", tt.labels, err, part)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v: %s", tt.labels, diff)
		}
	}
}
