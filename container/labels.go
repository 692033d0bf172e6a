package container

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Labels that a container may carry to be attached when it starts.
const (
	LabelAttach   = "weir.attach"            // "true" or "false"
	LabelPolicy   = "weir.session.policy"    // absolute path of a policy file on the host
	LabelAllowAll = "weir.session.allow-all" // "true" or "false"
	LabelAsk      = "weir.session.ask"       // "true" or "false"
	LabelTTL      = "weir.session.ttl"       // a duration, at most 24h
)

// MaxTTL is the longest life a session can ask for.
const MaxTTL = 24 * time.Hour

// SessionLabels is what a container's labels ask for. The zero value asks for
// nothing.
type SessionLabels struct {
	Attach bool
	// Session: at least one weir.session label is there, so a session is to be
	// opened at start. It is an error without Attach.
	Session    bool
	PolicyFile string        // "" when not given
	AllowAll   bool          // learning mode
	Ask        bool          // ask a person about what only the default deny refuses
	TTL        time.Duration // 0 when not given
}

// ParseLabels reads the weir labels among a container's labels. Every bad
// value and every unknown label that begins with "weir." is an error, all of
// them joined, so that a misspelt label never means less than it reads.
func ParseLabels(labels map[string]string) (SessionLabels, error) {
	var s SessionLabels
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(key, "weir.") {
			continue
		}
		s.Session = s.Session || strings.HasPrefix(key, "weir.session.")
		value := labels[key]
		var err error
		switch key {
		case LabelAttach:
			s.Attach, err = parseBool(value)
		case LabelAllowAll:
			s.AllowAll, err = parseBool(value)
		case LabelAsk:
			s.Ask, err = parseBool(value)
		case LabelPolicy:
			if s.PolicyFile = value; !filepath.IsAbs(value) {
				err = errors.New("want the absolute path of a policy file on the host")
			}
		case LabelTTL:
			if s.TTL, err = time.ParseDuration(value); err != nil || s.TTL < time.Second || s.TTL > MaxTTL {
				err = errors.New("want a duration from 1s to 24h, such as 15m")
			}
		default:
			err = fmt.Errorf("unknown label; there are %s, %s, %s, %s and %s", LabelAttach, LabelPolicy, LabelAllowAll, LabelAsk, LabelTTL)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("label %s=%q: %w", key, value, err))
		}
	}
	if s.Session && !s.Attach && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("labels weir.session.* without %s=true have no effect; add it or take them away", LabelAttach))
	}
	if s.Ask && s.AllowAll {
		errs = append(errs, fmt.Errorf("labels %s and %s: learning mode refuses nothing that could be asked about; set one of them", LabelAllowAll, LabelAsk))
	}
	if len(errs) > 0 {
		return SessionLabels{}, errors.Join(errs...)
	}
	return s, nil
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New(`want "true" or "false"`)
}
