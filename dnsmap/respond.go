package dnsmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"weir/audit"
	"weir/rules"
)

// localTTL, in seconds, is short: containers come and go.
const localTTL = 10

// respond answers one message by appending to out. When nothing is appended,
// either there is nothing to say, or, with a query returned, upstream has to be
// asked: see forward.
func (s *Server) respond(ctx context.Context, m []byte, tr rules.Transport, out []byte) ([]byte, *query) {
	q, err := parseQuery(m)
	if errors.Is(err, errNotQuery) {
		return out, nil
	}
	now := s.now()
	if !s.rate.AllowN(now, 1) {
		s.hit(limitQueries, now)
		return q.appendError(out, dns.RcodeRefused, ""), nil
	}
	if rcode, reason := q.refused(err); rcode != dns.RcodeSuccess {
		s.record(&q, refusal(reason), tr, now)
		return q.appendError(out, rcode, ""), nil
	}
	d, local := s.decide(ctx, &q, now, out)
	s.record(&q, d, tr, now)
	switch {
	case local != nil:
		return local, nil
	case d.Verdict == rules.Deny:
		return q.appendError(out, dns.RcodeNameError, d.Reason), nil
	}
	if a := s.Upstream.cached(key{q.name, q.qtype}); a != nil {
		return s.reply(a, &q, tr, out), nil
	}
	return out, &q
}

// forward asks upstream for q, whose message the caller may reuse, and calls
// send once with the answer. send must not block.
func (s *Server) forward(q *query, tr rules.Transport, send func([]byte)) {
	if !s.enter() {
		s.hit(limitUpstream, s.now())
		send(q.appendError(nil, dns.RcodeServerFailure, ""))
		return
	}
	later := *q
	later.question = bytes.Clone(q.question)
	s.Upstream.ask(key{q.name, q.qtype}, func(a *answer) {
		s.leave()
		send(s.reply(a, &later, tr, make([]byte, 0, len(a.packed)+16)))
	})
}

// reply answers q with a and learns what the client is told.
func (s *Server) reply(a *answer, q *query, tr rules.Transport, out []byte) []byte {
	limit := maxMessage
	if tr == rules.UDP {
		limit = q.udpSize
	}
	now := s.now()
	out, ok := a.appendTo(out, q, now, limit)
	if !ok {
		return q.appendTruncated(out)
	}
	s.Table.LearnAll(q.name, a.learned(now))
	return out
}

// decide applies, in this order: names that no server may see, explicit deny
// rules, what is answered here, the policy, and the budget of new names. A
// local answer, appended to out, comes with an allow or with what is Askable.
func (s *Server) decide(ctx context.Context, q *query, now time.Time, out []byte) (_ rules.Decision, local []byte) {
	if q.unclean {
		return refusal("malformed name: a label holds a dot, a backslash, a space, or a control or non-ASCII byte"), nil
	}
	name, err := rules.CanonicalName(q.name)
	switch {
	case err != nil:
		return refusal("malformed name: " + err.Error()), nil
	case name != q.name:
		return refusal("malformed name: not in canonical form"), nil
	case special(name):
		return refusal("special-use name that no DNS server may be asked for"), nil
	}
	d := s.Policy(name, q.qtype)
	if d.Verdict == rules.Deny && d.Rule != nil {
		return d, nil
	}
	if local, reason := s.local(ctx, q, out); local != nil {
		return rules.Decision{Verdict: rules.Allow, Layer: rules.Builtin, Reason: reason, Host: name}, local
	}
	if d.Askable && s.Placeholders != nil && !strings.HasSuffix(name, ".arpa") {
		return s.standIn(q, d, out)
	}
	if d.Verdict == rules.Deny {
		d.Askable = false // nobody is asked about it
		return d, nil
	}
	if domain, ok := s.budget.allow(name, now); !ok {
		s.hit(limitNames, now)
		return refusal(fmt.Sprintf("more than %d different names below %s within %s", s.limits.NewNames, domain, s.limits.NamesWindow)), nil
	}
	return d, nil
}

