package rules

import (
	"fmt"
	"slices"
	"strings"

	"weir/graphql"
)

// judgeRequest decides one request of an inspected connection, at stage HTTP
// or GraphQL. offered are the endpoint rules of the flow's layer for its
// host, port and program; trace, when not nil, is told about every endpoint
// that was looked at.
//
// The endpoints whose path matches with the most literal characters say what
// is allowed; what any endpoint with a matching path denies stays denied, and
// where no path matches the request is denied. So it is where one that matches
// but for a slash at the end of the request's path would have said more.
//
// The decision's Rule is the one of offered that made it; Path is the target
// to send, whatever the verdict, unless the target could not be read.
func judgeRequest(offered []*Rule, r *Request, trace func(Step)) Decision {
	j := requestJudge{layer: Default, trace: trace}
	if len(offered) > 0 {
		j.layer = offered[0].Source
	}
	if r.HTTP == nil {
		return j.malformed("the head of the request is not known")
	}
	j.method = strings.ToUpper(r.HTTP.Method)
	j.upgrade = strings.ToLower(r.HTTP.Upgrade)
	j.operations, j.classified = r.Operations, r.Stage == GraphQL
	if !isToken(j.method) {
		return j.malformed("its method is none")
	}
	t, err := parseTarget(r.HTTP.Target)
	if err != nil {
		return j.malformed(fmt.Sprintf("the target of this %s request cannot be accepted: %v", j.method, err))
	}
	j.target = &t
	d := j.judge(offered)
	d.Path = t.text
	return d
}

// requestJudge is one request on its way through judgeRequest.
type requestJudge struct {
	layer      Source
	method     string // upper case
	upgrade    string
	target     *target
	operations []graphql.Operation
	classified bool // operations are known
	trace      func(Step)
}

func (j *requestJudge) judge(offered []*Rule) Decision {
	chosen, denying, closer := j.choose(offered)
	if closer != nil {
		return j.deny(closer, fmt.Sprintf("%s: many servers take it for %s, for which network_policies.%s has an endpoint of its own (path: %s); let that cover both, as in path: \"%s{,/}\"",
			j.what(), j.target.bare, closer.Endpoint.Policy, closer.Endpoint.Path, closer.Endpoint.Path))
	}
	if len(chosen) == 0 {
		return j.deny(nil, fmt.Sprintf("%s: no endpoint for this host covers the path %s", j.what(), j.target.path))
	}
	for _, c := range chosen {
		// Not one of them is left out: a less specific endpoint must not get
		// to allow what the chosen ones do not accept.
		if why := j.badSlash(c.Endpoint); why != "" {
			return j.malformedBy(c, why)
		}
	}
	first := chosen[0].Endpoint
	for _, c := range chosen[1:] {
		if c.Endpoint.Protocol != first.Protocol {
			return j.deny(c, fmt.Sprintf("%s: the endpoints of network_policies.%s and .%s have the same rank and different protocols (%s and %s); give one a longer path",
				j.what(), first.Policy, c.Endpoint.Policy, first.Protocol, c.Endpoint.Protocol))
		}
	}
	if why := j.impossible(first); why != "" {
		return j.deny(chosen[0], why)
	}
	if j.twofold(first, denying) {
		return j.malformedBy(chosen[0], "an upgrade to WebSocket whose URL also carries a GraphQL request, which a server that does not upgrade would run")
	}
	audited, denied := j.denied(chosen, denying)
	if denied && !audited.Audit {
		return audited
	}
	if j.needsBody(first, denying) {
		d := j.decide(chosen[0], Inspect, j.what()+": its body says which operations it asks for")
		d.NeedBody = true
		return d
	}
	if d := j.allowed(chosen); !denied || d.Verdict == Deny {
		return d
	}
	return audited
}

