package api

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"weir/audit"
	"weir/rules"
	"weir/session"
)

// maxBody bounds a request's body; a policy document may have 1 MiB.
const maxBody = 4 << 20

// out is an answer with a body and a status of its own.
type out[T any] struct {
	Status int
	Body   T
}

func ok[T any](body T, err error) (*out[T], error) {
	if err != nil {
		return nil, answer(err)
	}
	return &out[T]{Status: http.StatusOK, Body: body}, nil
}

func created[T any](body T, err error) (*out[T], error) {
	o, err := ok(body, err)
	if err == nil {
		o.Status = http.StatusCreated
	}
	return o, err
}

type in[T any] struct{ Body T }

type containerPath struct {
	Container string `path:"container" doc:"id, unique id prefix or name"`
}

type idPath struct {
	ID string `path:"id"`
}

// route registers one handler.
func route[I, O any](api huma.API, method, path, summary string, handler func(context.Context, *I) (*O, error)) {
	huma.Register(api, huma.Operation{
		OperationID: operationID(method, path), Method: method, Path: path, Summary: summary, MaxBodyBytes: maxBody,
		Errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
	}, handler)
}

// operationID makes "get-v1-rules-id" of GET /v1/rules/{id}.
func operationID(method, path string) string {
	id := []byte(method)
	for _, b := range []byte(path) {
		switch {
		case b == '/':
			id = append(id, '-')
		case b != '{' && b != '}':
			id = append(id, b)
		}
	}
	for i, b := range id {
		if 'A' <= b && b <= 'Z' {
			id[i] = b + 'a' - 'A'
		}
	}
	return string(id)
}

// routes is the whole API.
func (s *Server) routes(api huma.API) {
	route(api, "GET", "/v1/health", "Whether the daemon is well", s.health)

	route(api, "POST", "/v1/upgrade", "Replace the daemon by the program that its binary is now; connections made meanwhile wait", s.upgrade)

	route(api, "POST", "/v1/attachments", "Attach a running container", s.attach)
	route(api, "POST", "/v1/attachments/starting", "Attach a container that its runtime is about to start", s.attachStarting)
	route(api, "GET", "/v1/attachments", "Attached containers", s.attachments)
	route(api, "GET", "/v1/attachments/{container}", "One attached container", s.attachment)
	route(api, "DELETE", "/v1/attachments/{container}", "Give a container its network back", s.detach)

	route(api, "POST", "/v1/sessions", "Create a session, or replace the one with the same id", s.createSession)
	route(api, "GET", "/v1/sessions", "Live sessions, in creation order", s.sessions)
	route(api, "GET", "/v1/sessions/{id}", "One live session", s.session)
	route(api, "DELETE", "/v1/sessions/{id}", "End a session and its rules", s.endSession)
	route(api, "POST", "/v1/sessions/{id}/heartbeat", "Extend a session and its rules", s.heartbeat)

	route(api, "GET", "/v1/rules", "Rules of every layer", s.listRules)
	route(api, "POST", "/v1/rules", "Add a global rule", s.addRule)
	route(api, "PUT", "/v1/rules/{id}", "Replace a global rule", s.updateRule)
	route(api, "DELETE", "/v1/rules/{id}", "Remove a global rule", s.deleteRule)

	route(api, "GET", "/v1/policies", "Policy documents of the global layer", s.policies)
	route(api, "PUT", "/v1/policies/{name}", "Set a policy document of the global layer", s.setPolicy)
	route(api, "DELETE", "/v1/policies/{name}", "Take a policy document out of the global layer", s.deletePolicy)

	route(api, "GET", "/v1/policy/{container}", "What holds for a container now", s.policy)
	route(api, "POST", "/v1/explain", "What would be decided now, and why", s.explain)
	route(api, "GET", "/v1/dns/{container}", "Names that a container resolved and that still count", s.names)

	s.learning(api)
	s.flowRoutes(api)
	s.questionRoutes(api)

	route(api, "GET", "/v1/ca", "The interception authority", s.ca)
	route(api, "PUT", "/v1/ca/{container}", "Make the programs in a container trust the authority", s.installCA)
	route(api, "DELETE", "/v1/ca/{container}", "Undo what made them trust it", s.uninstallCA)

	route(api, "GET", "/v1/events", "The audit trail, oldest first", s.events)
	s.stream(api)
}

