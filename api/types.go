package api

import (
	"time"

	"weir/audit"
	"weir/graphql"
	"weir/rules"
)

// Health is the answer to GET /v1/health.
type Health struct {
	Status        string    `json:"status" example:"ok"`
	Version       string    `json:"version"`
	Attachments   int       `json:"attachments"`
	UptimeSeconds int64     `json:"uptime_seconds"`
	StartedAt     time.Time `json:"started_at"`
}

// AttachRequest asks for a running container to be attached.
type AttachRequest struct {
	Container string `json:"container" minLength:"1" doc:"id, unique id prefix, name, pid:N or netns:PATH"`
}

// StartingRequest asks for a container to be attached that its runtime is
// about to start.
type StartingRequest struct {
	ContainerID string `json:"container_id" minLength:"64" maxLength:"64"`
	PID         int    `json:"pid" minimum:"1" doc:"of its process, as the host counts"`
}

// Attachment is one attached container.
type Attachment struct {
	ContainerID string    `json:"container_id"`
	Name        string    `json:"name"`
	NetNS       string    `json:"netns" doc:"device and inode of the network namespace"`
	Interfaces  []string  `json:"interfaces"`
	AttachedAt  time.Time `json:"attached_at"`
	State       string    `json:"state" enum:"attached,waiting" doc:"waiting: the container is stopped and is attached again when it starts"`
	// ClosedConnections were open before the attach and have been cut.
	ClosedConnections []ClosedConnection `json:"closed_connections"`
	Warnings          []string           `json:"warnings,omitempty"`

	SessionID string `json:"session_id,omitempty" doc:"the current session"`
	Mode      string `json:"mode" enum:"enforce,asking,learning"`
	Flows     int    `json:"flows" doc:"live connections"`
	Denied    int64  `json:"denied" doc:"refusals since the daemon started"`
}

// ClosedConnection is a connection that was cut when its container was attached.
type ClosedConnection struct {
	Transport string `json:"transport"`
	Local     string `json:"local"`
	Remote    string `json:"remote"`
}

// SessionRule is a rule of a session.
type SessionRule struct {
	Destination string   `json:"destination" minLength:"1" doc:"*, an address, a CIDR, a name, *.name or **.name"`
	Ports       string   `json:"ports,omitempty" doc:"* or numbers and ranges: 80,443,8000-9000"`
	Transport   string   `json:"transport,omitempty" enum:"tcp,udp,any"`
	Binaries    []string `json:"binaries,omitempty"`
	Action      string   `json:"action,omitempty" enum:"allow,deny" doc:"allow when absent"`
	Notes       string   `json:"notes,omitempty"`
}

// SessionRequest creates a session, or replaces the one with the same id.
type SessionRequest struct {
	ID           string            `json:"id,omitempty" maxLength:"128"`
	Container    string            `json:"container" minLength:"1" doc:"literal id or name; need not be attached yet"`
	TTLSeconds   int64             `json:"ttl_seconds,omitempty" doc:"default 900, at most 86400"`
	AllowAll     bool              `json:"allow_all,omitempty" doc:"learning mode: let everything pass and record it"`
	Ask          bool              `json:"ask,omitempty" doc:"hold what only the default deny refuses, and ask a person; not with allow_all"`
	InspectHosts []string          `json:"inspect_hosts,omitempty" doc:"HOST or HOST:PORT: whose requests learning mode looks at, which takes clients that trust the authority; only with allow_all"`
	NetworkRules []SessionRule     `json:"network_rules,omitempty"`
	Policy       PolicyText        `json:"policy,omitempty" doc:"a policy document, as an object or as YAML in a string"`
	Labels       map[string]string `json:"labels,omitempty"`
}

// Session is a period of work in a container, with its own rules.
type Session struct {
	ID           string            `json:"id"`
	Container    string            `json:"container"`
	CreatedAt    time.Time         `json:"created_at"`
	ExpiresAt    time.Time         `json:"expires_at"`
	AllowAll     bool              `json:"allow_all"`
	Ask          bool              `json:"ask"`
	InspectHosts []string          `json:"inspect_hosts,omitempty"`
	Current      bool              `json:"current" doc:"whether this is the session that counts for its container now"`
	RulesCreated int               `json:"rules_created"`
	Labels       map[string]string `json:"labels,omitempty"`
	Warnings     []string          `json:"warnings,omitempty"`
}

