package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weir/audit"
)

// DefaultSocket is where the daemon listens unless told otherwise.
const DefaultSocket = "/run/weir/weir.sock"

// Client talks to the daemon over its unix socket. It is safe for concurrent
// use. Errors that the daemon answered are *Problem.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon behind socket; "" is DefaultSocket.
func NewClient(socket string) *Client {
	if socket == "" {
		socket = DefaultSocket
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
	}
	return &Client{socket: socket, http: &http.Client{Transport: transport}}
}

// Health asks whether the daemon is well.
func (c *Client) Health(ctx context.Context) (h Health, err error) {
	return h, c.call(ctx, "GET", "/v1/health", nil, &h)
}

// Upgrade has the daemon replaced by the program that its binary is now.
func (c *Client) Upgrade(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/upgrade", struct{}{}, nil)
}

// Attach attaches a running container; attaching again answers the same.
func (c *Client) Attach(ctx context.Context, container string) (a Attachment, err error) {
	return a, c.call(ctx, "POST", "/v1/attachments", AttachRequest{Container: container}, &a)
}

// AttachStarting attaches a container that its runtime is about to start.
func (c *Client) AttachStarting(ctx context.Context, id string, pid int) (a Attachment, err error) {
	return a, c.call(ctx, "POST", "/v1/attachments/starting", StartingRequest{ContainerID: id, PID: pid}, &a)
}

// Attachments lists the attached containers.
func (c *Client) Attachments(ctx context.Context) (list []Attachment, err error) {
	return list, c.call(ctx, "GET", "/v1/attachments", nil, &list)
}

// Attachment returns one attached container.
func (c *Client) Attachment(ctx context.Context, container string) (a Attachment, err error) {
	return a, c.call(ctx, "GET", "/v1/attachments/"+url.PathEscape(container), nil, &a)
}

// Detach gives a container its network back.
func (c *Client) Detach(ctx context.Context, container string) error {
	return c.call(ctx, "DELETE", "/v1/attachments/"+url.PathEscape(container), nil, nil)
}

// CreateSession creates a session or replaces the one with the same id.
func (c *Client) CreateSession(ctx context.Context, r SessionRequest) (s Session, err error) {
	return s, c.call(ctx, "POST", "/v1/sessions", r, &s)
}

// Sessions lists the live sessions in creation order.
func (c *Client) Sessions(ctx context.Context) (list []Session, err error) {
	return list, c.call(ctx, "GET", "/v1/sessions", nil, &list)
}

// Session returns one live session.
func (c *Client) Session(ctx context.Context, id string) (s Session, err error) {
	return s, c.call(ctx, "GET", "/v1/sessions/"+url.PathEscape(id), nil, &s)
}

// Heartbeat extends a session by ttl seconds from now; 0 is its own ttl.
func (c *Client) Heartbeat(ctx context.Context, id string, ttl int64) (h Heartbeat, err error) {
	return h, c.call(ctx, "POST", "/v1/sessions/"+url.PathEscape(id)+"/heartbeat", HeartbeatRequest{TTLSeconds: ttl}, &h)
}

// EndSession ends a session; its rules end with it.
func (c *Client) EndSession(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/v1/sessions/"+url.PathEscape(id), nil, nil)
}

// Rules lists rules of all layers. Empty arguments do not filter.
func (c *Client) Rules(ctx context.Context, source, container, destination string) (list RuleList, err error) {
	q := url.Values{"shadows": {"true"}}
	for key, value := range map[string]string{"source": source, "container": container, "destination": destination} {
		if value != "" {
			q.Set(key, value)
		}
	}
	return list, c.call(ctx, "GET", "/v1/rules?"+q.Encode(), nil, &list)
}

// AddRule adds a global rule.
func (c *Client) AddRule(ctx context.Context, r RuleRequest) (rule Rule, err error) {
	return rule, c.call(ctx, "POST", "/v1/rules", r, &rule)
}

// UpdateRule replaces a global rule.
func (c *Client) UpdateRule(ctx context.Context, id string, r RuleRequest) (rule Rule, err error) {
	return rule, c.call(ctx, "PUT", "/v1/rules/"+url.PathEscape(id), r, &rule)
}

// DeleteRule removes a global rule.
func (c *Client) DeleteRule(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/v1/rules/"+url.PathEscape(id), nil, nil)
}

// Explain asks what would be decided now.
func (c *Client) Explain(ctx context.Context, r ExplainRequest) (d Decision, err error) {
	return d, c.call(ctx, "POST", "/v1/explain", r, &d)
}

// Flows lists the connections of a container that are open now.
func (c *Client) Flows(ctx context.Context, container string) (list []Flow, err error) {
	return list, c.call(ctx, "GET", "/v1/flows/"+url.PathEscape(container), nil, &list)
}

// Kill cuts one connection.
func (c *Client) Kill(ctx context.Context, container string, id uint64) error {
	return c.call(ctx, "DELETE", "/v1/flows/"+url.PathEscape(container)+"/"+strconv.FormatUint(id, 10), nil, nil)
}

// Questions lists what waits for a person's answer; "" is of all containers.
func (c *Client) Questions(ctx context.Context, container string) (list []Question, err error) {
	path := "/v1/questions"
	if container != "" {
		path += "?container=" + url.QueryEscape(container)
	}
	return list, c.call(ctx, "GET", path, nil, &list)
}

// Answer answers a question.
func (c *Client) Answer(ctx context.Context, id string, r AnswerRequest) (a Answered, err error) {
	return a, c.call(ctx, "POST", "/v1/questions/"+url.PathEscape(id), r, &a)
}

