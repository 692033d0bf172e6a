// Package rules decides what a container may reach: the rule model, its
// patterns, policy documents, and the one function that judges a DNS name, a
// connection, an HTTP request and a GraphQL operation alike. It is pure: no
// I/O, no clock, no logging; the same facts always give the same answer.
//
// It does not resolve names, find programs, read connections or keep state.
// Whoever calls it brings those facts, and says of each whether it is known:
// unknown is never "no match".
//
//	layer, err := rules.NewLayer(rules.Session, []rules.Rule{
//		{ID: "r1", Destination: "*.packages.example", Ports: "443", Action: rules.ActionAllow},
//	})
//	if err != nil { … }
//	policy := rules.Compile(rules.Stack{Layers: []*rules.Layer{layer, rules.BuiltinLayer()}})
//	d := policy.Decide(rules.Request{
//		Time: now, Stage: rules.Connect, Transport: rules.TCP, Captured: true,
//		Names: []string{"registry.packages.example"}, Addr: addr, Port: 443,
//	})
//	// d.Verdict == rules.Inspect: the client's TLS hello has to confirm the name.
//
// # Patterns
//
//	Destination
//	  *               everything
//	  192.0.2.1       one address; IPv4-mapped IPv6 is the IPv4 address, zones are dropped
//	  10.0.0.0/8      a network; bits behind the mask are cleared
//	  a.example       one name
//	  *.a.example     any depth below a.example, not a.example itself
//	  **.a.example    a.example and any depth below it
//	Ports             "*", or numbers and inclusive ranges: 80,443,8000-9000
//	Transport         tcp, udp, any
//	Container         "*", a name or full id, or a glob with * ? [...]; global rules only
//	Binaries          path globs; the program or one of its ancestors matches
//
// A star anywhere else in a destination is refused, and so is every pattern
// that could never match, such as 2130706433 or 0177.1, which some programs
// read as addresses. Names are compared in lower case, without trailing dot,
// as IDNA A-labels. The host of an endpoint has its own, narrower stars: "*"
// is one label or a part of one, "**" one or more, and neither is the apex;
// an endpoint with allowed_ips matches those addresses only, and without a
// host it is about them whatever the name.
//
// # Precedence
//
// Layers are asked in order, and the first with a matching rule decides:
//
//	1  global    the operator's rules, for all containers or those of a pattern
//	2  session   the rules of the container's current session
//	3  builtin   the container's own loopback
//	4  asked     what a person allowed for this one flow; see OnceLayer
//	   default   deny, or in a policy that asks: a person may allow it
//
// Inside a layer the most specific matching rule wins, compared in this order:
//
//	1  container    name or id > glob > *
//	2  destination  name or address > network > *.d, **.d and endpoint globs > *
//	                networks: the longer prefix, IPv4 counted as the end of IPv6
//	                below a name: the longer d; then the glob with more literal
//	                characters; then one label > *.d > **.d
//	3  ports        fewer > more > *
//	4  transport    named > any; then binaries: listed > any
//	5  effect       deny > inspected allow > plain allow
//	6  age          lower Order > higher, so that the answer is always the same
//
// A rule counts until the moment of its Expires, and not at that moment.
//
// # Stages
//
// A flow is judged as its facts become known, and an Allow or Deny is final:
//
//	Resolve  a DNS question: could the name be allowed on some port, over some
//	         transport, for some program? Rules about addresses do not count.
//	Connect  the address and the candidates for the name. Allow if no claim of
//	         the client could change that, Deny if none could help, else Inspect.
//	Hello    what the client's first bytes claim. A claim among the candidates,
//	         or a proven one, is the name; one that contradicts them is refused,
//	         as are TLS and HTTP without a name where only a name allows, and
//	         hellos that are broken or hide the name. A client that claims
//	         nothing passes if it would under every candidate. Inspect says
//	         that each request of the flow is to be judged.
//	HTTP     one request of an inspected flow; Inspect and NeedBody ask for
//	GraphQL  the operations in its body.
//
// A flow over UDP is settled at Connect. If it was captured, only allow rules
// that name udp count, and deny rules of any transport: the first bytes of a
// datagram prove no name. A deny rule with a name matches the
// claimed name, proven or not, and while nothing narrows them any candidate;
// a rule with an address matches the address that is dialled. A flow that no
// name is known for and whose client claims one that needs inspection is
// denied unless the claim is proven.
//
// # Guard
//
// What the layers allow, and what learning mode allows, is then held against
// the address that will be dialled, and against the IPv4 address that it
// stands for if it belongs to NAT64, 6to4, Teredo, ISATAP, SIIT or the
// IPv4-compatible range:
//
//	never                unspecified (and 0.0.0.0/8), multicast, broadcast, the
//	                     host's addresses and loopback
//	if a rule names it   link-local: a rule for the address or for a network
//	                     inside 169.254.0.0/16 or fe80::/10; the other cloud
//	                     metadata addresses: a rule for that very address
//	if asked for         private (RFC 1918, CGNAT, ULA): a rule for the address
//	                     or a network that holds it, for the exact host name,
//	                     or an endpoint's allowed_ips; and in learning mode
//
// The rule that counts here is the one that won.
package rules
