package audit

import (
	"testing"
	"time"
)

func TestWhatIsSaidOfAQuestionIsReadBack(t *testing.T) {
	for reason, want := range map[string]struct {
		id, how string
		over    bool
	}{
		QuestionAsked("q-1", "no rule: default deny", time.Unix(0, 0)): {id: "q-1"},
		QuestionOver("q-2", "allowed once by root; it waited: 1"):      {"q-2", "allowed once by root; it waited: 1", true},
		"question q-3":         {},
		"global rule r1 added": {},
	} {
		if id, how, over := QuestionOf(reason); id != want.id || how != want.how || over != want.over {
			t.Errorf("%q: %q %q %v", reason, id, how, over)
		}
	}
}
