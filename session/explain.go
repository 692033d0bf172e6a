package session

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"weir/graphql"
	"weir/proxy"
	"weir/rules"
)

// Question asks what would be decided now.
type Question struct {
	Container   string // attached
	Destination string // name or address
	Address     string // "": what the container resolved the name to
	Port        int    // 0 is 443
	Transport   string // "" is tcp
	Binary      string
	Ancestors   []string
	Method      string // "": the question is about the connection
	Target      string
	Headers     map[string]string
	Body        string
}

// Answer is a decision with what led to it.
type Answer struct {
	rules.Decision
	Operations []graphql.Operation
	// Hints are commands that would change a refusal.
	Hints []string
}

// Explain says what would be decided now. Nothing is sent and nothing is
// recorded.
func (c *Conductor) Explain(ctx context.Context, q Question) (Answer, error) {
	a, err := c.attachment(ctx, q.Container)
	if err != nil {
		return Answer{}, err
	}
	attempt, err := c.attempt(a, q)
	if err != nil {
		return Answer{}, err
	}
	d, operations := proxy.JudgeAttempt(a.policy.Load(), attempt, q.request())
	return Answer{Decision: d, Operations: operations, Hints: c.hints(a, q, attempt, d)}, nil
}

// attempt states a question in the terms of the policy.
func (c *Conductor) attempt(a *attachment, q Question) (rules.Attempt, error) {
	attempt := rules.Attempt{Request: rules.Request{
		Time: c.now(), Container: a.who(), Transport: rules.Transport(cmp.Or(q.Transport, "tcp")),
		Port: uint16(cmp.Or(q.Port, 443)),
	}}
	if t := attempt.Transport; t != rules.TCP && t != rules.UDP {
		return attempt, invalid("transport %q: want tcp or udp", q.Transport)
	}
	if q.Port < 0 || q.Port > 65535 {
		return attempt, invalid("port %d: want 1 to 65535", q.Port)
	}
	if q.Binary != "" {
		attempt.Program = &rules.Program{Path: q.Binary, Ancestors: q.Ancestors}
	}
	if err := c.destination(a, q, &attempt.Request); err != nil {
		return attempt, err
	}
	if attempt.Transport == rules.UDP {
		known := attempt.Addr.IsValid()
		attempt.Captured = known && !attempt.Addr.Unmap().IsLoopback()
		attempt.Relayed = attempt.Captured || !known && !slices.Equal(attempt.Names, []string{"localhost"})
	}
	if len(attempt.Names) > 0 {
		attempt.Claim = rules.Claim{Kind: rules.ClaimTLS, Name: attempt.Names[0]}
		if attempt.Port == 80 {
			attempt.Claim.Kind = rules.ClaimHTTP
		}
	}
	return attempt, nil
}

// request is what the connection would carry; nil when that is not asked.
func (q Question) request() *proxy.RawRequest {
	if q.Method == "" {
		return nil
	}
	r := &proxy.RawRequest{Method: q.Method, Target: cmp.Or(q.Target, "/"), Header: http.Header{}, Body: []byte(q.Body)}
	for name, value := range q.Headers {
		r.Header.Set(name, value)
	}
	if q.Body != "" && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Authority, r.Upgrade = r.Header.Get("Host"), strings.ToLower(r.Header.Get("Upgrade"))
	return r
}

// destination fills in name and address: an address is asked about with the
// names that the container has for it, a name with the address that the
// container was last given for it, if any.
func (c *Conductor) destination(a *attachment, q Question, r *rules.Request) error {
	c.mu.Lock()
	l := a.live
	c.mu.Unlock()
	if addr, err := netip.ParseAddr(strings.Trim(q.Destination, "[]")); err == nil {
		r.Addr = addr
		if l != nil {
			r.Names = slices.Clone(l.names.Names(addr.Unmap(), r.Time))
		}
		return nil
	}
	name, err := rules.CanonicalName(q.Destination)
	if err != nil {
		return invalid("destination %q: %w", q.Destination, err)
	}
	r.Names = []string{name}
	if q.Address != "" {
		if r.Addr, err = netip.ParseAddr(q.Address); err != nil {
			return invalid("address %q: want an IPv4 or IPv6 address", q.Address)
		}
		return nil
	}
	if l == nil {
		return nil
	}
	for _, e := range l.names.Entries() {
		if e.Name == name && (!r.Addr.IsValid() || e.Addr.Less(r.Addr)) {
			r.Addr = e.Addr
		}
	}
	return nil
}

// hints says what to do about a refusal.
func (c *Conductor) hints(a *attachment, q Question, attempt rules.Attempt, d rules.Decision) []string {
	if d.Verdict != rules.Deny {
		return nil
	}
	dest := q.Destination
	if strings.Contains(dest, ":") && !strings.Contains(dest, "[") {
		dest = "[" + dest + "]"
	}
	dest = fmt.Sprintf("%s:%d", dest, cmp.Or(q.Port, 443))
	if attempt.Transport == rules.UDP {
		dest += "/udp"
	}
	switch {
	case d.Askable:
		return []string{"weir ask list    # the session asks: what connects there is held until a person answers"}
	case d.Layer == rules.AddressGuard:
		return nil // the reason says what there is to do, if anything
	case d.Rule != nil && d.Rule.Source == rules.Global:
		if name, _, ok := strings.Cut(d.Rule.ID, "/"); ok {
			return []string{"weir policy unset " + name + "    # remove the global policy whose rule denies it, or change it with weir policy set"}
		}
		return []string{"weir rule rm " + d.Rule.ID + "    # remove the global rule that denies it"}
	case d.Rule != nil:
		return []string{fmt.Sprintf("weir session create %s --id %s ...    # replace the session without the rule that denies it", a.Name, d.Rule.SessionID)}
	}
	if why := c.unopenable(attempt, q.Destination); why != "" {
		return []string{"# no rule for " + dest + " would open it: " + why}
	}
	once := "for one session"
	if current := a.policy.Load().Session(); current != "" {
		once = "with this rule alone: a new session takes the place of " + current
	}
	return []string{
		fmt.Sprintf("weir session create %s --allow %s    # %s", a.Name, dest, once),
		fmt.Sprintf("weir rule add allow %s --container %s    # for good", dest, a.Name),
	}
}

// unopenable says why not even a rule that allows just what is asked for would
// open it; "" when it would.
func (c *Conductor) unopenable(attempt rules.Attempt, destination string) string {
	r, _, err := rules.Canonical(rules.Rule{
		Source: rules.Session, Destination: strings.Trim(destination, "[]"), Ports: fmt.Sprint(attempt.Port), Transport: attempt.Transport, Action: rules.ActionAllow,
	})
	if err != nil {
		return err.Error()
	}
	layer, err := rules.NewLayer(rules.Session, []rules.Rule{r})
	if err != nil {
		return err.Error()
	}
	c.mu.Lock()
	stack := rules.Stack{Layers: []*rules.Layer{layer}, Guard: c.guard}
	c.mu.Unlock()
	if d, _ := proxy.JudgeAttempt(rules.Compile(stack), attempt, nil); d.Verdict == rules.Deny {
		return d.Reason
	}
	return ""
}
