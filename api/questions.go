package api

import (
	"cmp"
	"context"
	"fmt"
	"os/user"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/sys/unix"

	"weir/session"
)

// Question is a connection that is held until a person says whether it may go
// on. Without an answer it is denied when the question expires.
type Question struct {
	ID          string    `json:"id"`
	ContainerID string    `json:"container_id"`
	Container   string    `json:"container" doc:"its name"`
	SessionID   string    `json:"session_id" doc:"the session that asks"`
	Host        string    `json:"host,omitempty" doc:"absent: the question is about the address"`
	Address     string    `json:"address,omitempty" doc:"absent while the name is not resolved, which it is only once allowed"`
	Port        uint16    `json:"port"`
	Transport   string    `json:"transport" enum:"tcp"`
	Binary      string    `json:"binary,omitempty" doc:"the connecting program, if it was found"`
	Reason      string    `json:"reason" doc:"why it does not pass by itself"`
	AskedAt     time.Time `json:"asked_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	Flows       int       `json:"flows" doc:"connections that wait for the answer"`
	Choices     []Choice  `json:"choices" doc:"what an answer can be about, the narrowest first"`
}

// Choice is what an answer can be about, and the rule that it would make.
type Choice struct {
	What        string `json:"what" enum:"endpoint,host,suffix"`
	Destination string `json:"destination" doc:"of the rule"`
	Ports       string `json:"ports" doc:"of the rule"`
}

// AnswerRequest answers a question.
type AnswerRequest struct {
	Verdict string `json:"verdict" enum:"allow,deny"`
	For     string `json:"for" enum:"once,session,global" doc:"once: for what waits now; session: as a rule of the session; global: as a global rule for the container"`
	What    string `json:"what,omitempty" enum:"endpoint,host,suffix" doc:"endpoint (when absent): this name or address and this port; host: all its ports; suffix: the names around it, this port"`
}

// Answered is what came of an answer.
type Answered struct {
	Question string   `json:"question" doc:"its id"`
	Verdict  string   `json:"verdict" enum:"allow,deny"`
	Flows    int      `json:"flows" doc:"connections that waited for it"`
	Others   int      `json:"others" doc:"further questions that it answered as well"`
	Rule     *Rule    `json:"rule,omitempty" doc:"that was made; absent for an answer that holds once"`
	Warnings []string `json:"warnings,omitempty"`
}

// questionRoutes registers what shows and answers questions.
func (s *Server) questionRoutes(api huma.API) {
	route(api, "GET", "/v1/questions", "Connections that wait for a person's answer, oldest question first", s.questions)
	route(api, "POST", "/v1/questions/{id}", "Answer a question", s.answerQuestion)
}

func (s *Server) questions(ctx context.Context, in *struct {
	Container string `query:"container" doc:"only of this container: id, unique id prefix or name"`
}) (*out[[]Question], error) {
	open, err := s.Conductor.Questions(ctx, in.Container)
	list := []Question{}
	for _, q := range open {
		list = append(list, questionOf(q))
	}
	return ok(list, err)
}

func questionOf(q session.OpenQuestion) Question {
	out := Question{
		ID: q.ID, ContainerID: q.Question.Container.ID, Container: q.Question.Container.Name, SessionID: q.Session,
		Host: q.Host, Port: q.Port, Transport: string(q.Transport), Binary: q.Binary, Reason: q.Reason,
		AskedAt: q.Asked, ExpiresAt: q.Expires, Flows: q.Flows, Choices: []Choice{},
	}
	if q.Addr.IsValid() {
		out.Address = q.Addr.String()
	}
	for _, one := range q.Choices {
		out.Choices = append(out.Choices, Choice(one))
	}
	return out
}

func (s *Server) answerQuestion(ctx context.Context, in *struct {
	ID   string `path:"id"`
	Body AnswerRequest
}) (*out[Answered], error) {
	b := in.Body
	done, err := s.Conductor.Answer(ctx, in.ID, session.Reply{
		Allow: b.Verdict == "allow", For: b.For, What: cmp.Or(b.What, session.Endpoint), By: caller(ctx),
	})
	answered := Answered{Question: in.ID, Verdict: b.Verdict, Flows: done.Question.Flows, Others: done.Others, Warnings: done.Warnings}
	if done.Rule != nil {
		r := ruleOf(session.ListedRule{Rule: *done.Rule})
		answered.Rule = &r
	}
	return ok(answered, err)
}

// caller is who calls, for the audit trail: a user of this machine on the
// socket, or whoever knows the token.
func caller(ctx context.Context) string {
	cred, ok := ctx.Value(peerKey{}).(unix.Ucred)
	if !ok {
		return "the dashboard or a holder of the token"
	}
	if u, err := user.LookupId(strconv.Itoa(int(cred.Uid))); err == nil {
		return u.Username
	}
	return fmt.Sprintf("user %d", cred.Uid)
}
