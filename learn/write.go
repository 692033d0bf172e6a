package learn

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"weir/audit"
	"weir/rules"
)

// write makes the document's text and tries it.
func (l *learner) write() (Learned, error) {
	body := l.body()
	document, _, err := rules.ParseDocument("learned", []byte(body))
	if err != nil && !l.exactWays {
		// Folded paths of WebSockets may come into conflict with other paths.
		l.exactWays = true
		l.draft()
		body = l.body()
		document, _, err = rules.ParseDocument("learned", []byte(body))
	}
	if err != nil {
		return Learned{}, fmt.Errorf("what was observed does not fit into one policy document; learn from a shorter time (--since): %w", err)
	}
	learned := Learned{Document: document}
	if err := l.check(&learned); err != nil {
		return Learned{}, err
	}
	text := l.head(&learned) + body
	if len(text) > rules.MaxDocument {
		return Learned{}, errors.New("what was observed does not fit into one policy document; learn from a shorter time (--since)")
	}
	learned.Text, document.Text = []byte(text), text
	return learned, nil
}

// head is what the document says about itself.
func (l *learner) head(learned *Learned) string {
	var s sheet
	counts := map[audit.Type]int{}
	var first, last time.Time
	for i := range l.obs {
		o := &l.obs[i]
		counts[o.Type] += o.Count
		if first.IsZero() || o.First.Before(first) {
			first = o.First
		}
		if o.Last.After(last) {
			last = o.Last
		}
	}
	who := ""
	if l.options.Container != "" {
		who = " of " + audit.Printable(l.options.Container)
	}
	s.line(0, "# Learned from %s, %s and %s%s", plural(counts[audit.Connect], "connection"),
		plural(counts[audit.HTTP], "request"), plural(counts[audit.DNS], "lookup"), who)
	if len(l.obs) > 0 {
		s.line(0, "# between %s and %s.", first.UTC().Format(time.RFC3339), last.UTC().Format(time.RFC3339))
	}
	if len(learned.Left) > 0 {
		s.line(0, "#")
		s.line(0, "# NOT admitted, although it was seen:")
		for i, one := range learned.Left {
			if i == maxLeftShown {
				s.line(0, "#   and %d more", len(learned.Left)-i)
				break
			}
			s.line(0, "#   %s", clip(one.String()))
			s.line(0, "#     %s", clip(audit.Printable(one.Why)))
		}
	}
	return s.String()
}

// clip bounds a line of a comment.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// body is the document without what it says about itself.
func (l *learner) body() string {
	var s sheet
	s.line(0, "version: 1")
	if len(l.plain) > 0 {
		s.line(0, "rules:")
	}
	for _, r := range l.plain {
		l.plainRule(&s, r)
	}
	if len(l.sites) > 0 {
		s.line(0, "network_policies:")
	}
	for i, site := range l.sites {
		site.write(&s, i)
	}
	return s.String()
}

func (l *learner) plainRule(s *sheet, r *plainRule) {
	s.line(1, "%s", r.comment(r.what))
	if r.lookup {
		s.line(1, "# Looked up, never connected to. Weir answers DNS itself: port 53 opens the name only.")
	}
	if len(r.folded) > 0 {
		s.line(1, "# %d names: %s", len(r.folded), clip(strings.Join(r.folded, ", ")))
	}
	s.line(1, "- allow: %s", scalar(r.destination))
	var ports []string
	for _, p := range r.ports {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	s.line(2, "ports: %q", strings.Join(ports, ","))
	s.line(2, "transport: %s", r.transport)
	if programs := r.programs.list(); len(programs) > 0 {
		s.list(2, "binaries", programs)
	}
}

func (t *site) write(s *sheet, n int) {
	written := false
	for i := range t.endpoints {
		if e := &t.endpoints[i]; len(e.requests) > 0 {
			if !written {
				name := t.host + "_" + strconv.Itoa(int(t.port))
				if len(name) > 200 {
					name = name[:200] + "_" + strconv.Itoa(n)
				}
				s.line(1, "%s", t.comment("request"))
				s.line(1, "%s:", scalar(name))
				s.line(2, "endpoints:")
				written = true
			}
			e.write(s, t)
		}
	}
	programs := t.programs.list()
	if !written || len(programs) == 0 {
		return
	}
	s.line(2, "binaries:")
	for _, p := range programs {
		s.line(3, "- path: %s", scalar(p))
	}
}

func (e *endpoint) write(s *sheet, t *site) {
	if e.reduced {
		s.line(3, "# Too many different paths: folders with many entries are opened whole.")
	}
	s.line(3, "- host: %s", scalar(t.host))
	s.line(4, "port: %d", t.port)
	if e.path != "" {
		s.line(4, "path: %s", scalar(e.path))
	}
	s.line(4, "protocol: %s", e.protocol)
	if e.slashes {
		s.line(4, "allow_encoded_slash: true")
	}
	if e.maxBody > 0 {
		s.line(4, "graphql_max_body_bytes: %d", e.maxBody)
	}
	s.line(4, "rules:")
	for i := range e.requests {
		r := &e.requests[i]
		if e.protocol == rules.ProtocolGraphQL {
			s.line(5, "%s", r.comment("operation"))
			s.line(5, "- allow:")
			s.line(7, "operation_type: %s", r.operationType)
			if r.operationName != "" {
				s.line(7, "operation_name: %s", scalar(r.operationName))
			}
			if len(r.fields) > 0 {
				s.list(7, "fields", r.fields)
			}
			continue
		}
		s.line(5, "%s", r.comment("request"))
		s.line(5, "- allow:")
		s.list(7, "methods", r.methods)
		s.line(7, "path: %s", scalar(r.path))
	}
}
