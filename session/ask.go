package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"weir/ask"
	"weir/audit"
	"weir/dnsmap"
	"weir/rules"
	"weir/store"
)

// What an answer is about.
const (
	Endpoint = "endpoint" // this name or address, and this port
	Host     = "host"     // this name or address, all ports
	Suffix   = "suffix"   // the names around this one, this port
)

// How long an answer holds.
const (
	Once       = "once"    // for the flows that wait now
	ForSession = "session" // as a rule of the session that asks
	ForGood    = "global"  // as a global rule for the container
)

// A Choice is what an answer can be about, and the rule that it would make.
type Choice struct {
	What        string // Endpoint, Host or Suffix
	Destination string
	Ports       string
}

// OpenQuestion is a question that waits for its answer.
type OpenQuestion struct {
	ask.Question
	Choices []Choice // the narrowest first; an address has no Suffix
}

// Reply is an answer to a question.
type Reply struct {
	Allow bool
	For   string // Once, ForSession or ForGood
	What  string // Endpoint, Host or Suffix
	By    string // who answers, for the audit trail
}

// Answered is what came of an answer.
type Answered struct {
	Question ask.Question // with the flows that were told
	Others   int          // further questions that it answered as well
	Rule     *rules.Rule  // that was made; nil for an answer that holds once
	Warnings []string
}

// Questions lists what is asked about a container, or about all with "",
// oldest first.
func (c *Conductor) Questions(ctx context.Context, ref string) ([]OpenQuestion, error) {
	id := ""
	if ref != "" {
		a, err := c.attachment(ctx, ref)
		if err != nil {
			return nil, err
		}
		id = a.ID
	}
	var list []OpenQuestion
	for _, q := range c.questions.Open(id) {
		list = append(list, OpenQuestion{q, choices(&q)})
	}
	return list, nil
}

// Asking counts the open questions, and the connections that wait for them.
func (c *Conductor) Asking() (questions, held int) {
	for _, q := range c.questions.Open("") {
		questions++
		held += q.Flows
	}
	return questions, held
}

// choices are what an answer to q can be about.
func choices(q *ask.Question) []Choice {
	port := fmt.Sprint(q.Port)
	list := []Choice{{Endpoint, q.Destination(), port}, {Host, q.Destination(), "*"}}
	if suffix := suffixOf(q.Host); suffix != "" {
		list = append(list, Choice{Suffix, suffix, port})
	}
	return list
}

// suffixOf is the pattern for the names around a name: those below its parent,
// and never more than a domain that one owner has registered. "" when there is
// none.
func suffixOf(host string) string {
	own, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil {
		return "" // an address, or a public suffix itself
	}
	if host != own {
		_, host, _ = strings.Cut(host, ".")
	}
	return "**." + host
}

// Answer answers a question. What is allowed or denied with a rule is so for
// everything that the rule matches; what is so once is for the flows that wait
// now, of all open questions that the answer is about.
func (c *Conductor) Answer(ctx context.Context, id string, r Reply) (Answered, error) {
	if r.For != Once && r.For != ForSession && r.For != ForGood {
		return Answered{}, invalid("for %q: want %s, %s or %s", r.For, Once, ForSession, ForGood)
	}
	q, err := c.questions.Claim(id)
	if err != nil {
		return Answered{}, questionError(err)
	}
	done := Answered{Question: q}
	choice, err := choose(&q, r.What)
	if err == nil && r.For != Once {
		done.Rule, done.Warnings, err = c.answerRule(ctx, &q, choice, r)
	}
	if err != nil {
		c.questions.Release(id)
		return Answered{}, err
	}
	reply := ask.Reply{Allow: r.Allow, Rule: done.Rule != nil, Reason: answerText(choice, r, done.Rule)}
	done.Question = c.questions.Answer(id, reply)
	if r.For == Once {
		done.Others = c.answerOthers(&q, choice, reply)
	}
	return done, nil
}

// choose finds what an answer is about.
func choose(q *ask.Question, what string) (Choice, error) {
	list := choices(q)
	i := slices.IndexFunc(list, func(one Choice) bool { return one.What == what })
	switch {
	case i >= 0:
		return list[i], nil
	case what != Suffix:
		return Choice{}, invalid("what %q: want %s, %s or %s", what, Endpoint, Host, Suffix)
	case q.Host == "":
		return Choice{}, invalid("%s is an address, which has no %s: answer for %s or %s, or add a rule for its network: weir rule add", q.Destination(), Suffix, Endpoint, Host)
	}
	return Choice{}, invalid("%s is a public suffix, and names below it belong to anybody: answer for %s or %s", q.Host, Endpoint, Host)
}

// answerRule makes the rule that an answer asks for.
func (c *Conductor) answerRule(ctx context.Context, q *ask.Question, choice Choice, r Reply) (*rules.Rule, []string, error) {
	rule := rules.Rule{
		Destination: choice.Destination, Ports: choice.Ports, Action: rules.ActionDeny,
		Notes: fmt.Sprintf("answer to question %s by %s", q.ID, r.By),
	}
	if r.Allow {
		rule.Action = rules.ActionAllow
	}
	var made rules.Rule
	var warnings []string
	var err error
	if r.For == ForSession {
		made, warnings, err = c.AddSessionRule(ctx, q.Session, rule)
	} else {
		rule.Container = q.Container.Name
		made, warnings, err = c.AddRule(ctx, rule)
	}
	return &made, warnings, err
}