func (s *Server) health(context.Context, *struct{}) (*out[Health], error) {
	return ok(Health{
		Status: "ok", Version: s.Version, Attachments: len(s.Conductor.Attachments()),
		UptimeSeconds: int64(s.Now().Sub(s.started) / time.Second), StartedAt: s.started,
	}, nil)
}

func (s *Server) upgrade(ctx context.Context, _ *struct{}) (*struct{}, error) {
	// The answer goes out before the server ends: Serve lets requests finish.
	if err := s.Upgrade(ctx); err != nil {
		return nil, answer(&session.Error{Kind: session.Conflict, Err: err})
	}
	return nil, nil
}

func (s *Server) attach(ctx context.Context, in *in[AttachRequest]) (*out[Attachment], error) {
	status, isNew, err := s.Conductor.Attach(ctx, in.Body.Container)
	if isNew {
		return created(attachmentOf(status), err)
	}
	return ok(attachmentOf(status), err)
}

func (s *Server) attachStarting(ctx context.Context, in *in[StartingRequest]) (*out[Attachment], error) {
	status, err := s.Conductor.AttachStarting(ctx, in.Body.ContainerID, in.Body.PID)
	return created(attachmentOf(status), err)
}

func (s *Server) attachments(context.Context, *struct{}) (*out[[]Attachment], error) {
	list := []Attachment{}
	for _, status := range s.Conductor.Attachments() {
		list = append(list, attachmentOf(status))
	}
	return ok(list, nil)
}

func (s *Server) attachment(ctx context.Context, in *containerPath) (*out[Attachment], error) {
	status, err := s.Conductor.Attachment(ctx, in.Container)
	return ok(attachmentOf(status), err)
}

func (s *Server) detach(ctx context.Context, in *containerPath) (*struct{}, error) {
	return nil, answer(s.Conductor.Detach(ctx, in.Container))
}

func (s *Server) createSession(ctx context.Context, in *in[SessionRequest]) (*out[Session], error) {
	b := in.Body
	spec := session.Spec{
		ID: b.ID, Container: b.Container, AllowAll: b.AllowAll, Ask: b.Ask, Inspect: b.InspectHosts, Labels: b.Labels,
		TTL: seconds(b.TTLSeconds),
	}
	for _, r := range b.NetworkRules {
		spec.Rules = append(spec.Rules, rules.Rule{
			Destination: r.Destination, Ports: r.Ports, Transport: rules.Transport(r.Transport),
			Binaries: r.Binaries, Action: rules.Action(r.Action), Notes: r.Notes,
		})
	}
	var err error
	if spec.Policy, err = b.Policy.text(); err != nil {
		return nil, huma.Error422UnprocessableEntity(err.Error())
	}
	made, err := s.Conductor.CreateSession(ctx, spec)
	return created(sessionOf(made), err)
}

// seconds is n seconds, or the longest duration there is.
func seconds(n int64) time.Duration {
	const most = int64(math.MaxInt64 / time.Second)
	return time.Duration(max(min(n, most), -most)) * time.Second
}

func (s *Server) sessions(context.Context, *struct{}) (*out[[]Session], error) {
	list := []Session{}
	for _, one := range s.Conductor.Sessions() {
		list = append(list, sessionOf(one))
	}
	return ok(list, nil)
}

func (s *Server) session(_ context.Context, in *idPath) (*out[Session], error) {
	one, err := s.Conductor.Session(in.ID)
	return ok(sessionOf(one), err)
}

func (s *Server) endSession(ctx context.Context, in *idPath) (*struct{}, error) {
	return nil, answer(s.Conductor.EndSession(ctx, in.ID))
}

