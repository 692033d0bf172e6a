package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// FormatDocument renders rules as a policy document that ParseDocument reads
// back as the same rules. Their containers, ids and creation times are not
// part of a document and left out.
func FormatDocument(rs []Rule) (string, error) {
	doc := yaml.MapSlice{{Key: "version", Value: 1}}
	var plain []yaml.MapSlice
	for i := range rs {
		if rs[i].Endpoint == nil {
			plain = append(plain, formatRule(&rs[i]))
		}
	}
	if len(plain) > 0 {
		doc = append(doc, yaml.MapItem{Key: "rules", Value: plain})
	}
	if policies := formatPolicies(rs); len(policies) > 0 {
		doc = append(doc, yaml.MapItem{Key: "network_policies", Value: policies})
	}
	out, err := yaml.MarshalWithOptions(doc, yaml.IndentSequence(true))
	if err != nil {
		return "", fmt.Errorf("policy document: %w", err)
	}
	return string(out), nil
}

// item appends a key that has something to say.
func item(m *yaml.MapSlice, key string, value any, present bool) {
	if present {
		*m = append(*m, yaml.MapItem{Key: key, Value: value})
	}
}

func formatRule(r *Rule) yaml.MapSlice {
	m := yaml.MapSlice{{Key: string(r.Action), Value: r.Destination}}
	item(&m, "ports", r.Ports, r.Ports != "" && r.Ports != "*")
	item(&m, "transport", string(r.Transport), r.Transport != "" && r.Transport != Any)
	item(&m, "binaries", r.Binaries, len(r.Binaries) > 0)
	item(&m, "notes", r.Notes, r.Notes != "")
	item(&m, "expires", r.Expires.UTC().Format(time.RFC3339Nano), !r.Expires.IsZero())
	return m
}

// formatPolicies gathers endpoints that follow each other under one key when
// they came from one, so that the order of rules is kept.
func formatPolicies(rs []Rule) yaml.MapSlice {
	var out yaml.MapSlice
	used := map[string]bool{}
	var binaries []string
	last := ""
	for i := range rs {
		r := &rs[i]
		if r.Endpoint == nil {
			continue
		}
		e := formatEndpoint(r)
		if n := len(out); n > 0 && last == r.Endpoint.Policy && slices.Equal(binaries, r.Binaries) {
			policy := out[n-1].Value.(yaml.MapSlice)
			policy[0].Value = append(policy[0].Value.([]yaml.MapSlice), e)
			continue
		}
		policy := yaml.MapSlice{{Key: "endpoints", Value: []yaml.MapSlice{e}}}
		item(&policy, "binaries", r.Binaries, len(r.Binaries) > 0)
		name := r.Endpoint.Policy
		for n := 2; used[name]; n++ { // layers may use the same keys
			name = r.Endpoint.Policy + "-" + strconv.Itoa(n)
		}
		used[name] = true
		out = append(out, yaml.MapItem{Key: name, Value: policy})
		last, binaries = r.Endpoint.Policy, r.Binaries
	}
	return out
}

func formatEndpoint(r *Rule) yaml.MapSlice {
	e := r.Endpoint
	var m yaml.MapSlice
	item(&m, "host", r.Destination, r.Destination != "")
	m = append(m, formatPorts(r.Ports))
	item(&m, "path", e.Path, e.Path != "")
	item(&m, "protocol", string(e.Protocol), e.Inspected())
	item(&m, "tls", "skip", e.SkipTLS)
	item(&m, "enforcement", enforcement(e), e.Inspected())
	item(&m, "access", e.Access, e.Access != "")
	var allow []yaml.MapSlice
	for i := range e.Allow {
		allow = append(allow, yaml.MapSlice{{Key: "allow", Value: formatRequestRule(&e.Allow[i], e.Protocol)}})
	}
	item(&m, "rules", allow, len(allow) > 0)
	var deny []yaml.MapSlice
	for i := range e.Deny {
		deny = append(deny, formatRequestRule(&e.Deny[i], e.Protocol))
	}
	item(&m, "deny_rules", deny, len(deny) > 0)
	item(&m, "persisted_queries", "allow_registered", e.AllowRegistered)
	var registry yaml.MapSlice
	for _, id := range sortedKeys(e.Registry) {
		q := e.Registry[id]
		entry := yaml.MapSlice{{Key: "operation_type", Value: q.Type}}
		item(&entry, "operation_name", q.Name, q.Name != "")
		item(&entry, "fields", q.Fields, len(q.Fields) > 0)
		registry = append(registry, yaml.MapItem{Key: id, Value: entry})
	}
	item(&m, "graphql_persisted_queries", registry, len(registry) > 0)
	item(&m, "graphql_max_body_bytes", e.MaxBody, e.Protocol == ProtocolGraphQL && e.MaxBody != DefaultMaxBody)
	var allowed []string
	for _, p := range e.AllowedIPs {
		allowed = append(allowed, p.String())
	}
	item(&m, "allowed_ips", allowed, len(allowed) > 0)
	item(&m, "allow_encoded_slash", true, e.AllowEncodedSlash)
	return m
}

// formatPorts writes a range out: an endpoint lists its ports.
func formatPorts(text string) yaml.MapItem {
	var ports []int
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		first, _ := strconv.Atoi(lo)
		last := first
		if isRange {
			last, _ = strconv.Atoi(hi)
		}
		for p := first; p <= last; p++ {
			ports = append(ports, p)
		}
	}
	if len(ports) == 1 {
		return yaml.MapItem{Key: "port", Value: ports[0]}
	}
	return yaml.MapItem{Key: "ports", Value: ports}
}

func formatRequestRule(r *RequestRule, p Protocol) yaml.MapSlice {
	var m yaml.MapSlice
	item(&m, "methods", r.Methods, len(r.Methods) > 0)
	item(&m, "path", r.Path, r.Path != "")
	var query yaml.MapSlice
	for _, key := range sortedKeys(r.Query) {
		query = append(query, yaml.MapItem{Key: key, Value: yaml.MapSlice{{Key: "any", Value: r.Query[key]}}})
	}
	item(&m, "query", query, len(query) > 0)
	item(&m, "operation_type", r.OperationType, r.OperationType != "")
	item(&m, "operation_name", r.OperationName, r.OperationName != "")
	item(&m, "fields", r.Fields, len(r.Fields) > 0)
	switch {
	case len(m) > 0:
	case p == ProtocolGraphQL:
		item(&m, "operation_type", "*", true)
	default:
		item(&m, "method", "*", true)
	}
	return m
}
