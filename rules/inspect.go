package rules

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// LearnMaxBody is how much of one request's body learning mode looks at to
// find GraphQL operations, in bytes. Longer bodies pass unread.
const LearnMaxBody = 1 << 20

// CanonicalInspectHost checks and normalises an entry of a session's list of
// hosts whose requests learning mode looks at: HOST or HOST:PORT, where HOST
// is an exact name or an address (IPv6 with a port in brackets).
func CanonicalInspectHost(s string) (string, error) {
	host, ports, err := splitInspectHost(s)
	if err != nil {
		return "", fmt.Errorf("inspect host %q: %w", s, err)
	}
	if ports == "*" {
		return host, nil
	}
	return net.JoinHostPort(host, ports), nil
}

func splitInspectHost(s string) (host, ports string, err error) {
	host, ports = s, "*"
	if _, err := netip.ParseAddr(s); err != nil && strings.Contains(s, ":") {
		if host, ports, err = net.SplitHostPort(s); err != nil {
			return "", "", fmt.Errorf("write HOST or HOST:PORT, with an IPv6 address in brackets")
		}
		if n, err := strconv.Atoi(ports); err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != ports {
			return "", "", fmt.Errorf("the port %q is not a number from 1 to 65535", ports)
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return plain(a).String(), ports, nil
	}
	if strings.ContainsAny(host, "*?[{") {
		return "", "", fmt.Errorf("name one host; patterns are not taken, because everything that they match would need to trust Weir's certificates")
	}
	host, err = CanonicalName(host)
	return host, ports, err
}

// InspectLayer indexes the hosts whose requests learning mode looks at, for
// Stack.Inspect. No hosts give nil.
func InspectLayer(hosts []string) (*Layer, error) {
	if len(hosts) == 0 {
		return nil, nil
	}
	learning := &Endpoint{
		Policy: "learning", Protocol: ProtocolREST, Access: AccessFull, MaxBody: LearnMaxBody, AllowEncodedSlash: true,
	}
	var rs []Rule
	for i, s := range hosts {
		host, ports, err := splitInspectHost(s)
		if err != nil {
			return nil, fmt.Errorf("inspect host %q: %w", s, err)
		}
		rs = append(rs, Rule{
			ID: "inspect-" + strconv.Itoa(i), Source: Session, Destination: host, Ports: ports, Transport: TCP,
			Action: ActionAllow, Endpoint: learning, Order: int64(i),
		})
	}
	return NewLayer(Session, rs)
}

// lookInto turns what learning mode allows into Inspect where the requests of
// the flow are to be seen. Whoever the client turns out to be, and whatever
// its requests are, they pass: here a verdict of the inner policy only says
// which name the flow has and what to send.
func (p *Policy) lookInto(r *Request, d Decision) Decision {
	in := p.inspect.Decide(*r)
	switch {
	case in.Verdict == Inspect && r.Stage <= Hello:
		d.Verdict, d.Endpoint, d.Host = Inspect, in.Endpoint, in.Host
		d.Reason += "; its requests are looked at"
	case r.Stage >= HTTP && in.Endpoint != nil, r.Stage >= HTTP && in.Malformed:
		d.Host, d.Path, d.Endpoint = in.Host, in.Path, learningEndpoint(p.inspect)
	}
	return d
}

// learningEndpoint is the one that all rules of an InspectLayer share.
func learningEndpoint(p *Policy) *Endpoint { return p.layers[0].given[0][0].Endpoint }