// Mode is what the session does: learning, asking or enforce.
func (s Session) Mode() string { return rules.Mode(s.AllowAll, s.Ask) }

// InspectRequest sets the hosts whose requests a session in learning mode
// looks at.
type InspectRequest struct {
	InspectHosts []string `json:"inspect_hosts" doc:"HOST or HOST:PORT; none to look at no requests any more"`
}

// ReplayRequest asks what a policy would have made of what was seen.
type ReplayRequest struct {
	Policy PolicyText `json:"policy" doc:"a policy document: an object, or a string with YAML or JSON; it is tried as that of the session, below the global rules in force"`
}

// Replay is what a policy would have made of what was seen.
type Replay struct {
	Same    int      `json:"same" doc:"attempts that would be answered as they were"`
	Denied  []Change `json:"denied" doc:"were allowed and would be denied"`
	Allowed []Change `json:"allowed" doc:"were denied and would be allowed"`
	Unknown []Change `json:"unknown" doc:"connections whose requests would be judged one by one, and none was seen"`
}

// Change is something that a policy would answer otherwise than it was answered.
type Change struct {
	What   string    `json:"what"`
	Binary string    `json:"binary,omitempty"`
	Reason string    `json:"reason" doc:"what the policy says"`
	Count  int       `json:"count"`
	Last   time.Time `json:"last"`
}

// HeartbeatRequest extends a session.
type HeartbeatRequest struct {
	TTLSeconds int64 `json:"ttl_seconds,omitempty" doc:"from now; the session's own when absent"`
}

// Heartbeat is the answer to a heartbeat.
type Heartbeat struct {
	ID        string    `json:"id"`
	ExpiresAt time.Time `json:"expires_at"`
}

// RuleRequest creates or replaces a global rule.
type RuleRequest struct {
	Container        string     `json:"container,omitempty" doc:"glob over names and ids; * when absent"`
	Destination      string     `json:"destination" minLength:"1"`
	Ports            string     `json:"ports,omitempty"`
	Transport        string     `json:"transport,omitempty" enum:"tcp,udp,any"`
	Binaries         []string   `json:"binaries,omitempty"`
	Action           string     `json:"action" enum:"allow,deny"`
	ExpiresInSeconds int64      `json:"expires_in_seconds,omitempty"`
	ExpiresAt        *time.Time `json:"expires_at,omitempty"`
	Notes            string     `json:"notes,omitempty"`
}

// Rule is one rule of any layer.
type Rule struct {
	ID          string     `json:"id"`
	Source      string     `json:"source" enum:"global,session,builtin"`
	SessionID   string     `json:"session_id,omitempty"`
	Container   string     `json:"container"`
	Destination string     `json:"destination"`
	Ports       string     `json:"ports"`
	Transport   string     `json:"transport"`
	Binaries    []string   `json:"binaries,omitempty"`
	Action      string     `json:"action"`
	Endpoint    string     `json:"endpoint,omitempty" doc:"key of the network policy that inspects"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"`
	CreatedAt   time.Time  `json:"created_at"`
	LastUsedAt  *time.Time `json:"last_used_at,omitempty"`
	Notes       string     `json:"notes,omitempty"`
	ShadowedBy  string     `json:"shadowed_by,omitempty" doc:"a rule that always decides in this one's place"`
	Warnings    []string   `json:"warnings,omitempty"`
}

// RuleList is the answer to GET /v1/rules.
type RuleList struct {
	Items []Rule `json:"items"`
	Total int    `json:"total"`
}

