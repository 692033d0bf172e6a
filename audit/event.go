package audit

import (
	"time"

	"weir/graphql"
)

// Type says what an event is about.
type Type string

const (
	DNS       Type = "dns"
	Connect   Type = "connect"
	HTTP      Type = "http"
	GraphQL   Type = "graphql"
	Lifecycle Type = "lifecycle"
	Tamper    Type = "tamper"
	Limit     Type = "limit"
	Ask       Type = "ask" // a person was asked, has answered, or has not
)

// Event is one entry of the audit trail. Every decision yields exactly one.
type Event struct {
	// ID is unique and strictly increasing over the life of an installation:
	// microseconds since 1970, or the last one plus one.
	ID            int64     `json:"id"`
	Time          time.Time `json:"time"`
	Type          Type      `json:"type"`
	ContainerID   string    `json:"container_id"`
	ContainerName string    `json:"container_name"`
	SessionID     string    `json:"session_id,omitempty"`
	Verdict       string    `json:"verdict,omitempty"` // allow or deny; empty while nothing is decided, and on lifecycle
	Layer         string    `json:"layer,omitempty"`
	RuleID        string    `json:"rule_id,omitempty"`
	Reason        string    `json:"reason"`
	Host          string    `json:"host,omitempty"`
	Address       string    `json:"address,omitempty"`
	Port          uint16    `json:"port,omitempty"`
	Transport     string    `json:"transport,omitempty"`
	Binary        string    `json:"binary,omitempty"`
	Method        string    `json:"method,omitempty"`
	Path          string    `json:"path,omitempty"`
	Upgrade       string    `json:"upgrade,omitempty"` // protocol that the request asked to go on in, lower case

	Operations []graphql.Operation `json:"operations,omitempty"`

	BytesIn    int64  `json:"bytes_in,omitempty"`  // from the outside to the container
	BytesOut   int64  `json:"bytes_out,omitempty"` // from the container to the outside
	DurationMS int64  `json:"duration_ms,omitempty"`
	Would      *Would `json:"would,omitempty"`
}

// Would is what enforcement would have said, in learning and audit modes.
type Would struct {
	Verdict string `json:"verdict"`
	RuleID  string `json:"rule_id,omitempty"`
	Reason  string `json:"reason"`
}
