package api

import (
	"time"

	"weir/rules"
	"weir/session"
)

func attachmentOf(s session.Status) Attachment {
	a := Attachment{
		ContainerID: s.ContainerID, Name: s.Name, NetNS: s.NetNS, AttachedAt: s.AttachedAt, State: "attached",
		Interfaces: []string{}, ClosedConnections: []ClosedConnection{}, Warnings: s.Warnings,
		SessionID: s.Session, Mode: rules.Mode(s.AllowAll, s.Ask), Flows: s.Flows, Denied: s.Denied,
	}
	if s.Waiting {
		a.State = "waiting"
	}
	for _, i := range s.Interfaces {
		a.Interfaces = append(a.Interfaces, i.Name)
	}
	for _, c := range s.Closed {
		a.ClosedConnections = append(a.ClosedConnections, ClosedConnection{Transport: c.Protocol, Local: c.Local.String(), Remote: c.Remote.String()})
	}
	return a
}

func sessionOf(s session.Session) Session {
	return Session{
		ID: s.ID, Container: s.Container, CreatedAt: s.Created, ExpiresAt: s.Expires, AllowAll: s.AllowAll, Ask: s.Ask,
		InspectHosts: s.Inspect, Current: s.Current, RulesCreated: s.RuleCount(), Labels: s.Labels, Warnings: s.Warnings,
	}
}

func ruleOf(r session.ListedRule) Rule {
	rule := Rule{
		ID: r.ID, Source: string(r.Source), SessionID: r.SessionID, Container: r.Container, Destination: r.Destination,
		Ports: r.Ports, Transport: string(r.Transport), Binaries: r.Binaries, Action: string(r.Action),
		CreatedAt: r.Created, Notes: r.Notes, ExpiresAt: instant(r.Expires), LastUsedAt: instant(r.LastUsed),
		ShadowedBy: r.ShadowedBy,
	}
	if r.Endpoint != nil {
		rule.Endpoint = r.Endpoint.Policy
	}
	return rule
}

// instant is nil for the zero time.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func decisionOf(d rules.Decision) Decision {
	out := Decision{Verdict: d.Verdict.String(), Layer: string(d.Layer), Reason: d.Reason, Trace: []Step{}}
	if d.Rule != nil {
		r := ruleOf(session.ListedRule{Rule: *d.Rule})
		out.Rule = &r
	}
	for _, s := range d.Trace {
		out.Trace = append(out.Trace, Step{Layer: string(s.Layer), Rule: s.Rule, Text: s.Text, Matched: s.Matched, Won: s.Won, Why: s.Why})
	}
	if d.Would != nil {
		would := decisionOf(*d.Would)
		out.Would = &would
	}
	return out
}