// ExplainRequest asks what would be decided now.
type ExplainRequest struct {
	Container   string            `json:"container" minLength:"1"`
	Destination string            `json:"destination" minLength:"1" doc:"a name or an address"`
	Address     string            `json:"address,omitempty" doc:"the address that the name stands for; from what the container resolved when absent"`
	Port        int               `json:"port,omitempty" minimum:"0" maximum:"65535" doc:"443 when absent"`
	Transport   string            `json:"transport,omitempty" enum:"tcp,udp"`
	Binary      string            `json:"binary,omitempty"`
	Ancestors   []string          `json:"ancestors,omitempty"`
	Method      string            `json:"method,omitempty"`
	Target      string            `json:"target,omitempty" doc:"request target as sent: path and query"`
	Headers     map[string]string `json:"headers,omitempty"`
	Body        string            `json:"body,omitempty"`
}

// Step is one line of a trace: a rule that was looked at, and what came of it.
type Step struct {
	Layer   string `json:"layer"`
	Rule    string `json:"rule,omitempty"`
	Text    string `json:"text"`
	Matched bool   `json:"matched"`
	Won     bool   `json:"won,omitempty"`
	Why     string `json:"why"`
}

// Decision is the answer to an explain request.
type Decision struct {
	Verdict    string              `json:"verdict" enum:"allow,deny,inspect"`
	Layer      string              `json:"layer"`
	Rule       *Rule               `json:"rule,omitempty"`
	Reason     string              `json:"reason"`
	Trace      []Step              `json:"trace"`
	Operations []graphql.Operation `json:"operations,omitempty"`
	Would      *Decision           `json:"would,omitempty" doc:"in learning and audit: what enforcement would say"`
	// Hints say what to do about a refusal, as commands.
	Hints []string `json:"hints,omitempty"`
}

// Name is one entry of a container's table of names.
type Name struct {
	Name    string    `json:"name"`
	Address string    `json:"address"`
	Until   time.Time `json:"until" doc:"when it stops to count, unless a live connection still uses it"`
}

// Problem is an RFC 9457 problem document.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Errors say what is wrong with which part of a request.
	Errors []ProblemPart `json:"errors,omitempty"`
}

// ProblemPart is one mistake in a request.
type ProblemPart struct {
	Message  string `json:"message"`
	Location string `json:"location,omitempty" doc:"such as body.network_rules[0].ports"`
}

// Error makes a Problem an error: its detail, which names what was wrong and
// what to do, and the parts of the request that were wrong.
func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	for i, part := range p.Errors {
		text += map[bool]string{true: ": ", false: "; "}[i == 0]
		if part.Location != "" {
			text += part.Location + ": "
		}
		text += part.Message
	}
	return text
}

// PolicyRequest sets a document of the global layer.
type PolicyRequest struct {
	Policy PolicyText `json:"policy" doc:"a policy document, as an object or as YAML in a string"`
}

// Policy is a policy document of the global layer.
type Policy struct {
	Name      string    `json:"name"`
	Text      string    `json:"text" doc:"as it was given, YAML or JSON"`
	Rules     int       `json:"rules" doc:"how many rules and endpoints it has"`
	UpdatedAt time.Time `json:"updated_at"`
	Warnings  []string  `json:"warnings,omitempty"`
}

// EventPage is the answer to GET /v1/events.
type EventPage struct {
	Items      []audit.Event `json:"items"`
	NextCursor string        `json:"next_cursor,omitempty" doc:"pass as cursor for the next page; absent at the end"`
}

// EffectivePolicy is what holds for one container now.
type EffectivePolicy struct {
	Container string `json:"container"`
	SessionID string `json:"session_id,omitempty"`
	Mode      string `json:"mode" enum:"enforce,asking,learning"`
	Rules     []Rule `json:"rules" doc:"in the order in which they are asked: layer by layer"`
	// Documents are the policy documents in force, as YAML, by layer.
	Documents map[string]string `json:"documents,omitempty"`
}

// Authority is the interception authority, without its key.
type Authority struct {
	PEM string `json:"pem"`
}

// Trust is what it took to make the programs in a container trust the
// authority, and what is left to the user.
type Trust struct {
	Changed     []string   `json:"changed" doc:"files in the container"`
	Environment []Variable `json:"environment" doc:"to be set for programs with a list of their own"`
}

// Variable is an environment variable.
type Variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	For   string `json:"for" doc:"which programs need it"`
}