func (s *Server) heartbeat(ctx context.Context, in *struct {
	ID   string `path:"id"`
	Body *HeartbeatRequest
}) (*out[Heartbeat], error) {
	var ttl time.Duration
	if in.Body != nil {
		ttl = seconds(in.Body.TTLSeconds)
	}
	expires, err := s.Conductor.Heartbeat(ctx, in.ID, ttl)
	return ok(Heartbeat{ID: in.ID, ExpiresAt: expires}, err)
}

func (s *Server) listRules(_ context.Context, in *struct {
	Source      string `query:"source" enum:"global,session,builtin"`
	Container   string `query:"container" doc:"only rules that can apply to this container: id or name"`
	Destination string `query:"destination" doc:"only rules with this destination, as written"`
	Shadows     bool   `query:"shadows" doc:"say of each rule whether another one always decides in its place"`
}) (*out[RuleList], error) {
	list := RuleList{Items: []Rule{}}
	for _, r := range s.Conductor.Rules(session.RuleFilter{Source: rules.Source(in.Source), Container: in.Container, Destination: in.Destination, Shadows: in.Shadows}) {
		list.Items = append(list.Items, ruleOf(r))
	}
	list.Total = len(list.Items)
	return ok(list, nil)
}

func (s *Server) addRule(ctx context.Context, in *in[RuleRequest]) (*out[Rule], error) {
	r, err := s.ruleFrom(in.Body)
	if err != nil {
		return nil, err
	}
	added, warnings, err := s.Conductor.AddRule(ctx, r)
	return created(withWarnings(added, warnings), err)
}

func (s *Server) updateRule(ctx context.Context, in *struct {
	ID   string `path:"id"`
	Body RuleRequest
}) (*out[Rule], error) {
	r, err := s.ruleFrom(in.Body)
	if err != nil {
		return nil, err
	}
	updated, warnings, err := s.Conductor.UpdateRule(ctx, in.ID, r)
	return ok(withWarnings(updated, warnings), err)
}

func withWarnings(r rules.Rule, warnings []string) Rule {
	rule := ruleOf(session.ListedRule{Rule: r})
	rule.Warnings = warnings
	return rule
}

func (s *Server) ruleFrom(b RuleRequest) (rules.Rule, error) {
	r := rules.Rule{
		Container: b.Container, Destination: b.Destination, Ports: b.Ports, Transport: rules.Transport(b.Transport),
		Binaries: b.Binaries, Action: rules.Action(b.Action), Notes: b.Notes,
	}
	switch {
	case b.ExpiresAt != nil && b.ExpiresInSeconds != 0:
		return r, huma.Error422UnprocessableEntity("expires_at and expires_in_seconds: give one of them")
	case b.ExpiresInSeconds < 0:
		return r, huma.Error422UnprocessableEntity("expires_in_seconds: want at least 1")
	case b.ExpiresInSeconds > 0:
		r.Expires = s.Now().Add(seconds(b.ExpiresInSeconds))
	case b.ExpiresAt != nil:
		r.Expires = *b.ExpiresAt
	}
	return r, nil
}

func (s *Server) deleteRule(ctx context.Context, in *idPath) (*struct{}, error) {
	return nil, answer(s.Conductor.DeleteRule(ctx, in.ID))
}

func (s *Server) policies(context.Context, *struct{}) (*out[[]Policy], error) {
	list := []Policy{}
	for _, p := range s.Conductor.Policies() {
		list = append(list, policyOf(p))
	}
	return ok(list, nil)
}

type namePath struct {
	Name string `path:"name"`
}

func (s *Server) setPolicy(ctx context.Context, in *struct {
	Name string `path:"name"`
	Body PolicyRequest
}) (*out[Policy], error) {
	text, err := in.Body.Policy.text()
	if err != nil {
		return nil, huma.Error422UnprocessableEntity(err.Error())
	}
	p, isNew, err := s.Conductor.SetPolicy(ctx, in.Name, text)
	if isNew {
		return created(policyOf(p), err)
	}
	return ok(policyOf(p), err)
}

func (s *Server) deletePolicy(ctx context.Context, in *namePath) (*struct{}, error) {
	return nil, answer(s.Conductor.DeletePolicy(ctx, in.Name))
}

