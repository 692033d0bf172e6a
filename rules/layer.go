package rules

import (
	"fmt"
	"slices"
	"time"
)

// Layer is an indexed, immutable set of the rules of one source. It is safe
// for concurrent use and may be in any number of policies.
type Layer struct {
	source   Source
	rules    []Rule
	expiries []time.Time // sorted
}

// NewLayer indexes rules.
func NewLayer(source Source, rs []Rule) (*Layer, error) {
	if slices.Index(precedence[:], source) < 0 {
		return nil, fmt.Errorf("layer %q cannot hold rules: use global, session or builtin", source)
	}
	return &Layer{source: source, rules: rs}, nil
}

// BuiltinLayer returns the rules that every container has.
func BuiltinLayer() *Layer {
	l, err := NewLayer(Builtin, nil)
	if err != nil {
		panic(err)
	}
	return l
}

// Source says which layer it is.
func (l *Layer) Source() Source { return l.source }

// Rules returns the layer's rules in canonical form. They must not be changed.
func (l *Layer) Rules() []Rule { return l.rules }

func (l *Layer) nextExpiry(now time.Time) (time.Time, bool) {
	i, _ := slices.BinarySearchFunc(l.expiries, now, time.Time.Compare)
	for ; i < len(l.expiries); i++ {
		if l.expiries[i].After(now) {
			return l.expiries[i], true
		}
	}
	return time.Time{}, false
}