// Names lists the names that a container resolved and that still count.
func (c *Client) Names(ctx context.Context, container string) (list []Name, err error) {
	return list, c.call(ctx, "GET", "/v1/dns/"+url.PathEscape(container), nil, &list)
}

// EffectivePolicy returns a container's policy as YAML, layer by layer.
func (c *Client) EffectivePolicy(ctx context.Context, container string) (EffectivePolicy, error) {
	var p EffectivePolicy
	err := c.call(ctx, "GET", "/v1/policy/"+url.PathEscape(container), nil, &p)
	return p, err
}

// Learn returns the policy document that admits what a container was seen
// doing at since (zero: ever) or later.
func (c *Client) Learn(ctx context.Context, container string, since time.Time, suffix bool) (text []byte, err error) {
	q := url.Values{}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	if suffix {
		q.Set("suffix", "true")
	}
	return text, c.call(ctx, "GET", "/v1/learn/"+url.PathEscape(container)+"?"+q.Encode(), nil, &text)
}

// Replay asks what a policy document would have made of what a container was
// seen doing at since (zero: ever) or later.
func (c *Client) Replay(ctx context.Context, container string, since time.Time, policy string) (r Replay, err error) {
	q := url.Values{}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339Nano))
	}
	return r, c.call(ctx, "POST", "/v1/replay/"+url.PathEscape(container)+"?"+q.Encode(), ReplayRequest{Policy: PolicyString(policy)}, &r)
}

// SetInspect replaces the hosts whose requests a session in learning mode
// looks at.
func (c *Client) SetInspect(ctx context.Context, session string, hosts []string) (s Session, err error) {
	return s, c.call(ctx, "PUT", "/v1/sessions/"+url.PathEscape(session)+"/inspect", InspectRequest{InspectHosts: hosts}, &s)
}

// CA returns the interception authority.
func (c *Client) CA(ctx context.Context) (a Authority, err error) {
	return a, c.call(ctx, "GET", "/v1/ca", nil, &a)
}

// InstallCA makes the programs in a container trust the authority.
func (c *Client) InstallCA(ctx context.Context, container string) (t Trust, err error) {
	return t, c.call(ctx, "PUT", "/v1/ca/"+url.PathEscape(container), struct{}{}, &t)
}

// UninstallCA undoes InstallCA.
func (c *Client) UninstallCA(ctx context.Context, container string) error {
	return c.call(ctx, "DELETE", "/v1/ca/"+url.PathEscape(container), nil, nil)
}

// SetPolicy puts a document into the global layer, in place of the one of that
// name if there is one.
func (c *Client) SetPolicy(ctx context.Context, name, text string) (p Policy, err error) {
	return p, c.call(ctx, "PUT", "/v1/policies/"+url.PathEscape(name), PolicyRequest{Policy: PolicyString(text)}, &p)
}

// Policies lists the documents of the global layer.
func (c *Client) Policies(ctx context.Context) (list []Policy, err error) {
	return list, c.call(ctx, "GET", "/v1/policies", nil, &list)
}

// DeletePolicy takes a document out of the global layer.
func (c *Client) DeletePolicy(ctx context.Context, name string) error {
	return c.call(ctx, "DELETE", "/v1/policies/"+url.PathEscape(name), nil, nil)
}

// EventQuery selects events. Zero values do not filter.
type EventQuery struct {
	Container string
	Verdict   string
	Type      string
	Since     time.Time
	Cursor    string
	Limit     int
}

func (q EventQuery) values() url.Values {
	v := url.Values{}
	for key, value := range map[string]string{"container": q.Container, "verdict": q.Verdict, "type": q.Type, "cursor": q.Cursor} {
		if value != "" {
			v.Set(key, value)
		}
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// Events returns one page of events, oldest first.
func (c *Client) Events(ctx context.Context, q EventQuery) (page EventPage, err error) {
	return page, c.call(ctx, "GET", "/v1/events?"+q.values().Encode(), nil, &page)
}

// Follow calls each for every event after the one with id after (0: after
// q.Cursor, else at q.Since, else from now on), until ctx ends, each fails, or the daemon goes away.
func (c *Client) Follow(ctx context.Context, q EventQuery, after int64, each func(audit.Event) error) error {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://weir/v1/events/stream?"+q.values().Encode(), nil)
	if err != nil {
		return err
	}
	if after > 0 {
		req.Header.Set("Last-Event-ID", strconv.FormatInt(after, 10))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return problem(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e audit.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event stream: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the daemon closed the event stream; it may be restarting: run the command again")
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://weir"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return problem(resp)
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if text, ok := out.(*[]byte); ok {
		*text, err = io.ReadAll(resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: the daemon's answer is not readable: %w", method, path, err)
	}
	return nil
}

// ErrNoDaemon says that nobody answers on the socket.
var ErrNoDaemon = errors.New("no daemon")

// unreachable says what to do about a socket that does not answer.
func (c *Client) unreachable(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w at %s: start it with 'sudo weir serve', or name its socket with --socket", ErrNoDaemon, c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens at %s (a daemon died?): start it with 'sudo weir serve'", ErrNoDaemon, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to use %s: run with sudo, or join the group 'weir'", c.socket)
	}
	return fmt.Errorf("daemon at %s: %w", c.socket, err)
}

func problem(resp *http.Response) error {
	p := &Problem{Title: resp.Status, Status: resp.StatusCode}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	// An answer that is no problem document keeps the status as its title.
	_ = json.Unmarshal(body, p)
	return p
}
