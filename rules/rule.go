package rules

import (
	"net/netip"
	"net/url"
	"time"

	"weir/graphql"
)

// Verdict is the outcome of a decision. The zero Verdict is Deny.
type Verdict uint8

const (
	// Deny refuses.
	Deny Verdict = iota
	// Allow lets through without looking further.
	Allow
	// Inspect says that the facts known so far do not settle it: see Stage
	// for what has to be learned next.
	Inspect
)

// Action is what a rule does with the requests it matches.
type Action string

const (
	ActionAllow Action = "allow"
	ActionDeny  Action = "deny"
)

// Transport is a layer-4 protocol. Any matches both; it is never a request's.
type Transport string

const (
	TCP Transport = "tcp"
	UDP Transport = "udp"
	Any Transport = "any"
)

// Source says which layer a rule or a decision comes from.
type Source string

const (
	Global  Source = "global"
	Session Source = "session"
	Builtin Source = "builtin"
	// Default is the layer of decisions that no rule made: nothing matched,
	// or the name that a rule would need could not be established.
	Default Source = "default"
	// AllowAll is the layer of decisions made by learning mode.
	AllowAll Source = "allow_all"
	// Asked is the layer of decisions that a person made about one flow.
	Asked Source = "asked"
	// AddressGuard is the layer of refusals of never-dialled addresses.
	AddressGuard Source = "guard"
)

// Container says who asks.
type Container struct {
	ID   string // full runtime id, or "netns:DEV-INO" without a runtime
	Name string
}

// Rule allows or denies the requests that all of its conditions match. It is
// the wire form: text as a user wrote it, made canonical by Canonical.
type Rule struct {
	ID        string
	Source    Source
	SessionID string // of session rules

	Container   string    // glob over names and ids; global layer only; "" is "*"
	Destination string    // see the package comment for the grammar
	Ports       string    // "*", or numbers and ranges: "80,443,8000-9000"; "" is "*"
	Transport   Transport // "" is Any
	Binaries    []string  // program globs; empty means any program
	Action      Action

	Expires time.Time // zero: never
	Created time.Time
	Order   int64 // creation order inside its layer; lower is older
	Notes   string

	// Endpoint, when not nil, makes an allow rule an inspected one.
	Endpoint *Endpoint
}

// SessionState is one session with everything that lives and dies with it.
type SessionState struct {
	ID        string
	Container string // literal id or name, never a pattern
	Seq       int64  // creation order, strictly increasing
	Created   time.Time
	Expires   time.Time     // live while Expires > now
	TTL       time.Duration // what a heartbeat without a ttl extends it by
	Ended     bool
	AllowAll  bool
	// Ask: a person is asked about what only the default deny refuses.
	Ask bool
	// Inspect are hosts whose requests learning mode looks at; see
	// CanonicalInspectHost.
	Inspect  []string
	Rules    []Rule
	Document *Document // nil: none
	Labels   map[string]string
}

// Mode is what a session with these settings does, in the word that everybody
// is told: learning, asking or enforce.
func Mode(allowAll, ask bool) string {
	switch {
	case allowAll:
		return "learning"
	case ask:
		return "asking"
	}
	return "enforce"
}

// Stage is how far the evidence of a Request goes.
type Stage uint8

const (
	// Resolve: a DNS question. Names[0] is the name asked for; no address, no port.
	Resolve Stage = iota + 1
	// Connect: a connection's destination is known, and the candidates for its name.
	Connect
	// Hello: the first bytes of the client were looked at; Claim says what they were.
	Hello
	// HTTP: a request's head is known.
	HTTP
	// GraphQL: the operations of the request's body are known as well.
	GraphQL
)

// ClaimKind says what the first bytes of a connection were.
type ClaimKind uint8