// answerText is an answer as reasons and the audit trail have it.
func answerText(choice Choice, r Reply, rule *rules.Rule) string {
	verb := "denied"
	if r.Allow {
		verb = "allowed"
	}
	switch {
	case rule == nil:
		return fmt.Sprintf("%s once by %s", verb, r.By)
	case r.For == ForSession:
		verb += " for the session"
	default:
		verb += " for good"
	}
	return fmt.Sprintf("%s by %s: %s, ports %s (rule %s)", verb, r.By, choice.Destination, choice.Ports, rule.ID)
}

// answerOthers gives the same reply to the other questions of the container
// that an answer is about. What somebody else answers at this moment is left
// to them.
func (c *Conductor) answerOthers(q *ask.Question, choice Choice, reply ask.Reply) (n int) {
	for _, other := range c.questions.Open(q.Container.ID) {
		if !choice.covers(&other) {
			continue
		}
		if _, err := c.questions.Claim(other.ID); err == nil {
			c.questions.Answer(other.ID, reply)
			n++
		}
	}
	return n
}

// covers reports whether a rule for the choice would match what q asks for.
func (choice Choice) covers(q *ask.Question) bool {
	if choice.Ports != "*" && choice.Ports != fmt.Sprint(q.Port) {
		return false
	}
	if below, ok := strings.CutPrefix(choice.Destination, "**."); ok {
		return q.Host == below || strings.HasSuffix(q.Host, "."+below)
	}
	return q.Destination() == choice.Destination
}

// AddSessionRule adds a rule to a live session; it expires with it. Its ID,
// Source, Order and Created are set here.
func (c *Conductor) AddSessionRule(ctx context.Context, id string, r rules.Rule) (rules.Rule, []string, error) {
	now := c.now()
	r.Source, r.SessionID, r.Container, r.Created = rules.Session, id, "", now
	r, warnings, err := c.canonical(r)
	if err != nil {
		return r, nil, &Error{Invalid, err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.find(id)
	if i < 0 || !c.sessions[i].Live(now) {
		return r, nil, unknownSession(id)
	}
	stored, err := c.store.AddSessionRule(ctx, id, r, now)
	if errors.Is(err, store.ErrNotFound) {
		return r, nil, unknownSession(id)
	}
	if err != nil {
		return r, nil, fmt.Errorf("the rule was not stored and does not count: %w", err)
	}
	s := &c.sessions[i]
	s.Rules = append(slices.Clone(s.Rules), stored.Rule)
	layer, err := newSessionLayer(s)
	if err != nil {
		return r, nil, fmt.Errorf("session %s: the rule was stored but does not count: %w", id, err)
	}
	c.layers[id] = layer
	c.changed(now, s.Container)
	c.lifecycle(s.Container, id, "session rule %s added: %s %s ports %s", stored.ID, stored.Action, stored.Destination, stored.Ports)
	return stored.Rule, warnings, nil
}

// questionError says whose turn it is when a question cannot be answered.
func questionError(err error) error {
	if errors.Is(err, ask.ErrUnknown) {
		return &Error{NotFound, fmt.Errorf("%w: it never was, or has long been over; see 'weir ask list'", err)}
	}
	return &Error{Conflict, fmt.Errorf("%w; see 'weir ask list'", err)}
}

// ask puts a held connection to people.
func (c *Conductor) ask(q ask.Question) (*ask.Waiting, error) {
	if q.Host == "" && dnsmap.IsPlaceholder(q.Addr) {
		return nil, fmt.Errorf("%s stands for no name any more: look the name up again", q.Addr)
	}
	return c.questions.Ask(q)
}

// told records what happens to a question.
func (c *Conductor) told(q ask.Question, end ask.End, r ask.Reply) {
	e := audit.Event{
		Type: audit.Ask, ContainerID: q.Container.ID, ContainerName: q.Container.Name, SessionID: q.Session,
		Host: q.Host, Port: q.Port, Transport: string(q.Transport), Binary: q.Binary, Layer: string(rules.Asked),
	}
	if q.Addr.IsValid() {
		e.Address = q.Addr.String()
	}
	switch end {
	case ask.Asked:
		e.Reason = audit.QuestionAsked(q.ID, q.Reason, q.Expires)
	case ask.Withdrawn:
		e.Reason = audit.QuestionOver(q.ID, "withdrawn: nothing waits for its answer any more")
	default:
		e.Reason = audit.QuestionOver(q.ID, fmt.Sprintf("%s; connections that waited: %d", r.Reason, q.Flows))
		e.DurationMS = c.now().Sub(q.Asked).Milliseconds()
		e.Verdict = "deny"
		if r.Expired {
			e.Layer = string(rules.Default)
		}
		if r.Allow {
			e.Verdict = "allow"
		}
	}
	c.log.Record(e)
}