// choose returns the rules that say what is allowed, and all those whose path
// some server may take the request's for, which may deny. closer is one of an
// inspected endpoint that would be chosen if the path ended without its slash.
func (j *requestJudge) choose(offered []*Rule) (chosen, denying []*Rule, closer *Rule) {
	best, closest := -1, -1
	for _, o := range offered {
		e := o.Endpoint
		if e == nil {
			continue
		}
		exact := e.Path == "" || matchPath(e.Path, j.target.path)
		if !exact && !j.target.could(e.Path) {
			j.step(o, false, false, fmt.Sprintf("path %s does not match %s", e.Path, j.target.path))
			continue
		}
		denying = append(denying, o)
		rank := 0
		if e.Path != "" {
			rank = globLiterals(e.Path)
		}
		if !exact {
			if e.Inspected() && rank > closest && j.target.bare != "" && matchPath(e.Path, j.target.bare) {
				closest, closer = rank, o
			}
			continue
		}
		if rank > best {
			best, chosen = rank, nil
		}
		if rank == best {
			chosen = append(chosen, o)
		}
	}
	if best >= closest {
		closer = nil
	}
	// Of equals, inspected endpoints come before uninspected ones, as inspected
	// allow rules come before plain ones.
	if slices.ContainsFunc(chosen, inspectedRule) {
		chosen = slices.DeleteFunc(chosen, func(r *Rule) bool { return !inspectedRule(r) })
	}
	for _, o := range denying {
		if slices.Contains(chosen, o) {
			j.step(o, true, true, fmt.Sprintf("its path matches %s with the most literal characters", j.target.path))
		} else if o.Endpoint.Path != "" && !matchPath(o.Endpoint.Path, j.target.path) {
			j.step(o, true, o == closer, "its path matches as some servers read the request's; only what it denies counts")
		} else {
			j.step(o, true, false, "another endpoint matches the path with more literal characters; only what this one denies counts")
		}
	}
	return chosen, denying, closer
}

// badSlash returns why an endpoint does not accept the slashes of the path.
func (j *requestJudge) badSlash(e *Endpoint) string {
	switch {
	case j.target.slashed != "" && !e.AllowEncodedSlash:
		return fmt.Sprintf("its path holds an encoded slash (%%2F), and network_policies.%s does not say allow_encoded_slash: true", e.Policy)
	case j.target.literalEscape && e.AllowEncodedSlash:
		return "its path holds a slash that is encoded twice (%252F), which cannot be told from one that is encoded once"
	}
	return ""
}

// UpgradeName is how messages and events call the protocols that a request
// asks to upgrade to: by name if they are known, as a client can write anything
// there, and "another protocol" otherwise.
func UpgradeName(upgrade string) string {
	upgrade = strings.ToLower(upgrade)
	switch upgrade {
	case "websocket", "h2c", "h2", "http/2.0", "tcp", "spdy/3.1", "tls/1.0", "tls/1.2", "tls/1.3", "connect-udp", "connect-ip":
		return upgrade
	}
	return "another protocol"
}

func inspectedRule(r *Rule) bool { return r.Endpoint.Inspected() }

// impossible returns why a request cannot pass an endpoint whatever its rules
// and mode say, because nothing that follows it could be judged.
func (j *requestJudge) impossible(e *Endpoint) string {
	message := j.method == MethodWebSocketText || j.method == MethodWebSocketBinary
	switch {
	case message && e.Protocol == ProtocolREST:
		return fmt.Sprintf("%s: network_policies.%s has protocol: rest, which has no WebSocket messages", j.what(), e.Policy)
	case j.method == MethodWebSocketBinary && e.Protocol == ProtocolGraphQL:
		return fmt.Sprintf("%s: a binary message is not GraphQL", j.what())
	case message || j.upgrade == "":
		return ""
	case j.upgrade != "websocket":
		return fmt.Sprintf("%s: an upgrade to %s cannot be inspected and is never relayed", j.what(), UpgradeName(j.upgrade))
	case j.method != "GET":
		return fmt.Sprintf("%s: a WebSocket is opened by GET", j.what())
	case e.Protocol == ProtocolREST:
		return fmt.Sprintf("%s: network_policies.%s has protocol: rest; a WebSocket needs an endpoint with protocol: websocket or graphql", j.what(), e.Policy)
	}
	return ""
}

