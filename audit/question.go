package audit

import (
	"strings"
	"time"
)

const stillOpen = "; an answer is waited for until "

// QuestionAsked is the Reason of the event of type Ask that says why question
// id is asked, and until when an answer is waited for.
func QuestionAsked(id, why string, until time.Time) string {
	return "question " + id + ": " + why + stillOpen + until.UTC().Format(time.TimeOnly)
}

// QuestionOver is the Reason of the event that says how question id ended.
func QuestionOver(id, how string) string { return "question " + id + ": " + how }

// QuestionOf reads the Reason of an event of type Ask: which question it is
// about, whether that is over, and how it ended. Of another reason the id is "".
func QuestionOf(reason string) (id, how string, over bool) {
	text, ok := strings.CutPrefix(reason, "question ")
	id, how, found := strings.Cut(text, ": ")
	if !ok || !found {
		return "", "", false
	}
	if strings.Contains(how, stillOpen) {
		return id, "", false
	}
	return id, how, true
}