// standIn answers a question for a name that a person could allow with a
// placeholder, so that whoever asks goes on to say which port it wants, and can
// be held there: resolvers give up much sooner than people answer.
func (s *Server) standIn(q *query, d rules.Decision, out []byte) (rules.Decision, []byte) {
	if q.qtype != dns.TypeA {
		d.Reason += "; nothing of this type is known while it waits to be allowed"
		return d, q.appendEnd(q.appendStart(out, 0))
	}
	addr, ok := s.Placeholders.For(q.name)
	if !ok {
		return refusal(fmt.Sprintf("%s; nobody is asked: as many names as can wait to be allowed, %d, wait already", d.Reason,
			orDefault(s.Placeholders.Max, DefaultMaxPlaceholders))), nil
	}
	d.Reason += fmt.Sprintf("; it waits to be allowed, and %s stands for it: a person is asked when something connects there", addr)
	return d, q.appendAddresses(out, []netip.Addr{addr}, placeholderTTL)
}

// local answers what is known without any DNS server, or returns nil.
func (s *Server) local(ctx context.Context, q *query, out []byte) (_ []byte, reason string) {
	if isLocalhost(q.name) {
		loopback := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
		return q.appendAddresses(out, loopback, localTTL), "the container's own loopback"
	}
	if addr, ok := reverseAddr(q.name); ok && s.Reverse != nil {
		if name := s.Reverse(ctx, addr); name != "" {
			return q.appendPointer(out, name, localTTL), "address of a container on the same network"
		}
	}
	if s.Local == nil {
		return nil, ""
	}
	addrs := s.Local(ctx, q.name)
	if len(addrs) == 0 {
		return nil, ""
	}
	answers := make([]Answer, 0, len(addrs))
	for _, a := range addrs[:min(len(addrs), maxRecords)] {
		answers = append(answers, Answer{a, localTTL * time.Second})
	}
	s.Table.LearnAll(q.name, answers)
	return q.appendAddresses(out, addrs, localTTL), "name of a container on the same network"
}

// refused says why a message is refused whatever name it asks for.
func (q *query) refused(err error) (rcode int, reason string) {
	switch {
	case errors.Is(err, errNotImp):
		return dns.RcodeNotImplemented, err.Error()
	case err != nil:
		return dns.RcodeFormatError, err.Error()
	case q.badVers:
		return dns.RcodeBadVers, "EDNS version is not 0"
	case q.qclass != dns.ClassINET:
		return dns.RcodeRefused, "class " + strconv.Itoa(int(q.qclass)) + " is not IN"
	case q.qtype == 0 || q.qtype == dns.TypeOPT || q.qtype >= dns.TypeTKEY && q.qtype < dns.TypeANY:
		return dns.RcodeRefused, "type " + typeName(q.qtype) + " is not for lookups" // transfers, keys: RFC 6895, 3.1
	}
	return dns.RcodeSuccess, ""
}

// special names are never asked for: .onion (RFC 7686, 2) and .invalid
// (RFC 6761, 6.4).
func special(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return last == "onion" || last == "invalid"
}

// isLocalhost: these names are the container's own loopback (RFC 6761, 6.3).
func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

func refusal(reason string) rules.Decision {
	return rules.Decision{Verdict: rules.Deny, Layer: rules.Default, Reason: reason}
}

func (s *Server) record(q *query, d rules.Decision, tr rules.Transport, now time.Time) {
	e := audit.Event{
		Time: now, Type: audit.DNS, ContainerID: s.Container.ID, ContainerName: s.Container.Name,
		Verdict: verdict(d.Verdict), Layer: string(d.Layer), Reason: d.Reason,
		Host: q.printable(), Port: 53, Transport: string(tr), Method: typeName(q.qtype),
	}
	if d.Askable {
		e.Verdict = "" // it waits
	}
	if d.Rule != nil {
		e.RuleID, e.SessionID = d.Rule.ID, d.Rule.SessionID
	}
	if w := d.Would; w != nil {
		e.Would = &audit.Would{Verdict: verdict(w.Verdict), Reason: w.Reason}
		if w.Rule != nil {
			e.Would.RuleID = w.Rule.ID
		}
	}
	s.Record(e)
}

// verdict is a decision's in the words of an event: a question that is not
// denied is asked.
func verdict(v rules.Verdict) string {
	if v == rules.Deny {
		return "deny"
	}
	return "allow"
}

func typeName(t uint16) string {
	if name, ok := dns.TypeToString[t]; ok {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t)) // RFC 3597, 5
}

// reverseAddr is the address whose reverse name this is (RFC 1035, 3.5; RFC
// 3596, 2.5).
func reverseAddr(name string) (netip.Addr, bool) {
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		l := strings.Split(v4, ".")
		if len(l) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(l[3] + "." + l[2] + "." + l[1] + "." + l[0])
		return a, err == nil
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(v6) != 63 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 31; i >= 0; i-- {
		text.WriteByte(v6[2*i])
		if i%4 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}
