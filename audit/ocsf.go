package audit

import (
	"net/netip"
	"strconv"
	"strings"
)

// OCSFVersion is the version of the Open Cybersecurity Schema Framework that
// OCSF renders. 1.3 because it is what the large collectors accept; the
// attributes used exist, unchanged, up to 1.9 (2.0 merges the protocol classes).
const OCSFVersion = "1.3.0"

// Classes, categories and values of OCSF 1.3.0, schema.ocsf.io.
const (
	classDetectionFinding = 2004
	classNetworkActivity  = 4001
	classHTTPActivity     = 4002
	classDNSActivity      = 4003
	classAppLifecycle     = 6002

	activityOther = 99

	severityInformational = 1
	severityLow           = 2
	severityMedium        = 3
	severityHigh          = 4
)

var (
	ocsfClassNames = map[int]string{
		classDetectionFinding: "Detection Finding",
		classNetworkActivity:  "Network Activity",
		classHTTPActivity:     "HTTP Activity",
		classDNSActivity:      "DNS Activity",
		classAppLifecycle:     "Application Lifecycle",
	}
	ocsfCategoryNames = map[int]string{2: "Findings", 4: "Network Activity", 6: "Application Activity"}
	ocsfSeverities    = map[int]string{
		severityInformational: "Informational",
		severityLow:           "Low",
		severityMedium:        "Medium",
		severityHigh:          "High",
	}
	ocsfMethods = map[string]int{
		"CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8, "PATCH": 9,
	}
)

// OCSF renders e as an event of the Open Cybersecurity Schema Framework, ready
// for encoding/json, whose output has its keys in a fixed order:
//
//	dns              DNS Activity (4003)
//	connect, limit   Network Activity (4001)
//	http, graphql    HTTP Activity (4002)
//	tamper           Detection Finding (2004)
//	ask              Network Activity (4001), of another kind
//	lifecycle        Application Lifecycle (6002)
//
// with the profiles security_control and container. version is Weir's. What OCSF
// has no place for is in unmapped; the program among it, since OCSF wants a
// process's id with it.
func OCSF(e Event, version string) map[string]any {
	class, activity, activityName := ocsfClass(e)
	category := class / 1000
	severity := ocsfSeverity(e)
	product := map[string]any{"name": "Weir", "vendor_name": "Weir"}
	set(product, "version", version)
	o := map[string]any{
		"class_uid":     class,
		"class_name":    ocsfClassNames[class],
		"category_uid":  category,
		"category_name": ocsfCategoryNames[category],
		"activity_id":   activity,
		"activity_name": activityName,
		"type_uid":      class*100 + activity,
		"type_name":     ocsfClassNames[class] + ": " + activityName,
		"severity_id":   severity,
		"severity":      ocsfSeverities[severity],
		"time":          e.Time.UnixMilli(),
	}
	set(o, "message", e.Reason)
	ocsfOutcome(o, e)
	switch class {
	case classDetectionFinding:
		o["status_id"], o["status"] = 1, "New"
		o["finding_info"] = map[string]any{
			"uid":          strconv.FormatInt(e.ID, 10),
			"title":        "Interception of a container's traffic was tampered with",
			"desc":         e.Reason,
			"created_time": e.Time.UnixMilli(),
		}
		o["resources"] = []any{ocsfEndpoint(e)}
	case classAppLifecycle:
		o["app"] = product
	default:
		ocsfNetwork(o, e)
	}
	o["metadata"] = map[string]any{
		"version":  OCSFVersion,
		"product":  product,
		"uid":      strconv.FormatInt(e.ID, 10),
		"profiles": []string{"container", "security_control"},
	}
	ocsfUnmapped(o, e)
	return o
}

// ocsfClass is the class of e, and what happened in the terms of that class.
func ocsfClass(e Event) (class, activity int, name string) {
	denied := e.Verdict == "deny"
	switch e.Type {
	case Tamper:
		return classDetectionFinding, 1, "Create"
	case Lifecycle:
		return classAppLifecycle, activityOther, "Other"
	case DNS:
		if denied || e.Verdict == "" {
			return classDNSActivity, 1, "Query"
		}
		return classDNSActivity, 6, "Traffic"
	case Ask:
		return classNetworkActivity, activityOther, "Other"
	case HTTP, GraphQL:
		method := strings.ToUpper(e.Method)
		if id, ok := ocsfMethods[method]; ok {
			return classHTTPActivity, id, method[:1] + strings.ToLower(method[1:])
		}
		return classHTTPActivity, activityOther, "Other"
	}
	if denied {
		return classNetworkActivity, 5, "Refuse"
	}
	return classNetworkActivity, 6, "Traffic"
}

