package web

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"weir/e2e/netlab"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"weir/api"
)

// asks opens a session that asks.
func (s *service) asks(container string) {
	s.t.Helper()
	if _, err := s.api.CreateSession(s.t.Context(), api.SessionRequest{ID: "careful", Container: container, Ask: true}); err != nil {
		s.t.Fatal(err)
	}
}

// forget deletes the global rules for a destination.
func (s *service) forget(destination string) {
	s.t.Helper()
	list, err := s.api.Rules(s.t.Context(), "global", "", destination)
	for _, r := range list.Items {
		err = errors.Join(err, s.api.DeleteRule(s.t.Context(), r.ID))
	}
	if err != nil || len(list.Items) == 0 {
		s.t.Fatalf("rules for %s: %+v %v", destination, list.Items, err)
	}
}

// asked waits for a question and returns it.
func (s *service) asked() api.Question {
	s.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		list, err := s.api.Questions(s.t.Context(), "")
		if err != nil {
			s.t.Fatal(err)
		}
		if len(list) > 0 {
			return list[0]
		}
		if time.Now().After(end) {
			s.t.Fatal("nothing is asked")
		}
	}
}

func TestAHeldConnectionIsReleasedByAClick(t *testing.T) {
	s, l := newService(t), netlab.New(t)
	id := s.attach(l)
	s.asks(id)
	b := s.open()
	b.logIn()
	b.to("/questions")
	b.says("Nothing is being asked", "weir attach NAME --ask")
	b.wait("the page follows", `document.getElementById("state").textContent === "live"`)

	held := l.Open()
	q := s.asked()
	b.wait("the question", `document.querySelectorAll("article.question:not(.over)").length === 1`)
	b.says(netlab.Server, "1 connection waits", "This session", "For good")
	b.wait("its number in the navigation", `document.getElementById("asked").textContent.startsWith("1") && document.title.startsWith("(1)")`)
	b.do(chromedp.Click(chromedp.CSS("#" + q.ID + " button[value=allow]")))
	if !held.Opened() {
		t.Error("what was allowed does not work")
	}
	b.wait("what came of it", `document.querySelector("article.over") !== null && document.querySelector("article:not(.over)") === null`)
	b.says("Allowed") // in the words of the answer or, if the stream is faster, of its event
	b.wait("the number is gone", `document.getElementById("asked").textContent === ""`)

	// It was once: the next one is asked about again, and answered by somebody else.
	held = l.Open()
	q = s.asked()
	b.wait("the next question", `document.getElementById("`+q.ID+`") !== null`)
	if _, err := s.api.Answer(t.Context(), q.ID, api.AnswerRequest{Verdict: "allow", For: "once"}); err != nil {
		t.Fatal(err)
	}
	if !held.Opened() {
		t.Error("what somebody else allowed does not work")
	}
	b.wait("what somebody else said", `document.getElementById("`+q.ID+`").classList.contains("over")`)
	b.says("Allowed once by")

	// With the keyboard, and with a rule.
	held = l.Open()
	q = s.asked()
	b.wait("another question", `document.getElementById("`+q.ID+`") !== null`)
	b.do(chromedp.Focus(chromedp.CSS("#"+q.ID+" input[value=once]")), chromedp.KeyEvent(kb.ArrowDown),
		chromedp.Focus(chromedp.CSS("#"+q.ID+" button[value=allow]")), chromedp.KeyEvent(kb.Enter))
	if !held.Opened() {
		t.Error("what was allowed by key does not work")
	}
	b.wait("the rule", `document.getElementById("`+q.ID+`").innerText.includes("`+netlab.ServerAddr+`, ports 7000")`)
	if _, works := l.Dial(); !works {
		t.Error("the rule does not count")
	}
	if n := eval[int](b, `document.querySelectorAll("#questions > article").length`); n != 3 {
		t.Errorf("%d cards of three questions:\n%s", n, b.text())
	}
}

func TestAnAnswerThatComesTooLateSaysSo(t *testing.T) {
	s := newService(t)
	cookie := s.logIn()
	with := func(r *http.Request) { r.AddCookie(cookie) }
	a := s.send("POST", "/questions/q-NOTTHERE", "verdict=allow&for=once&what=endpoint", with)
	if a.status != 404 || !strings.Contains(a.body, "q-NOTTHERE") || !strings.Contains(a.body, "Nothing is being asked") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a = s.send("POST", "/questions/q-NOTTHERE", "verdict=perhaps&for=once", with); a.status != 422 {
		t.Errorf("a verdict that there is not: %d %s", a.status, a.body)
	}
}

// What a container chose is text, whatever it is.
func TestQuestionsAreEscaped(t *testing.T) {
	s := newService(t)
	evil := "<script>alert(1)</script>\"'\u202e\x1b[31m"
	q := s.server.question(api.Question{ID: "q-1", ContainerID: evil, Container: evil, SessionID: evil, Host: evil, Binary: evil, Reason: evil, Port: 1,
		ExpiresAt: time.Now().Add(time.Minute), Choices: []api.Choice{{What: "endpoint", Destination: evil, Ports: evil}}})
	over := q
	over.Over = evil
	for _, q := range []question{q, over} {
		var page bytes.Buffer
		if err := readPages(s.server)["questions"].ExecuteTemplate(&page, "question", q); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"<script", "\u202e", "\x1b", `"'`} {
			if strings.Contains(page.String(), bad) {
				t.Errorf("%q is on the page:\n%s", bad, page.String())
			}
		}
	}
}