const (
	// ClaimNone: the client sent nothing in the time given to it (a protocol
	// in which the server speaks first, or one that is slow).
	ClaimNone ClaimKind = iota
	// ClaimTLS: a complete ClientHello. Name is its SNI, "" when it has none.
	ClaimTLS
	// ClaimHTTP: the head of a clear-text HTTP request. Name is its Host.
	ClaimHTTP
	// ClaimOther: something that is neither.
	ClaimOther
	// ClaimBroken: a ClientHello or HTTP head that is malformed, too long, or
	// hides its name (ECH). Problem says which.
	ClaimBroken
)

// Claim is what a client said about the name it wants to reach.
type Claim struct {
	Kind    ClaimKind
	Name    string // canonical
	Problem string // of ClaimBroken
	// Proven: the address was in none of the container's own answers, but Weir
	// resolved Name itself and its answer contains this very address.
	Proven bool
}

// Program is what opened a connection, as seen from inside the container.
type Program struct {
	Path      string   // the executable
	Ancestors []string // its parents' executables, nearest first
}

// HTTPRequest is the head of one request.
type HTTPRequest struct {
	Method  string     // as sent
	Target  string     // raw request target as sent: path and query
	Upgrade string     // lower-case protocol of an Upgrade, or ""
	Query   url.Values // strictly parsed by Decide from Target when nil
}

// Request is what is known about one attempt to reach something. Facts that
// are not known yet say so by Stage or by a nil pointer; unknown is never
// "no match".
type Request struct {
	Time      time.Time
	Container Container
	Stage     Stage
	Transport Transport

	// Names are the canonical names that this container resolved to Addr and
	// that still count. At Resolve, Names[0] is the name asked for.
	Names []string
	Addr  netip.Addr // the address that will be dialled; zero at Resolve
	Port  uint16     // zero at Resolve
	// Captured: the connection arrived at Weir's listener. A loopback
	// destination is then not the container's own loopback.
	Captured bool
	// Relayed: the flow would be captured, although its address may not be
	// known. For explanations; Captured implies it. Zero: nothing is said.
	Relayed bool

	Claim   Claim    // from Hello on
	Program *Program // nil: not known (yet), or not found
	// ProgramFailed: the program was looked for and not found; listed
	// binaries then do not match. With Program nil and this false, a rule
	// that lists binaries makes the answer Inspect with NeedProgram.
	ProgramFailed bool

	HTTP       *HTTPRequest
	Operations []graphql.Operation
}

// Decision is a verdict, the rule that made it, and why.
type Decision struct {
	Verdict Verdict
	Layer   Source
	Rule    *Rule  // nil when no rule made it; never changed after Compile
	Reason  string // one line, for a person
	Host    string // the name that counted; "" when the flow has none

	// NeedProgram: with Inspect, the connecting program has to be found first.
	NeedProgram bool
	// NeedBody: with Inspect at HTTP, the body has to be classified (GraphQL).
	NeedBody bool
	// Endpoint is the inspected endpoint that judged, if one did.
	Endpoint *Endpoint
	// Path is the canonical request target to send, at HTTP and GraphQL.
	Path string
	// Malformed: the request was refused because servers could read it in
	// more than one way, or not at all; to be answered 400 rather than 403.
	Malformed bool
	// Audit: enforcement would have denied; let through because the
	// endpoint's mode is audit. Would carries the denial.
	Audit bool

	// Askable, with Deny and in a policy that asks: nothing but the default
	// refused, and a rule that allows Host, or the address without one, on that port
	// would have let it pass. Never said at Connect, where Inspect stands in its place, nor of
	// UDP.
	Askable bool

	// Would is what the layered rules would have said, in learning and audit.
	Would *Decision
	// Trace is filled by Explain only.
	Trace []Step
}

// Step is one line of an explanation.
type Step struct {
	Layer   Source `json:"layer"`
	Rule    string `json:"rule,omitempty"` // id
	Text    string `json:"text"`           // what the rule says, as a user would write it
	Matched bool   `json:"matched"`
	Won     bool   `json:"won,omitempty"`
	Why     string `json:"why"` // why it won, lost or did not match
}
