package web

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir/api"
)

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
