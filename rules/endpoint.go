package rules

import (
	"net/netip"
	"slices"
	"strings"
)

// Protocol says how an endpoint's traffic is looked at.
type Protocol string

const (
	ProtocolTCP       Protocol = "tcp" // not inspected
	ProtocolREST      Protocol = "rest"
	ProtocolGraphQL   Protocol = "graphql"
	ProtocolWebSocket Protocol = "websocket"
)

// The presets of an endpoint's access.
const (
	AccessReadOnly  = "read-only"
	AccessReadWrite = "read-write"
	AccessFull      = "full"
)

// The methods under which the messages of a client on a WebSocket are judged.
// As the method of an HTTP request they are refused by whoever reads requests:
// only a message may carry them into a decision.
const (
	MethodWebSocketText   = "WEBSOCKET_TEXT"
	MethodWebSocketBinary = "WEBSOCKET_BINARY"
)

// DefaultMaxBody is graphql_max_body_bytes where a document does not say, in
// bytes.
const DefaultMaxBody = 65536

// Endpoint is what a policy document says about one host: which requests of
// an inspected connection pass. It is immutable once compiled.
//
// The rule that carries it has the endpoint's host as its destination, in the
// grammar of endpoint hosts ("*" is one label), or "" when only AllowedIPs say
// what it is about.
type Endpoint struct {
	Policy   string // its key under network_policies
	Path     string // glob that selects it among endpoints of one host; "" is any
	Protocol Protocol
	SkipTLS  bool // tls: skip
	Audit    bool // enforcement: audit
	Access   string
	Allow    []RequestRule
	Deny     []RequestRule
	// AllowRegistered: persisted_queries is allow_registered.
	AllowRegistered bool
	Registry        map[string]Registered
	MaxBody         int // bytes, graphql_max_body_bytes
	// AllowedIPs, when not empty, are the only addresses that the endpoint
	// reaches, private ones among them.
	AllowedIPs        []netip.Prefix
	AllowEncodedSlash bool
}

// RequestRule is one entry of an endpoint's rules or deny_rules.
type RequestRule struct {
	Methods []string // upper case; empty: any
	Path    string   // glob; "": any
	Query   map[string][]string

	OperationType string // query, mutation, subscription; "": any
	OperationName string // glob; "": any
	Fields        []string
}

// Registered is an entry of graphql_persisted_queries.
type Registered struct {
	Type   string
	Name   string   // "": not said
	Fields []string // empty: not said
}

// presetMethods are the HTTP methods that a preset allows; nil is all of them.
func presetMethods(access string) []string {
	switch access {
	case AccessReadOnly:
		return []string{"GET", "HEAD", "OPTIONS"}
	case AccessReadWrite:
		return []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"}
	}
	return nil
}

// presetTypes are the GraphQL operation types that a preset allows.
func presetTypes(access string) []string {
	switch access {
	case AccessReadOnly:
		return []string{"query"}
	case AccessReadWrite:
		return []string{"query", "mutation"}
	}
	return []string{"query", "mutation", "subscription"}
}

// allowsRequest reports whether the allow side of a rest or websocket
// endpoint covers a request or message.
func (e *Endpoint) allowsRequest(method string, t *target) bool {
	switch {
	case e.Access == "":
		return slices.ContainsFunc(e.Allow, func(r RequestRule) bool { return r.allows(method, t) })
	case e.Protocol == ProtocolWebSocket:
		return method == "GET" || e.Access != AccessReadOnly
	case e.Access == AccessFull:
		return true
	}
	return slices.Contains(presetMethods(e.Access), method)
}

func (r *RequestRule) allows(method string, t *target) bool {
	if !r.coversMethod(method) || r.Path != "" && !matchPath(r.Path, t.path) {
		return false
	}
	for key, patterns := range r.Query {
		values := t.query[key]
		if len(values) == 0 || slices.ContainsFunc(values, func(v string) bool { return !matchAny(patterns, v) }) {
			return false
		}
	}
	return true
}

// denies is the counterpart of allows: one value of a repeated parameter is
// enough, and so is one reading of the path.
func (r *RequestRule) denies(method string, t *target) bool {
	if !r.coversMethod(method) {
		return false
	}
	if r.Path != "" && !t.could(r.Path) {
		return false
	}
	for key, patterns := range r.Query {
		if !slices.ContainsFunc(t.query[key], func(v string) bool { return matchAny(patterns, v) }) {
			return false
		}
	}
	return true
}

// coversMethod: GET covers HEAD, which is a GET without the answer's body.
func (r *RequestRule) coversMethod(method string) bool {
	return len(r.Methods) == 0 || slices.Contains(r.Methods, method) ||
		method == "HEAD" && slices.Contains(r.Methods, "GET")
}

// describe says what a rule covers, for a person.
func (r *RequestRule) describe() string {
	var parts []string
	if len(r.Methods) > 0 {
		parts = append(parts, strings.Join(r.Methods, "|"))
	}
	if r.Path != "" {
		parts = append(parts, r.Path)
	}
	for _, key := range sortedKeys(r.Query) {
		parts = append(parts, key+"="+strings.Join(r.Query[key], "|"))
	}
	if r.OperationType != "" {
		parts = append(parts, r.OperationType)
	}
	if r.OperationName != "" {
		parts = append(parts, "named "+r.OperationName)
	}
	if len(r.Fields) > 0 {
		parts = append(parts, "fields ["+strings.Join(r.Fields, ", ")+"]")
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, " ")
}

// describeAllow says what an endpoint allows, for a person.
func (e *Endpoint) describeAllow() string {
	if e.Access != "" {
		return "access: " + e.Access
	}
	const most = 4
	var parts []string
	for i, r := range e.Allow {
		if i == most {
			parts = append(parts, "…")
			break
		}
		parts = append(parts, r.describe())
	}
	return "rules: " + strings.Join(parts, "; ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