// twofold reports whether an upgrade is a GraphQL request as well.
func (j *requestJudge) twofold(e *Endpoint, denying []*Rule) bool {
	if j.upgrade == "" || j.method != "GET" {
		return false
	}
	_, query, _ := strings.Cut(j.target.text, "?")
	counts := e.Protocol == ProtocolGraphQL || slices.ContainsFunc(denying, deniesGraphQL)
	return counts && graphql.InURL(query)
}

func deniesGraphQL(r *Rule) bool {
	return r.Endpoint.Protocol == ProtocolGraphQL && len(r.Endpoint.Deny) > 0
}

// needsBody reports whether operations that are not known yet count.
func (j *requestJudge) needsBody(e *Endpoint, denying []*Rule) bool {
	if j.classified || j.upgrade != "" && j.method == "GET" {
		return false
	}
	if e.Protocol == ProtocolGraphQL {
		return j.method == "GET" || j.method == "POST" || j.method == MethodWebSocketText
	}
	return slices.ContainsFunc(denying, deniesGraphQL)
}

// denied applies the deny_rules of every endpoint with a matching path. A
// denial of an enforcing endpoint comes before one of an auditing one.
func (j *requestJudge) denied(chosen, denying []*Rule) (Decision, bool) {
	var audited Decision
	found := false
	for _, o := range denying {
		why := j.deniedBy(o.Endpoint, chosen)
		if why == "" {
			continue
		}
		j.step(o, true, true, why)
		d := j.refuse(o, why, o.Endpoint.Audit)
		if !d.Audit {
			return d, true
		}
		if !found {
			audited, found = d, true
		}
	}
	return audited, found
}

func (j *requestJudge) deniedBy(e *Endpoint, chosen []*Rule) string {
	for i := range e.Deny {
		rule := &e.Deny[i]
		if e.Protocol != ProtocolGraphQL {
			if rule.denies(j.method, j.target) {
				return fmt.Sprintf("%s: denied by deny_rules of network_policies.%s (%s)", j.what(), e.Policy, rule.describe())
			}
			continue
		}
		for _, op := range j.operations {
			field, denied, known := j.deniesOperation(e, rule, op, chosen)
			if !known {
				return fmt.Sprintf("%s: the %s came without its document and is not registered, so that it may be what deny_rules of network_policies.%s deny",
					j.what(), describeOperation(op), e.Policy)
			}
			if denied {
				what := describeOperation(op)
				if field != "" {
					what += fmt.Sprintf(" asks for %q and", field)
				}
				return fmt.Sprintf("%s: %s is denied by deny_rules of network_policies.%s (%s)", j.what(), what, e.Policy, rule.describe())
			}
		}
	}
	return ""
}

// deniesOperation asks for everything that a persisted operation may be: each
// endpoint has a registry of its own. known is false when none has it.
func (j *requestJudge) deniesOperation(e *Endpoint, rule *RequestRule, op graphql.Operation, chosen []*Rule) (field string, denied, known bool) {
	ask := func(e *Endpoint) {
		meaning, ok := e.resolve(op)
		known = known || ok
		if ok && !denied {
			field, denied = rule.deniesOperation(meaning)
		}
	}
	ask(e)
	for _, c := range chosen {
		ask(c.Endpoint)
	}
	return field, denied, known
}

// allowed asks whether the chosen endpoints together allow the request.
func (j *requestJudge) allowed(chosen []*Rule) Decision {
	first := chosen[0]
	audit := !slices.ContainsFunc(chosen, func(r *Rule) bool { return !r.Endpoint.Audit })
	switch first.Endpoint.Protocol {
	case ProtocolGraphQL:
		return j.allowedGraphQL(chosen, audit)
	case ProtocolWebSocket:
		if j.upgrade == "" && j.method != MethodWebSocketText && j.method != MethodWebSocketBinary {
			return j.refuse(first, fmt.Sprintf("%s: network_policies.%s has protocol: websocket and takes WebSocket upgrades only",
				j.what(), first.Endpoint.Policy), audit)
		}
	case ProtocolREST:
	default:
		return j.decide(first, Allow, fmt.Sprintf("%s: network_policies.%s does not inspect requests", j.what(), first.Endpoint.Policy))
	}
	for _, c := range chosen {
		if c.Endpoint.allowsRequest(j.method, j.target) {
			return j.decide(c, Allow, fmt.Sprintf("%s: allowed by network_policies.%s", j.what(), c.Endpoint.Policy))
		}
	}
	return j.refuse(first, fmt.Sprintf("%s: not among what network_policies.%s allows (%s)",
		j.what(), first.Endpoint.Policy, first.Endpoint.describeAllow()), audit)
}

