package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// gitHub plays the part of GitHub's API that gh asks for, under a prefix.
func gitHub(rest, graphQL string) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern, text string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, text)
		})
	}
	answer("GET "+rest+"/user", `{"login":"octocat"}`)
	answer("GET "+rest+"/repos/octo/demo", `{"full_name":"octo/demo","private":false}`)
	answer("POST "+rest+"/repos/octo/demo/issues", `{"number":7}`)
	answer("DELETE "+rest+"/repos/octo/demo", ``)
	mux.HandleFunc("POST "+graphQL, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		switch text := string(body); {
		case strings.Contains(text, "issues("):
			io.WriteString(w, `{"data":{"repository":{"hasIssuesEnabled":true,"issues":{"totalCount":1,"pageInfo":{"hasNextPage":false,"endCursor":""},"nodes":[
				{"number":41,"title":"The pump leaks","url":"https://github.com/octo/demo/issues/41","state":"OPEN","updatedAt":"2026-01-02T03:04:05Z","labels":{"nodes":[],"totalCount":0}}]}}}}`)
		case strings.Contains(text, "__type"):
			io.WriteString(w, `{"data":{}}`)
		default:
			io.WriteString(w, `{"data":{"viewer":{"login":"octocat"}}}`)
		}
	})
	return mux
}

// REST and GraphQL of one host and port, told apart by path.
func gitHubPolicy(host, rest, graphQL string) string {
	return `
version: 1
network_policies:
  github:
    endpoints:
      - host: ` + host + `
        port: 443
        path: ` + rest + `
        protocol: rest
        rules:
          - allow: {method: GET, path: "/**"}
          - allow: {method: POST, path: "/**/repos/*/*/issues"}
        deny_rules:
          - {method: GET, path: "/**/repos/*/secret/**"}
      - host: ` + host + `
        port: 443
        path: ` + graphQL + `
        protocol: graphql
        rules:
          - allow: {operation_type: query, fields: [viewer, repository]}
          - allow: {operation_type: mutation, fields: ["create*"]}
        deny_rules:
          - {operation_type: mutation, fields: [deleteRepository, "delete*"]}
    binaries:
      - path: /usr/bin/gh
`
}

func TestGitHubCommandLineWithRESTAndGraphQLOnOneHost(t *testing.T) {
	o := newOutside(t)
	o.addName("api.github.com", "198.51.100.30")
	o.addName("github.corp.example", "198.51.100.31")
	outside := newAuthority(t)
	config := serverConfig(outside, "api.github.com", "github.corp.example")
	hub := o.record("198.51.100.30:443", config, gitHub("", "/graphql"))
	corp := o.record("198.51.100.31:443", config, gitHub("/api/v3", "/api/graphql"))
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(gitHubPolicy("api.github.com", "/**", "/graphql"))
	gh := func(args ...string) (string, bool) {
		return box.exec(append([]string{"env", "GH_TOKEN=" + token, "GH_ENTERPRISE_TOKEN=" + token, "GH_NO_UPDATE_NOTIFIER=1", "gh"}, args...)...)
	}
	type command struct {
		want string // in the output
		args []string
	}
	deletion := []string{"api", "graphql", "-f", `query=mutation Tidy { deleteRepository(input: {repositoryId: "R_kgDO123"}) { clientMutationId } }`}

	for _, c := range []command{
		{`"login":"octocat"`, []string{"api", "user"}},
		{`"full_name":"octo/demo"`, []string{"api", "repos/octo/demo"}},
		{`"number":7`, []string{"api", "repos/octo/demo/issues", "-f", "title=x"}},
		{`"login":"octocat"`, []string{"api", "graphql", "-f", "query={ viewer { login } }"}},
		{`"login":"octocat"`, []string{"api", "graphql", "-f", `query=mutation { createIssue(input: {}) { issue { number } } }`}},
		{"The pump leaks", []string{"issue", "list", "-R", "octo/demo"}},
	} {
		if out, ok := gh(c.args...); !ok || !strings.Contains(out, c.want) {
			t.Errorf("gh %s: %s", strings.Join(c.args, " "), out)
		}
	}
	passed, _ := hub.take()
	if len(passed) < 6 {
		t.Errorf("the server saw %d requests: %+v", len(passed), passed)
	}
	for _, c := range []command{
		{"HTTP 403", []string{"api", "-X", "DELETE", "repos/octo/demo"}},
		{"HTTP 403", []string{"api", "-X", "PUT", "repos/octo/demo/topics"}},
		{"HTTP 403", []string{"api", "repos/octo/secret/contents"}},
		{"denied by policy", deletion},
		{"denied by policy", []string{"api", "graphql", "-f", `query={ organization(login: "x") { id } }`}},
		{"denied by policy", []string{"api", "graphql", "-f", `query=mutation { createIssue(input: {}) { __typename } deleteIssue(input: {}) { __typename } }`}},
		{"403", []string{"repo", "delete", "octo/demo", "--confirm"}},
	} {
		if out, ok := gh(c.args...); ok || !strings.Contains(out, c.want) {
			t.Errorf("gh %s: %v %s", strings.Join(c.args, " "), ok, out)
		}
	}
	blocked, raw := hub.take()
	for _, r := range blocked {
		if r.Method != "GET" { // gh looks at a repository before it deletes it
			t.Errorf("the server saw %+v", r)
		}
	}
	if strings.Contains(raw, "delete") || strings.Contains(raw, "R_kgDO123") || strings.Contains(raw, "organization") {
		t.Errorf("the server got a part of what was denied")
	}
	e := w.waitEvent(box.Name, "deleteRepository denied", func(e Event) bool { return e.operation("mutation", "deleteRepository") })
	if e.Verdict != "deny" || e.Operations[0].Name != "Tidy" || e.Binary != "/usr/bin/gh" || e.Path != "/graphql" || !strings.Contains(e.Reason, "network_policies.github") {
		t.Errorf("event %+v", e)
	}
	e = w.waitEvent(box.Name, "DELETE denied", func(e Event) bool { return e.Type == "http" && e.Method == "DELETE" })
	if e.Verdict != "deny" || e.Path != "/repos/octo/demo" || e.RuleID == "" {
		t.Errorf("event %+v", e)
	}
	// The policy is for gh: nobody else gets there.
	if out, ok := box.curl("https://api.github.com/user"); ok {
		t.Errorf("curl got through: %s", out)
	}
	if now, _ := hub.take(); len(now) > 0 {
		t.Errorf("the server saw %+v", now)
	}

	// The same for a server of one's own, where both live under /api.
	w.setPolicy(box, gitHubPolicy("github.corp.example", "/api/v3/**", "/api/graphql"))
	box.env = append(box.env, "GH_HOST=github.corp.example")
	for _, c := range []command{
		{`"login":"octocat"`, []string{"api", "user"}},
		{`"login":"octocat"`, []string{"api", "graphql", "-f", "query={ viewer { login } }"}},
	} {
		if out, ok := gh(c.args...); !ok || !strings.Contains(out, c.want) {
			t.Errorf("gh %s: %s", strings.Join(c.args, " "), out)
		}
	}
	if got, _ := corp.take(); len(got) != 2 {
		t.Errorf("the server saw %+v", got)
	}
	if out, ok := gh(deletion...); ok || !strings.Contains(out, "denied by policy") {
		t.Errorf("gh: %s", out)
	}
	if got, _ := corp.take(); len(got) > 0 {
		t.Errorf("the server saw %+v", got)
	}
	w.holdsNone(box.Name, token, "R_kgDO123")
}