func (s *Server) policy(ctx context.Context, in *containerPath) (*out[EffectivePolicy], error) {
	effective, err := s.Conductor.Policy(ctx, in.Container)
	if err != nil {
		return nil, answer(err)
	}
	p := EffectivePolicy{
		Container: effective.Container, SessionID: effective.Session, Mode: rules.Mode(effective.AllowAll, effective.Ask),
		Rules: []Rule{}, Documents: effective.Documents,
	}
	for _, r := range effective.Rules {
		p.Rules = append(p.Rules, ruleOf(r))
	}
	return ok(p, nil)
}

func (s *Server) explain(ctx context.Context, in *in[ExplainRequest]) (*out[Decision], error) {
	b := in.Body
	a, err := s.Conductor.Explain(ctx, session.Question{
		Container: b.Container, Destination: b.Destination, Address: b.Address, Port: b.Port,
		Transport: b.Transport, Binary: b.Binary, Ancestors: b.Ancestors,
		Method: b.Method, Target: b.Target, Headers: b.Headers, Body: b.Body,
	})
	decision := decisionOf(a.Decision)
	decision.Operations, decision.Hints = a.Operations, a.Hints
	return ok(decision, err)
}

func (s *Server) names(ctx context.Context, in *containerPath) (*out[[]Name], error) {
	entries, err := s.Conductor.Names(ctx, in.Container)
	list := []Name{}
	for _, e := range entries {
		list = append(list, Name(e))
	}
	return ok(list, err)
}

func (s *Server) ca(context.Context, *struct{}) (*out[Authority], error) {
	return ok(Authority{PEM: string(s.Conductor.Authority())}, nil)
}

func (s *Server) installCA(ctx context.Context, in *containerPath) (*out[Trust], error) {
	result, err := s.Conductor.InstallCA(ctx, in.Container)
	t := Trust{Changed: []string{}, Environment: []Variable{}}
	t.Changed = append(t.Changed, result.Changed...)
	for _, v := range result.Environment {
		t.Environment = append(t.Environment, Variable(v))
	}
	return ok(t, err)
}

func (s *Server) uninstallCA(ctx context.Context, in *containerPath) (*struct{}, error) {
	return nil, answer(s.Conductor.UninstallCA(ctx, in.Container))
}

// EventParams are the parameters that select events; see audit.Filter. It is
// exported because parameters of an embedded type are found only then.
type EventParams struct {
	Container string    `query:"container" doc:"id or name"`
	Verdict   string    `query:"verdict" enum:"allow,deny"`
	Type      string    `query:"type" enum:"dns,connect,http,graphql,lifecycle,tamper,limit,ask"`
	Since     time.Time `query:"since" doc:"RFC 3339"`
	Cursor    string    `query:"cursor" doc:"next_cursor of the page before"`
	Limit     int       `query:"limit" minimum:"1" maximum:"10000" default:"100"`
}

// Resolve checks the cursor before anything is answered.
func (p *EventParams) Resolve(huma.Context) []error {
	if _, err := p.filter(); err != nil {
		return []error{err}
	}
	return nil
}

func (p *EventParams) filter() (audit.Filter, error) {
	f := audit.Filter{Container: p.Container, Verdict: p.Verdict, Type: audit.Type(p.Type), Since: p.Since, Limit: p.Limit}
	var err error
	f.Cursor, err = eventID("query.cursor", p.Cursor)
	return f, err
}

// eventID reads the id of an event as it stands in a cursor; "" is 0.
func eventID(location, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 0 {
		return 0, &huma.ErrorDetail{Location: location, Message: "want the id of an event, or the next_cursor of an earlier answer", Value: text}
	}
	return id, nil
}

func (s *Server) events(ctx context.Context, in *EventParams) (*out[EventPage], error) {
	f, err := in.filter()
	if err != nil {
		return nil, err
	}
	items, err := s.Events(ctx, f)
	page := EventPage{Items: items}
	if page.Items == nil {
		page.Items = []audit.Event{}
	}
	if len(items) > 0 && len(items) == f.Page() {
		page.NextCursor = strconv.FormatInt(items[len(items)-1].ID, 10)
	}
	return ok(page, err)
}
