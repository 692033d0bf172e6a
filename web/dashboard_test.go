package web

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"weir/e2e/netlab"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"weir/api"
	"weir/audit"
)

const markup = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"'&amp;`

// attach attaches the lab's container and returns its id.
func (s *service) attach(l *netlab.Lab) string {
	s.t.Helper()
	a, err := s.api.Attach(s.t.Context(), l.Ref())
	if err != nil {
		s.t.Fatal(err)
	}
	return a.ContainerID
}

func TestTheDashboardInABrowser(t *testing.T) {
	s := newService(t)
	l := netlab.New(t)
	b := s.open()
	b.to("/rules")
	b.do(chromedp.SendKeys(chromedp.CSS("#token"), "not the token"))
	b.click("button.primary")
	b.says("That is not the token")
	b.do(chromedp.SendKeys(chromedp.CSS("#token"), token))
	b.click("button.primary")
	b.says("Add a global rule") // where it wanted to go
	b.to("/")
	b.says("No container is attached", "sudo weir attach NAME --allow-all")

	// Attach by the form.
	b.fill("main", "container", l.Ref())
	b.click("form[action='/containers'] button")
	b.says("is attached", "No session is open", "Effective policy", "No connection is open")
	container := eval[string](b, "location.pathname")

	// A refusal appears in the list of events without a reload.
	b.to("/events")
	b.wait("the stream is open", `document.getElementById("state").textContent === "live"`)
	eval[bool](b, "window.stillHere = true")
	if _, ok := l.Dial(); ok {
		t.Fatal("a connection was let through that nothing allows")
	}
	b.wait("the refusal appears", `[...document.querySelectorAll("#rows tr.deny")].some(r => r.textContent.includes("198.51.100.7:7000"))`)
	if !eval[bool](b, "window.stillHere === true") {
		t.Error("the page was loaded again")
	}

	// Its row opens by the keyboard, says why, and leads to a rule.
	b.do(chromedp.Focus(chromedp.CSS("#rows tr.deny a")), chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(chromedp.CSS("#detail[open] .facts")))
	b.says("What would be decided now", "default deny", "no rule of any layer allows")
	b.click("#detail a.button[href^='/rules']")
	if dest, port := eval[string](b, `document.querySelector("#add [name=destination]").value`), eval[string](b, `document.querySelector("#add [name=ports]").value`); dest != netlab.ServerAddr || port != "7000" {
		t.Errorf("the form was not filled in: %q %q", dest, port)
	}

	// The rule takes effect; a bad one is refused with what was written.
	b.fill("#add", "destination", "*foo.example", "container", "*", "notes", "kept")
	b.click("#add button.primary")
	b.says("*foo.example")
	if notes := eval[string](b, `document.querySelector("#add [name=notes]").value`); notes != "kept" {
		t.Errorf("what was written is gone: %q", notes)
	}
	b.fill("#add", "destination", netlab.ServerAddr, "expires", "3600")
	b.click("#add button.primary")
	b.says("is added: allow 198.51.100.7, ports 7000, for *")
	held, ok := l.Dial()
	if !ok {
		t.Fatal("the rule has no effect")
	}

	// The connection is listed, and cut by its button.
	b.to(container)
	b.wait("the connection is listed", `document.querySelector("#flows tbody td").textContent.includes("198.51.100.7:7000")`)
	b.do(chromedp.Click(chromedp.CSS("#flows button.danger")))
	held.WaitCut()
	b.wait("it is gone from the list", `document.getElementById("flows").textContent.includes("No connection is open")`)

	// Edited to deny, and deleted.
	b.to("/rules")
	b.click("tbody a.button")
	b.fill("main", "action", "deny")
	b.click("main button.primary")
	b.says("is changed: deny 198.51.100.7")
	if _, ok := l.Dial(); ok {
		t.Error("a rule that was changed to deny allows")
	}
	list, err := s.api.Rules(t.Context(), "global", "", "")
	if err != nil || len(list.Items) != 1 || list.Items[0].ExpiresAt == nil {
		t.Fatalf("the expiry was not kept: %+v %v", list, err)
	}
	b.accept()
	b.click("tbody form button.danger")
	b.says("is deleted")

	// A session with lines of rules.
	b.to("/sessions?container=" + strings.TrimPrefix(container, "/containers/"))
	b.fill("#create", "allow", netlab.ServerAddr+":7000\n*.example.com:443\n", "deny", "10.0.0.0/8", "id", "by-hand")
	b.click("#create button.primary")
	b.says("Session by-hand is open", "current")
	if _, ok := l.Dial(); !ok {
		t.Error("the session's rule has no effect")
	}
	b.fill("tbody", "ttl_seconds", "28800")
	b.click("tbody form[action$='/extend'] button")
	b.says("lives for another 8 h")
	b.accept()
	b.click("tbody form[action$='/end'] button")
	b.says("have ended", "No session is open")

	// The form for questions.
	b.to("/explain?container=" + strings.TrimPrefix(container, "/containers/"))
	b.fill("main", "destination", "api.example.com", "port", "443")
	b.click("main button.primary")
	b.says("Looked at, in this order", "default deny", "To change it", "weir session create")

	// And out again.
	b.click(".top form button")
	b.to("/rules")
	if path := eval[string](b, "location.pathname"); path != "/login" {
		t.Errorf("after the logout at %s", path)
	}
}

