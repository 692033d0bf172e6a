package web

import (
	"fmt"
	"testing"
	"time"
	"weir/e2e/netlab"

	"github.com/chromedp/chromedp"

	"weir/api"
	"weir/audit"
)

// TestEveryPageFits shows every page in two widths, with nothing on it and
// with a lot; two of them in the dark as well. The pictures are kept with -artifacts.
func TestEveryPageFits(t *testing.T) {
	dir := t.ArtifactDir()
	s := newService(t)
	b := s.open()
	b.to("/login")
	b.shoot(dir, "login", false)
	b.logIn()
	for _, name := range []string{"", "events", "questions", "rules", "sessions", "explain"} {
		b.to("/" + name)
		b.shoot(dir, "empty-"+name, false)
	}

	l := netlab.New(t)
	id := s.attach(l)
	s.furnish(l, id)
	held, ok := l.Dial()
	if !ok {
		t.Fatal("the server is not reached")
	}
	defer held.Works() // it is held until the pictures are taken
	s.stored()
	event := s.log.Last()
	for _, p := range []struct{ name, path string }{
		{"overview", "/"}, {"container", "/containers/" + id}, {"events", "/events"}, {"event", fmt.Sprintf("/events/%d", event)},
		{"rules", "/rules"}, {"sessions", "/sessions"}, {"learn", "/containers/" + id + "/learn"}, {"nothing", "/nothing"},
		{"explain", "/explain?container=" + id + "&destination=api.github.com&method=POST&target=/graphql&body=%7B%22query%22:%22mutation%7BdeleteRepository%7D%22%7D"},
	} {
		b.to(p.path)
		b.shoot(dir, p.name, false)
		if p.name == "overview" || p.name == "explain" {
			b.shoot(dir, p.name, true)
		}
	}
	b.to("/rules")
	b.click("tbody a.button")
	b.shoot(dir, "rule", false)
	b.to("/events")
	b.do(chromedp.EmulateViewport(1280, 900), chromedp.Click(chromedp.CSS("#rows tr.deny a")), chromedp.WaitVisible(chromedp.CSS("#detail[open]")))
	b.shoot(dir, "detail", false)

	s.forget(netlab.ServerAddr)
	s.asks(id)
	asking := l.Open()
	q := s.asked()
	b.to("/questions")
	b.shoot(dir, "questions", false)
	b.shoot(dir, "questions", true)
	if _, err := s.api.Answer(t.Context(), q.ID, api.AnswerRequest{Verdict: "allow", For: "once"}); err != nil || !asking.Opened() {
		t.Errorf("the answer: %v", err)
	}
	b.wait("what came of it", `document.querySelector("article.over") !== null`)
	b.shoot(dir, "questions-over", false)
	t.Logf("pictures: %s", dir)
}

// furnish fills a service with what a busy machine has.
func (s *service) furnish(l *netlab.Lab, id string) {
	t, ctx := s.t, s.t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []api.RuleRequest{
		{Destination: "**.tracker.example", Action: "deny", Notes: "nobody needs these"},
		{Destination: "169.254.0.0/16", Action: "deny"},
		{Destination: netlab.ServerAddr, Ports: "7000", Action: "allow", Container: "netns*", Transport: "tcp", ExpiresInSeconds: 7200},
		{Destination: "*.debian.org", Ports: "80,443", Action: "allow", Container: "build-*", Binaries: []string{"/usr/bin/apt", "/usr/lib/apt/methods/https"}, Notes: "packages"},
	} {
		_, err := s.api.AddRule(ctx, r)
		must(err)
	}
	_, err := s.api.SetPolicy(ctx, "company", "version: 1\nrules: [{deny: ads.example}]\n")
	must(err)
	_, err = s.api.CreateSession(ctx, api.SessionRequest{ID: "watch", Container: "not-there-yet", AllowAll: true})
	must(err)
	_, err = s.api.CreateSession(ctx, api.SessionRequest{ID: "job-4711", Container: id, TTLSeconds: 3600, Labels: map[string]string{"job": "4711"},
		NetworkRules: []api.SessionRule{{Destination: "*.packages.example", Ports: "443", Action: "allow"}, {Destination: "x.tracker.example", Action: "allow"}, {Destination: "10.0.0.0/8", Ports: "5432,6379,8000-9000", Action: "deny"}},
		Policy:       api.PolicyString("version: 1\nnetwork_policies:\n  github:\n    endpoints:\n      - host: api.github.com\n        port: 443\n        path: /graphql\n        protocol: graphql\n        access: read-only\n")})
	must(err)
	web := func(e audit.Event) audit.Event {
		e.ContainerID, e.ContainerName, e.SessionID = id, "netns-box", "job-4711"
		return e
	}
	now := time.Now()
	for i := range 400 {
		e := web(audit.Event{Time: now.Add(-time.Duration(i*i%50) * time.Second), Type: audit.Connect, Verdict: "allow", Layer: "session", RuleID: "job-4711/0", Host: "registry.packages.example", Address: "203.0.113.80", Port: 443, Transport: "tcp", BytesIn: 48213, BytesOut: 1822, DurationMS: 211, Reason: "session rule allow *.packages.example, ports 443"})
		switch i % 7 {
		case 1:
			e.Type, e.Port, e.Address, e.BytesIn, e.BytesOut, e.DurationMS, e.Transport = audit.DNS, 0, "", 0, 0, 0, "udp"
		case 3:
			e = web(audit.Event{Time: e.Time, Type: audit.DNS, Verdict: "deny", Layer: "global", RuleID: "r1", Host: "a-rather-long-name.of-a-service.eu-central-1.tracker.example", Transport: "udp", Reason: "global rule deny **.tracker.example"})
		case 5:
			e = web(audit.Event{Time: e.Time, Type: audit.Connect, Verdict: "deny", Layer: "guard", Address: "169.254.169.254", Port: 80, Transport: "tcp", Reason: "169.254.169.254 is a cloud metadata service; only a rule for this very address would open it"})
		case 6:
			e = web(audit.Event{Time: e.Time, Type: audit.GraphQL, Verdict: "deny", Layer: "session", RuleID: "job-4711/p0", Host: "api.github.com", Address: "203.0.113.9", Port: 443, Transport: "tcp", Method: "POST", Path: "/graphql", Binary: "/usr/bin/gh", Reason: "read-only allows no mutation"})
		}
		s.log.Record(e)
	}
	s.log.Record(web(audit.Event{Type: audit.Connect, Verdict: "deny", Layer: "default", Host: "index.pypi.example", Address: "203.0.113.55", Port: 443, Transport: "tcp", Reason: "no rule of any layer allows index.pypi.example:443; default deny"}))
}
