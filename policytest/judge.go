package policytest

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/rules"
)

// judge says how a case's request would fare.
func (s *situation) judge(c testCase) (rules.Decision, error) {
	r := c.Request
	now := s.file.Now
	if !c.At.IsZero() {
		now = c.At
	}
	if r.Container == "" {
		return rules.Decision{}, errors.New("request: no container")
	}
	a := rules.Attempt{Request: rules.Request{
		Time: now, Container: rules.Container{ID: r.Container, Name: r.Container},
		Transport: rules.Transport(cmp.Or(r.Transport, string(rules.TCP))), Port: uint16(cmp.Or(r.Port, 443)),
	}}
	if r.Port < 0 || r.Port > 65535 {
		return rules.Decision{}, fmt.Errorf("request: port %d: want 1 to 65535", r.Port)
	}
	if t := a.Transport; t != rules.TCP && t != rules.UDP {
		return rules.Decision{}, fmt.Errorf("request: transport %q: want tcp or udp", r.Transport)
	}
	if r.Binary != "" {
		a.Program = &rules.Program{Path: r.Binary, Ancestors: r.Ancestors}
	}
	if err := s.destination(&a, r); err != nil {
		return rules.Decision{}, fmt.Errorf("request: %w", err)
	}
	refused, err := r.http(&a)
	if err != nil {
		return rules.Decision{}, fmt.Errorf("request: %w", err)
	}
	d, _ := s.policy(a.Container, now).Judge(a)
	if refused != "" && d.Verdict == rules.Inspect {
		// The connection is let in, and what it then carries is refused as it is read.
		d = rules.Decision{Layer: rules.Default, Reason: refused}
	}
	return d, nil
}

// destination fills in address, names and what the client claims.
func (s *situation) destination(a *rules.Attempt, r request) error {
	host := strings.Trim(r.Host, "[]")
	if addr, err := netip.ParseAddr(host); err == nil {
		if r.Address != "" && r.Address != host {
			return fmt.Errorf("host %s is an address and differs from address %s", host, r.Address)
		}
		a.Addr = addr
		return s.claim(a, r, "")
	}
	if r.Address != "" {
		addr, err := netip.ParseAddr(r.Address)
		if err != nil {
			return err
		}
		a.Addr = addr
		if a.Names, err = s.names(r.Container, addr, a.Time); err != nil {
			return err
		}
		return s.claim(a, r, host)
	}
	if host == "" {
		return errors.New("neither host nor address")
	}
	// A host that is malformed cannot have been resolved; the decision says so.
	a.Names = []string{host}
	return s.claim(a, r, host)
}

// claim is what the client's first bytes say.
func (s *situation) claim(a *rules.Attempt, r request, host string) error {
	switch {
	case r.SNI != nil:
		a.Claim = rules.Claim{Kind: rules.ClaimTLS, Name: *r.SNI}
	case host != "" && r.Port == 80:
		a.Claim = rules.Claim{Kind: rules.ClaimHTTP, Name: host}
	case host != "":
		a.Claim = rules.Claim{Kind: rules.ClaimTLS, Name: host}
	case r.Method != "" || r.Raw != "":
		a.Claim = rules.Claim{Kind: rules.ClaimTLS}
	}
	return nil
}

// get returns the values of a header.
func (h headers) get(name string) []string {
	var values []string
	for _, pair := range h {
		if strings.EqualFold(pair[0], name) {
			values = append(values, pair[1])
		}
	}
	return values
}

// joined is a header as the relay reads it: several lines count as a list.
func (h headers) joined(name string) string { return strings.Join(h.get(name), ", ") }

// http fills in the request that the connection carries. The text returned
// says why the relay would refuse to read it.
func (r request) http(a *rules.Attempt) (refused string, err error) {
	h := r.Headers
	method, target := r.Method, cmp.Or(r.Target, "/")
	body, err := r.body()
	if err != nil {
		return "", err
	}
	if r.Raw != "" {
		if r.Method != "" || r.Target != "" || h != nil || len(body) > 0 {
			return "", errors.New("raw stands instead of method, target, headers and body")
		}
		if method, target, h, body, err = readRaw(r.Raw); err != nil {
			return err.Error(), nil
		}
	}
	if method == "" {
		return "", nil
	}
	a.HTTP = &rules.HTTPRequest{Method: method, Target: target}
	a.ContentType, a.ContentEncoding = h.joined("content-type"), h.joined("content-encoding")
	if slices.ContainsFunc(h.get("connection"), func(v string) bool { return strings.Contains(strings.ToLower(v), "upgrade") }) || len(h.get("upgrade")) > 0 {
		a.HTTP.Upgrade = strings.ToLower(h.joined("upgrade"))
	}
	a.Subprotocol = cmp.Or(h.joined("sec-websocket-protocol"), "graphql-transport-ws")
	a.Body = body
	return "", nil
}