// accept has the next question of the page answered with yes.
func (b *tab) accept() {
	b.t.Helper()
	eval[chromedp.Void](b, "window.confirm = () => true")
}

func TestBadgesNameTheSourceOfEachRule(t *testing.T) {
	s := newService(t)
	l := netlab.New(t)
	id := s.attach(l)
	ctx := t.Context()
	global, err := s.api.AddRule(ctx, api.RuleRequest{Destination: "**.tracker.example", Action: "deny"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.api.CreateSession(ctx, api.SessionRequest{ID: "s", Container: id, NetworkRules: []api.SessionRule{
		{Destination: "api.example.com", Ports: "443", Action: "allow"}, {Destination: "x.tracker.example", Action: "allow"},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.api.SetPolicy(ctx, "doc", "version: 1\nrules: [{deny: ads.example}]\n"); err != nil {
		t.Fatal(err)
	}
	b := s.open()
	b.logIn()
	rows := func(path string) []string {
		b.to(path)
		return eval[[]string](b, `[...document.querySelectorAll("table.rules tbody tr:not(.end)")].map(r => [r.querySelector(".source").textContent, r.querySelector(".verdict").textContent, r.querySelector("td:nth-child(3) .code").textContent, r.querySelector("td:nth-child(3) .shadowed")?.textContent ?? ""].join("|"))`)
	}
	want := []string{
		"global|deny|ads.example|", "global|deny|**.tracker.example|",
		"session|allow|api.example.com|", "session|allow|x.tracker.example|shadowed by " + global.ID,
		"built-in|allow|127.0.0.1|", "built-in|allow|::1|", "built-in|allow|localhost|",
	}
	if got := rows("/containers/" + id); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("effective policy:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	got := rows("/rules")
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || g == w
		}
		if !found {
			t.Errorf("the list of rules lacks %q:\n%s", w, strings.Join(got, "\n"))
		}
	}
	// Only a global rule that stands by itself can be changed here.
	if n := eval[int](b, `document.querySelectorAll("tbody form[action$=delete]").length`); n != 1 {
		t.Errorf("%d rules can be deleted", n)
	}
}

func TestWhatAContainerChoseIsText(t *testing.T) {
	s := newService(t)
	b := s.open()
	b.logIn()
	e := audit.Event{
		Type: audit.HTTP, Verdict: "deny", Layer: "session", ContainerID: "netns:" + markup, ContainerName: markup, SessionID: markup, RuleID: markup,
		Host: markup, Address: "198.51.100.7", Port: 443, Transport: "tcp", Method: "GET", Path: "/" + markup, Binary: "/bin/" + markup, Reason: "no rule for " + markup,
	}
	s.log.Record(e)
	s.stored()
	b.to("/events")
	b.wait("the stream is open", `document.getElementById("state").textContent === "live"`)
	id := s.log.Record(e) // this one comes by the stream
	b.wait("it appears", fmt.Sprintf(`document.getElementById("e%d") !== null`, id))
	for _, path := range []string{"", "/", fmt.Sprintf("/events/%d", id), "/explain?container=%3Cscript%3E&destination=%3Cb%3E", "/rules?destination=%22%3E%3Cscript%3Ealert(1)%3C/script%3E", "/login?next=%22%3E%3Cscript%3E"} {
		if path != "" {
			b.to(path)
		}
		if n := eval[int](b, `document.querySelectorAll("main img:not([alt='']), main script, main b").length`); n != 0 || eval[string](b, "document.title") == "owned" {
			t.Errorf("%s: what a container chose became %d elements", path, n)
		}
		if path == "" || path == "/" {
			b.says(`<img src=x onerror=`)
		}
	}
	b.to("/events")
	b.do(chromedp.Click(chromedp.CSS("#rows tr:first-child a")), chromedp.WaitVisible(chromedp.CSS("#detail[open] .facts")))
	if n := eval[int](b, `document.querySelectorAll("#detail img, #detail script").length`); n != 0 {
		t.Errorf("in the detail: %d elements", n)
	}
	b.says("onerror=")
	// Characters that turn the direction of text round are shown for what they are.
	id = s.log.Record(audit.Event{Type: audit.DNS, Verdict: "deny", ContainerName: "web", Host: "a\u202eelpmaxe.b", Reason: "r"})
	b.to("/events")
	b.wait("it appears", fmt.Sprintf(`document.getElementById("e%d") !== null`, id))
	b.says(`\u202e`)
}

// A page that is open when the login ends leads to the login, and back.
func TestTheLoginEndsWhileAPageIsOpen(t *testing.T) {
	s := newService(t)
	b := s.open()
	b.logIn()
	b.to("/events?verdict=deny")
	b.wait("the stream is open", `document.getElementById("state").textContent === "live"`)
	s.clock.Advance(loginTime)
	s.log.Record(audit.Event{Type: audit.DNS, Verdict: "deny", ContainerName: "web", Host: "a.example", Reason: "r"})
	b.wait("it is at the login", `location.pathname === "/login" && document.getElementById("token") !== null`)
	b.do(chromedp.SendKeys(chromedp.CSS("#token"), token))
	b.click("button.primary")
	if at := eval[string](b, "location.pathname + location.search"); at != "/events?verdict=deny" {
		t.Errorf("back at %s", at)
	}
	b.says("a.example")
}

// stored waits until everything recorded is stored.
func (s *service) stored() {
	s.t.Helper()
	for deadline := time.Now().Add(patience); s.log.Waiting() > 0; {
		if time.Now().After(deadline) {
			s.t.Fatal("the events are not stored")
		}
		<-time.After(time.Millisecond)
	}
}

func TestFiltersHoldForTheStream(t *testing.T) {
	s := newService(t)
	b := s.open()
	b.logIn()
	b.to("/events")
	b.fill(".filters", "container", "web", "verdict", "deny", "type", "connect", "host", "A.example")
	b.click(".filters button")
	b.says("Nothing like that has happened yet")
	b.wait("the stream is open", `document.getElementById("state").textContent === "live"`)
	event := func(container, verdict, host string, kind audit.Type) {
		s.log.Record(audit.Event{Type: kind, Verdict: verdict, ContainerName: container, Host: host, Reason: "r"})
	}
	event("db", "deny", "a.example", audit.Connect)
	event("web", "allow", "a.example", audit.Connect)
	event("web", "deny", "b.example", audit.Connect)
	event("web", "deny", "a.example", audit.DNS)
	event("web", "deny", "a.example", audit.Connect)
	b.wait("the one appears", `document.querySelectorAll("#rows tr").length > 0`)
	if n := eval[int](b, `document.querySelectorAll("#rows tr").length`); n != 1 {
		t.Errorf("%d rows:\n%s", n, b.text())
	}
}

// A thousand events a second: the page keeps a bounded number of rows, takes
// clicks, and a viewer that does not read holds nobody up.
func TestManyEvents(t *testing.T) {
	s := newService(t)
	b := s.open()
	b.logIn()
	slow := s.slowViewer()
	defer slow()
	b.to("/events")
	b.wait("the stream is open", `document.getElementById("state").textContent === "live"`)
	const rate, seconds = 1000, 3
	var sending sync.WaitGroup
	var last int64
	sending.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for i := range rate * seconds {
			if i%(rate/100) == 0 {
				<-tick.C
			}
			last = s.log.Record(audit.Event{Type: audit.Connect, Verdict: []string{"allow", "deny"}[i%2], ContainerName: "web", Host: fmt.Sprintf("h%d.example", i), Port: 443, Transport: "tcp", Reason: "because of a rule"})
		}
	})
	b.wait("rows appear", `document.querySelectorAll("#rows tr").length > 100`)
	// In the midst of it the page answers.
	b.do(chromedp.Click(chromedp.CSS("#pause")))
	b.wait("it pauses", `document.getElementById("state").textContent === "paused"`)
	rows := eval[string](b, `document.querySelector("#rows tr").id`)
	sending.Wait()
	s.stored()
	if again := eval[string](b, `document.querySelector("#rows tr").id`); again != rows {
		t.Errorf("rows come in while it pauses: %s, then %s", rows, again)
	}
	b.click("#pause")
	b.wait("the last one is there", fmt.Sprintf(`document.getElementById("e%d") !== null`, last))
	b.wait("the stream is open", `document.getElementById("state").textContent === "live"`)
	for range 1200 {
		last = s.log.Record(audit.Event{Type: audit.DNS, Verdict: "allow", ContainerName: "web", Host: "x.example", Reason: "r"})
	}
	b.wait("the last of a burst is there", fmt.Sprintf(`document.getElementById("e%d") !== null`, last))
	b.wait("it says what was left out", `document.getElementById("skipped").textContent.includes("too many to show")`)
	if n := eval[int](b, `document.querySelectorAll("#rows tr").length`); n > 200 {
		t.Errorf("%d rows are kept", n)
	}
}
