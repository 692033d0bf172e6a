package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"weir/proxy"
	"weir/rules"
)

// judge says how a case's request would fare.
func (s *situation) judge(c testCase) (rules.Decision, error) {
	r := c.Request
	now := s.file.Now.Time
	if !c.At.IsZero() {
		now = c.At.Time
	}
	a, err := s.connection(r)
	if err != nil {
		return rules.Decision{}, err
	}
	a.Time = now
	if err := s.destination(&a, r); err != nil {
		return rules.Decision{}, err
	}
	sent, err := r.requests()
	if err != nil {
		return rules.Decision{}, err
	}
	p := s.policy(a.Container, now)
	if len(sent) > 0 && sent[0].problem != "" && a.Claim.Kind == rules.ClaimHTTP {
		// Without TLS this is what the connection itself begins with.
		a.Claim = rules.Claim{Kind: rules.ClaimBroken, Problem: sent[0].problem}
	}
	d, _ := proxy.JudgeAttempt(p, a, nil)
	inspected := d.Verdict == rules.Inspect || d.Would != nil && d.Would.Verdict == rules.Inspect
	if !inspected {
		return d, nil
	}
	conn := d
	for _, one := range sent {
		if one.problem != "" {
			return proxy.Refused(conn, one.problem), nil
		}
		if d, _ = proxy.JudgeAttempt(p, a, &one.RawRequest); d.Verdict != rules.Allow {
			return d, nil
		}
	}
	return d, nil
}

// connection states what is known before the destination.
func (s *situation) connection(r request) (a rules.Attempt, err error) {
	port := 443
	if r.Port != nil {
		port = *r.Port
	}
	a.Request = rules.Request{
		Container: rules.Container{ID: r.Container, Name: r.Container},
		Transport: rules.Transport(cmp.Or(r.Transport, string(rules.TCP))), Port: uint16(port),
	}
	switch {
	case r.Container == "":
		return a, errors.New("no container")
	case port < 1 || port > 65535:
		return a, fmt.Errorf("port: %d: want 1 to 65535", port)
	case a.Transport != rules.TCP && a.Transport != rules.UDP:
		return a, fmt.Errorf("transport: %q: want tcp or udp", r.Transport)
	case len(r.Ancestors) > 0 && r.Binary == "":
		return a, errors.New("ancestors: of which binary? give it too")
	case r.Method == "" && r.Raw == "" && (r.Target != "" || r.Headers != nil || r.Body != "" || r.BodyBase64 != ""):
		return a, errors.New("target, headers and body belong to a request: give its method")
	}
	if r.Binary != "" {
		a.Program = &rules.Program{Path: r.Binary, Ancestors: r.Ancestors}
	}
	return a, nil
}

// destination fills in address, names and what the client claims.
func (s *situation) destination(a *rules.Attempt, r request) error {
	host := strings.Trim(r.Host, "[]")
	given, err := netip.ParseAddr(r.Address)
	if r.Address != "" && err != nil {
		return fmt.Errorf("address: %q: want an IPv4 or IPv6 address", r.Address)
	}
	named := host
	switch addr, err := netip.ParseAddr(host); {
	case err == nil && given.IsValid() && given != addr:
		return fmt.Errorf("host: %s is an address and differs from address %s", host, given)
	case err == nil:
		a.Addr, named = addr, ""
	case given.IsValid():
		a.Addr, a.Names = given, s.names(r.Container, given, a.Time)
	case host == "":
		return errors.New("neither host nor address")
	default:
		// A host that is malformed cannot have been resolved; the decision
		// says so.
		a.Names = []string{host}
	}
	switch {
	case r.SNI != nil:
		a.Claim = rules.Claim{Kind: rules.ClaimTLS, Name: *r.SNI}
	case a.Port == 80 && (named != "" || r.Method != "" || r.Raw != ""):
		a.Claim = rules.Claim{Kind: rules.ClaimHTTP, Name: named}
	case named != "" || r.Method != "" || r.Raw != "":
		a.Claim = rules.Claim{Kind: rules.ClaimTLS, Name: named}
	}
	return nil
}