func ocsfSeverity(e Event) int {
	switch {
	case e.Type == Tamper:
		return severityHigh
	case e.Type == Limit, e.Verdict == "deny":
		return severityMedium
	case e.Would != nil && e.Would.Verdict == "deny":
		return severityLow
	}
	return severityInformational
}

// ocsfOutcome fills in the security_control profile.
func ocsfOutcome(o map[string]any, e Event) {
	switch {
	case e.Type == Tamper:
		o["action_id"], o["action"] = 2, "Denied"
		o["disposition_id"], o["disposition"] = 19, "Alert"
	case e.Verdict == "deny":
		o["action_id"], o["action"] = 2, "Denied"
		o["disposition_id"], o["disposition"] = 2, "Blocked"
		o["status_id"], o["status"] = 2, "Failure"
		set(o, "status_detail", e.Reason)
	case e.Verdict == "allow" && e.Would != nil && e.Would.Verdict == "deny":
		o["action_id"], o["action"] = 1, "Allowed"
		o["disposition_id"], o["disposition"] = 17, "Logged"
		o["status_id"], o["status"] = 1, "Success"
	case e.Verdict == "allow":
		o["action_id"], o["action"] = 1, "Allowed"
		o["disposition_id"], o["disposition"] = 1, "Allowed"
		o["status_id"], o["status"] = 1, "Success"
	default:
		o["action_id"], o["action"] = 0, "Unknown"
	}
	if e.RuleID != "" {
		o["firewall_rule"] = map[string]any{"uid": e.RuleID}
	}
	if e.Layer != "" {
		o["policy"] = map[string]any{"name": e.Layer}
	}
}

// ocsfNetwork fills in what the network classes have in common, and the part
// of HTTP and DNS.
func ocsfNetwork(o map[string]any, e Event) {
	o["src_endpoint"] = ocsfEndpoint(e)
	dst := map[string]any{}
	set(dst, "hostname", e.Host)
	set(dst, "ip", e.Address)
	if e.Port != 0 {
		dst["port"] = e.Port
	}
	if e.Host != "" || e.Address != "" {
		o["dst_endpoint"] = dst
	}
	conn := map[string]any{"direction_id": 2, "direction": "Outbound"}
	set(conn, "protocol_name", e.Transport)
	if n, ok := map[string]int{"tcp": 6, "udp": 17}[e.Transport]; ok { // IANA protocol numbers
		conn["protocol_num"] = n
	}
	if a, err := netip.ParseAddr(e.Address); err == nil {
		conn["protocol_ver_id"] = 6
		if a.Unmap().Is4() {
			conn["protocol_ver_id"] = 4
		}
	}
	o["connection_info"] = conn
	if e.BytesIn != 0 || e.BytesOut != 0 {
		// In OCSF "in" is from the destination to the source, as it is here.
		o["traffic"] = map[string]any{"bytes_in": e.BytesIn, "bytes_out": e.BytesOut, "bytes": e.BytesIn + e.BytesOut}
	}
	if e.DurationMS != 0 {
		o["duration"] = e.DurationMS
	}
	switch e.Type {
	case HTTP, GraphQL:
		target, query, _ := strings.Cut(e.Path, "?")
		url := map[string]any{"path": target}
		set(url, "hostname", e.Host)
		set(url, "query_string", query)
		if e.Port != 0 {
			url["port"] = e.Port
		}
		request := map[string]any{"url": url}
		set(request, "http_method", strings.ToUpper(e.Method))
		o["http_request"] = request
	case DNS:
		if e.Host != "" {
			o["query"] = map[string]any{"hostname": e.Host}
		}
	}
}

// ocsfEndpoint is the container, as an endpoint or a resource.
func ocsfEndpoint(e Event) map[string]any {
	if e.ContainerID == "" && e.ContainerName == "" {
		return map[string]any{"name": "unknown"} // one of name and uid is required
	}
	c := map[string]any{}
	set(c, "uid", e.ContainerID)
	set(c, "name", e.ContainerName)
	end := map[string]any{}
	set(end, "uid", e.ContainerID)
	set(end, "name", e.ContainerName)
	if e.Type == Tamper {
		end["type"] = "container" // a resource has no container object
		return end
	}
	end["container"] = c
	return end
}

func ocsfUnmapped(o map[string]any, e Event) {
	u := map[string]any{"event_type": string(e.Type)}
	set(u, "session_id", e.SessionID)
	set(u, "binary", e.Binary)
	if len(e.Operations) > 0 {
		u["graphql_operations"] = e.Operations
	}
	if e.Would != nil {
		u["would"] = e.Would
	}
	o["unmapped"] = u
}

// set leaves out what is empty: OCSF takes an empty string for a value.
func set(m map[string]any, key, value string) {
	if value != "" {
		m[key] = value
	}
}