func (j *requestJudge) allowedGraphQL(chosen []*Rule, audit bool) Decision {
	first := chosen[0]
	policy := first.Endpoint.Policy
	if j.upgrade != "" && j.method == "GET" {
		return j.decide(first, Allow, fmt.Sprintf("%s: network_policies.%s judges every operation that comes over it", j.what(), policy))
	}
	if !slices.Contains([]string{"GET", "POST", MethodWebSocketText}, j.method) {
		return j.refuse(first, fmt.Sprintf("%s: network_policies.%s has protocol: graphql, which is spoken by GET and POST only", j.what(), policy), audit)
	}
	if len(j.operations) == 0 {
		return j.malformedBy(first, "it asks for no GraphQL operation")
	}
	by := first
	for _, op := range j.operations {
		registered := false
		i := slices.IndexFunc(chosen, func(c *Rule) bool {
			known, ok := c.Endpoint.resolve(op)
			registered = registered || ok
			return ok && c.Endpoint.allowsOperation(known)
		})
		switch {
		case i >= 0:
			by = chosen[i]
		case !registered:
			return j.refuse(first, fmt.Sprintf("%s: the %s came without its document and is not registered in network_policies.%s (graphql_persisted_queries with persisted_queries: allow_registered)",
				j.what(), describeOperation(op), policy), audit)
		default:
			return j.refuse(first, fmt.Sprintf("%s: the %s%s is not among what network_policies.%s allows (%s)",
				j.what(), describeOperation(op), describeFields(op.Fields), policy, first.Endpoint.describeAllow()), audit)
		}
	}
	return j.decide(by, Allow, fmt.Sprintf("%s: every operation is allowed by network_policies.%s", j.what(), by.Endpoint.Policy))
}

func describeFields(fields []string) string {
	if len(fields) == 0 {
		return ""
	}
	return " with fields [" + strings.Join(fields, ", ") + "]"
}

// what names the request, for a person.
func (j *requestJudge) what() string { return j.method + " " + j.target.path }

func (j *requestJudge) decide(by *Rule, v Verdict, why string) Decision {
	d := Decision{Verdict: v, Layer: j.layer, Rule: by, Reason: why}
	if by != nil {
		d.Endpoint = by.Endpoint
	}
	return d
}

// refuse denies, or in audit mode lets through and says what would have been.
func (j *requestJudge) refuse(by *Rule, why string, audit bool) Decision {
	d := j.deny(by, why)
	if !audit {
		return d
	}
	pass := j.decide(by, Allow, fmt.Sprintf("let through by enforcement: audit of network_policies.%s; %s", by.Endpoint.Policy, why))
	pass.Audit, pass.Would = true, &d
	return pass
}

func (j *requestJudge) deny(by *Rule, why string) Decision {
	return j.decide(by, Deny, why)
}

func (j *requestJudge) malformed(why string) Decision { return j.malformedBy(nil, why) }

func (j *requestJudge) malformedBy(by *Rule, why string) Decision {
	d := j.deny(by, "malformed request: "+why)
	d.Malformed = true
	return d
}

func (j *requestJudge) step(o *Rule, matched, won bool, why string) {
	if j.trace == nil {
		return
	}
	e := o.Endpoint
	text := fmt.Sprintf("network_policies.%s: %s protocol: %s", e.Policy, o.Destination, e.Protocol)
	if e.Path != "" {
		text += " path: " + e.Path
	}
	j.trace(Step{Layer: o.Source, Rule: o.ID, Text: text, Matched: matched, Won: won, Why: why})
}

// isToken reports whether s is a token of RFC 9110 5.6.2.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}
