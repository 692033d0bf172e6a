package rules

import "net/netip"

// Protocol says how an endpoint's traffic is looked at.
type Protocol string

const (
	ProtocolTCP       Protocol = "tcp" // not inspected
	ProtocolREST      Protocol = "rest"
	ProtocolGraphQL   Protocol = "graphql"
	ProtocolWebSocket Protocol = "websocket"
)

// Endpoint is what a policy document says about one host: which requests of
// an inspected connection pass. It is immutable once compiled.
type Endpoint struct {
	Policy            string // its key under network_policies
	Path              string // glob that selects it among endpoints of one host; "" is any
	Protocol          Protocol
	SkipTLS           bool // tls: skip
	Audit             bool // enforcement: audit
	Access            string
	Allow             []RequestRule
	Deny              []RequestRule
	AllowRegistered   bool // persisted_queries: allow_registered
	Registry          map[string]Registered
	MaxBody           int // bytes, graphql_max_body_bytes
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
	Name   string
	Fields []string
}
