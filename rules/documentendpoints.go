package rules

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// endpointSource is an endpoint's rule with where it stands in the document.
type endpointSource struct {
	rule   Rule
	at     ast.Node
	host   hostGlob     // zero: none, or an address
	labels []string     // components of host
	addr   netip.Prefix // of a host that is an address
	ports  []int
	// first and last are the ranks of the rule's entries that win most and
	// least often.
	first, last rank
}

// networkPolicies reads the endpoints of all policies.
func (d *documentReader) networkPolicies(n ast.Node) []endpointSource {
	if d.isNull(n) {
		return nil
	}
	var out []endpointSource
	d.entries(n, "network_policies", func(name string, at, value ast.Node) {
		if !plainText(name) {
			d.fail(at, "a policy's name cannot be %q; use printable characters", name)
		}
		out = append(out, d.networkPolicy(name, value)...)
	})
	if len(out) > maxEndpoints {
		d.fail(n, "%d endpoints, more than %d", len(out), maxEndpoints)
		return nil
	}
	return out
}

func plainText(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func (d *documentReader) networkPolicy(name string, n ast.Node) []endpointSource {
	var items []ast.Node
	var binaries []string
	found := d.mapping(n, "a network policy", keys{
		"name":      func(n ast.Node) { d.text(n, "name") },
		"endpoints": func(n ast.Node) { items, _ = d.nonEmpty(n, "endpoints", "list at least one") },
		"binaries":  func(n ast.Node) { binaries = d.binaries(n) },
	})
	if found["endpoints"] == nil {
		d.fail(n, "network_policies.%s has no endpoints", name)
	}
	var out []endpointSource
	for _, item := range items {
		if e, ok := d.endpoint(name, binaries, item); ok {
			out = append(out, e)
		}
	}
	return out
}

// endpoint reads one endpoint and makes a rule of it.
func (d *documentReader) endpoint(policy string, binaries []string, n ast.Node) (endpointSource, bool) {
	before := len(d.problems)
	e := &Endpoint{Policy: policy, Protocol: ProtocolTCP, MaxBody: DefaultMaxBody}
	s := endpointSource{at: n}
	destination, ports := "", []string(nil)
	var allow, deny []ast.Node
	found := d.mapping(n, "an endpoint", keys{
		"host": func(n ast.Node) { destination = d.host(n, &s) },
		"port": func(n ast.Node) {
			if p, ok := d.integer(n, "port", 1, 65535); ok {
				s.ports, ports = []int{p}, []string{itoa(p)}
			}
		},
		"ports": func(n ast.Node) {
			items, _ := d.nonEmpty(n, "ports", "list at least one port")
			for _, item := range items {
				if p, ok := d.integer(item, "a port", 1, 65535); ok {
					s.ports, ports = append(s.ports, p), append(ports, itoa(p))
				}
			}
		},
		"path": func(n ast.Node) { e.Path = d.pathGlob(n, "path", true) },
		"protocol": func(n ast.Node) {
			if p, ok := d.choice(n, "protocol", "rest", "graphql", "websocket", "tcp"); ok {
				e.Protocol = Protocol(p)
			}
		},
		"tls": func(n ast.Node) {
			switch v, _ := d.choice(n, "tls", "auto", "skip", "terminate", "passthrough"); v {
			case "skip":
				e.SkipTLS = true
			case "terminate", "passthrough":
				d.warn(n, "tls: %s is deprecated and means auto: TLS is opened where the endpoint is inspected, and only there", v)
			}
		},
		"enforcement": func(n ast.Node) {
			v, _ := d.choice(n, "enforcement", "enforce", "audit")
			e.Audit = v == "audit"
		},
		"access": func(n ast.Node) {
			e.Access, _ = d.choice(n, "access", AccessReadOnly, AccessReadWrite, AccessFull)
		},
		"rules": func(n ast.Node) {
			allow, _ = d.nonEmpty(n, "rules", "list at least one, or write access: full")
		},
		"deny_rules": func(n ast.Node) {
			deny, _ = d.nonEmpty(n, "deny_rules", "leave it out to deny nothing")
		},
		"persisted_queries": func(n ast.Node) {
			v, _ := d.choice(n, "persisted_queries", "deny", "allow_registered")
			e.AllowRegistered = v == "allow_registered"
		},
		"graphql_persisted_queries": func(n ast.Node) { e.Registry = d.registry(n) },
		"graphql_max_body_bytes": func(n ast.Node) {
			if v, ok := d.integer(n, "graphql_max_body_bytes", 1, 16<<20); ok {
				e.MaxBody = v
			}
		},
		"allow_uninspected_credentials":   d.credentials,
		"credential_signing":              d.credentials,
		"request_body_credential_rewrite": d.credentials,
		"signing_region":                  d.credentials,
		"signing_service":                 d.credentials,
		"websocket_credential_rewrite":    d.credentials,

		"allowed_ips":         func(n ast.Node) { e.AllowedIPs = d.allowedIPs(n) },
		"allow_encoded_slash": func(n ast.Node) { e.AllowEncodedSlash = d.boolean(n, "allow_encoded_slash") },
	})
	if found["protocol"] == nil || d.protocolRead(found["protocol"]) {
		d.checkEndpoint(e, found)
		for _, item := range allow {
			d.mapping(item, "an entry of rules", keys{"allow": func(n ast.Node) {
				e.Allow = append(e.Allow, d.requestRule(n, e, "allow"))
			}})
			if v, ok := d.value(item); ok && v.Type() == ast.MappingType && len(v.(*ast.MappingNode).Values) == 0 {
				d.fail(item, "an entry of rules needs an allow")
			}
		}
		for _, item := range deny {
			e.Deny = append(e.Deny, d.requestRule(item, e, "an entry of deny_rules"))
		}
	}
	switch {
	case found["port"] != nil && found["ports"] != nil:
		d.fail(found["ports"], "an endpoint has either port or ports, not both")
	case found["port"] == nil && found["ports"] == nil:
		d.fail(n, "the endpoint has no port; write port: 443, or ports: [443, 8443]")
	}
	if found["host"] == nil && found["allowed_ips"] == nil {
		d.fail(n, "the endpoint has no host; it may be left out only where allowed_ips says which addresses are meant")
	}
	if len(d.problems) > before {
		return s, false
	}
	rule, ok := d.canonical(n, Rule{
		Destination: destination, Ports: strings.Join(ports, ","), Transport: TCP,
		Binaries: binaries, Action: ActionAllow, Endpoint: e,
	})
	s.rule = rule
	if ok {
		s.first, s.last = d.ranks(n, &rule)
	}
	return s, ok
}

// ranks returns the lowest and the highest rank of the entries of an
// endpoint's rule.
func (d *documentReader) ranks(n ast.Node, r *Rule) (first, last rank) {
	e := d.entry(n, r)
	if e.dest.kind != listed {
		return e.specificity(), e.specificity()
	}
	for i, p := range r.Endpoint.AllowedIPs {
		e.dest = networkDestination(p)
		rank := e.specificity()
		if i == 0 {
			first = rank
		}
		first, last = min(first, rank), max(last, rank)
	}
	return first, last
}

// entry reads a rule that stands at n and is canonical.
func (d *documentReader) entry(n ast.Node, r *Rule) (e entry) {
	if err := d.reader.read(r, &e); err != nil {
		d.fail(n, "%v", err)
	}
	return e
}

// credentials reads the keys of other programs' policies that are about
// credentials, which Weir neither knows nor changes.
func (d *documentReader) credentials(n ast.Node) {
	d.warn(n, "keys about credentials are ignored: Weir neither adds nor rewrites any")
}

// protocolRead reports whether a protocol is one, without saying it again.
func (d *documentReader) protocolRead(n ast.Node) bool {
	v, ok := d.value(n)
	return ok && slices.Contains([]string{"rest", "graphql", "websocket", "tcp"}, v.GetToken().Value)
}

// checkEndpoint checks how an endpoint's keys go together.
func (d *documentReader) checkEndpoint(e *Endpoint, found map[string]ast.Node) {
	graphQLKeys := []string{"persisted_queries", "graphql_persisted_queries", "graphql_max_body_bytes"}
	if !e.Inspected() {
		for _, key := range append([]string{"path", "access", "rules", "deny_rules", "allow_encoded_slash"}, graphQLKeys...) {
			if found[key] != nil {
				d.fail(found[key], "%s needs a protocol that is inspected: rest, graphql or websocket", key)
			}
		}
		if found["enforcement"] != nil {
			e.Audit = false
			d.warn(found["enforcement"], "enforcement says nothing without a protocol: requests of this endpoint are not looked at")
		}
		return
	}
	if e.SkipTLS {
		d.fail(found["tls"], "tls: skip and protocol: %s exclude each other: requests inside TLS cannot be looked at without opening it", e.Protocol)
	}
	for _, key := range graphQLKeys {
		if e.Protocol != ProtocolGraphQL && found[key] != nil {
			d.fail(found[key], "%s is for protocol: graphql, not %s", key, e.Protocol)
		}
	}
	switch {
	case found["access"] != nil && found["rules"] != nil:
		d.fail(found["rules"], "an endpoint has either access or rules, not both")
	case found["access"] == nil && found["rules"] == nil:
		d.fail(found["protocol"], "protocol: %s needs access or rules to say what is allowed", e.Protocol)
	}
	if found["graphql_persisted_queries"] != nil && !e.AllowRegistered {
		d.warn(found["graphql_persisted_queries"], "registered queries count only with persisted_queries: allow_registered; all of them are denied")
	}
}

// host reads an endpoint's host: a name, a glob over names, or an address.
func (d *documentReader) host(n ast.Node, s *endpointSource) string {
	text, ok := d.text(n, "host")
	if !ok {
		return ""
	}
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			d.fail(n, "host %q: an address cannot have a zone here", text)
		}
		a = a.Unmap()
		s.addr = netip.PrefixFrom(a, a.BitLen())
		return a.String()
	}
	if _, err := netip.ParsePrefix(text); err == nil {
		d.fail(n, "host %q is a network; leave host out and write allowed_ips: [%s]", text, text)
		return ""
	}
	g, err := compileEndpointHost(text)
	if err != nil {
		d.fail(n, "%v", err)
		return ""
	}
	s.host, s.labels = g, g.components()
	return g.String()
}

