package rules

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// span is an inclusive range of ports.
type span struct{ first, last uint16 }

// portSet is a set of ports, as sorted spans that neither touch nor overlap.
type portSet struct {
	spans []span
	count int // 1 to 65535
}

const everyPort = 65535 // ports 1 to 65535; 0 is none

// parsePorts reads "*", or a list of numbers and inclusive ranges. "" is "*".
func parsePorts(s string) (*portSet, error) {
	if s == "" || s == "*" {
		return &portSet{spans: []span{{1, everyPort}}, count: everyPort}, nil
	}
	var spans []span
	for item := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(item), "-")
		first, err := parsePort(from)
		last := first
		if err == nil && isRange {
			last, err = parsePort(to)
		}
		if err != nil {
			return nil, fmt.Errorf("ports %q: %w", s, err)
		}
		if last < first {
			return nil, fmt.Errorf("ports %q: the range %d-%d ends before it starts", s, first, last)
		}
		spans = append(spans, span{first, last})
	}
	return newPortSet(spans), nil
}

func newPortSet(spans []span) *portSet {
	slices.SortFunc(spans, func(a, b span) int { return int(a.first) - int(b.first) })
	set := &portSet{}
	for _, p := range spans {
		if n := len(set.spans); n > 0 && int(p.first) <= int(set.spans[n-1].last)+1 {
			set.spans[n-1].last = max(set.spans[n-1].last, p.last)
			continue
		}
		set.spans = append(set.spans, p)
	}
	for _, p := range set.spans {
		set.count += int(p.last) - int(p.first) + 1
	}
	return set
}

var errPort = errors.New(`a port is a number from 1 to 65535; write "*", or numbers and ranges such as "80,443,8000-9000"`)

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("%q: %w", s, errPort)
	}
	return uint16(n), nil
}

func (s *portSet) all() bool { return s.count == everyPort }

func (s *portSet) contains(port uint16) bool {
	if s.all() {
		return port != 0
	}
	i, found := slices.BinarySearchFunc(s.spans, port, func(p span, port uint16) int { return int(p.first) - int(port) })
	return found || i > 0 && port <= s.spans[i-1].last
}

// minus returns what is left of spans without the ports of s.
func (s *portSet) minus(spans []span) []span {
	var left []span
	for _, p := range spans {
		first, last := int(p.first), int(p.last)
		for _, q := range s.spans {
			if int(q.last) < first || int(q.first) > last {
				continue
			}
			if int(q.first) > first {
				left = append(left, span{uint16(first), q.first - 1})
			}
			first = int(q.last) + 1
		}
		if first <= last {
			left = append(left, span{uint16(first), uint16(last)})
		}
	}
	return left
}

// String returns the canonical form.
func (s *portSet) String() string {
	if s.all() {
		return "*"
	}
	var b strings.Builder
	for i, p := range s.spans {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(int(p.first)))
		if p.last > p.first {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(int(p.last)))
		}
	}
	return b.String()
}