// neverDialled are the networks that allowed_ips must not touch.
func neverDialled() map[string]string {
	return map[string]string{
		"0.0.0.0/8":          "unspecified addresses",
		"127.0.0.0/8":        "loopback",
		"169.254.0.0/16":     "link-local and cloud metadata addresses",
		"224.0.0.0/4":        "multicast",
		"255.255.255.255/32": "broadcast",
		"::/128":             "the unspecified address",
		"::1/128":            "loopback",
		"fe80::/10":          "link-local addresses",
		"ff00::/8":           "multicast",
		"::ffff:0:0/96":      "IPv4-mapped addresses: write the IPv4 ones",
		"64:ff9b::/96":       "NAT64 addresses: write the IPv4 ones",
		"2002::/16":          "6to4 addresses: write the IPv4 ones",
		"2001::/32":          "Teredo addresses",
	}
}

// allowedIPs reads addresses and networks, masked.
func (d *documentReader) allowedIPs(n ast.Node) []netip.Prefix {
	items, _ := d.nonEmpty(n, "allowed_ips", "leave it out when any public address will do")
	never := neverDialled()
	var out []netip.Prefix
	for _, item := range items {
		text, ok := d.text(item, "an element of allowed_ips")
		if !ok {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if a, errA := netip.ParseAddr(text); errA == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			d.fail(item, "allowed_ips cannot hold %q; write an address or a network such as 10.0.5.0/24", text)
			continue
		}
		p = p.Masked()
		for _, a := range metadataServices {
			if p.IsSingleIP() && p.Addr() == a {
				d.fail(item, "allowed_ips cannot hold %s: an endpoint never reaches cloud metadata", a)
			} else if p.Contains(a) { // the rest of the network is ordinary
				d.warn(item, "%s covers %s, which is cloud metadata and refused all the same", p, a)
			}
		}
		for _, text := range sortedKeys(never) {
			if q := netip.MustParsePrefix(text); p.Overlaps(q) {
				d.fail(item, "allowed_ips cannot hold %s: it covers %s (%s), which are never dialled; write narrower networks", p, q, never[text])
				break
			}
		}
		out = append(out, p)
	}
	return out
}
