package e2e

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

// A shop's administration API: everything may be read, products written, and
// nothing deleted.
const shopPolicy = `
version: 1
network_policies:
  shop:
    endpoints:
      - host: shop.example
        port: 443
        path: "/admin/api/*/graphql.json"
        protocol: graphql
        rules:
          - allow: {operation_type: query}
          - allow: {operation_type: mutation, fields: ["product*", inventoryAdjustQuantities]}
          - allow: {operation_type: mutation, operation_name: "Sync*", fields: ["*"]}
        deny_rules:
          - {operation_type: mutation, fields: ["*Delete", "*Bulk*"]}
`

// Queries by hash or id that were registered, and two documents.
var registryPolicy = fmt.Sprintf(`
version: 1
network_policies:
  registry:
    endpoints:
      - host: shop.example
        port: 443
        path: /graphql
        protocol: graphql
        persisted_queries: allow_registered
        graphql_persisted_queries:
          %s: {operation_type: query, operation_name: Me, fields: [me]}
          doc-17: {operation_type: query, fields: [projects]}
          doc-18: {operation_type: query}
          doc-19: {operation_type: query, fields: [billing]}
          doc-66: {operation_type: mutation, fields: [projectDelete]}
        rules:
          - allow: {operation_type: query, fields: [me, projects]}
`, sha("query Me { me }"))

func TestGraphQLPoliciesAdmitWhatTheySayAndNothingElse(t *testing.T) {
	o := newOutside(t)
	o.addName("shop.example", "198.51.100.22")
	outside := newAuthority(t)
	server := o.record("198.51.100.22:443", serverConfig(outside, "shop.example"), nil)
	w := startWeir(t, "tls:\n  extra_roots: ["+outside.file()+"]\n")
	box := w.trustedBox(shopPolicy)
	box.addClient()

	type request struct {
		path, body string // body "" is a GET
		status     int
		reason     string
	}
	document := func(text string) string { return body(t, map[string]any{"query": text}) }
	const admin = "/admin/api/2026-01/graphql.json"
	for _, c := range []struct {
		name, policy string
		requests     []request
	}{
		{"shop", shopPolicy, []request{
			{admin, document("{ shop { name } products(first: 3) { nodes { id } } }"), 200, ""},
			{admin, document("query { node(id: 1) { id } }"), 200, ""},
			{admin, document("mutation { productUpdate(input: {}) { product { id } } }"), 200, ""},
			{admin, document("mutation { a: productUpdate(input: {}) { __typename } __typename inventoryAdjustQuantities(input: {}) { __typename } }"), 200, ""},
			{admin, document("mutation SyncPrices { priceListUpdate(id: 1) { __typename } }"), 200, ""},
			{"/admin/api/2026-01/x/../graphql.json", document("{ shop { name } }"), 200, ""},
			{admin, document("mutation { productDelete(input: {}) { deletedProductId } }"), 403, "deny_rules"},
			{admin, document("mutation { productUpdate: productDelete(input: {}) { deletedProductId } }"), 403, "deny_rules"},
			{admin, document("mutation SyncAway { productDelete(input: {}) { deletedProductId } }"), 403, "deny_rules"},
			{admin, document("mutation { productBulkUpdate(input: {}) { __typename } }"), 403, "deny_rules"},
			{admin, document("mutation { orderCancel(id: 1) { __typename } }"), 403, "not among"},
			{admin, document("mutation { productUpdate(input: {}) { __typename } orderCancel(id: 1) { __typename } }"), 403, "not among"},
			{admin, document("subscription { products { id } }"), 403, "not among"},
			{admin, document("{ __typename ... on Mutation { productDelete } }"), 200, ""}, // a query whatever it spreads on
			{admin, `[` + document("{ shop { name } }") + `,` + document("mutation { orderCancel(id: 1) { __typename } }") + `]`, 403, "not among"},
			{admin, document("mutation { __typename }"), 403, "not among"},
			{"/admin/api/graphql.json", document("{ shop { name } }"), 403, "no endpoint"},
			{"/admin/api/2026-01/extra/graphql.json", document("{ shop { name } }"), 403, "no endpoint"},
			{"/admin/oauth/access_token", document("{ shop { name } }"), 403, "no endpoint"},
		}},
		{"registry", registryPolicy, []request{
			{"/graphql", body(t, map[string]any{"extensions": persisted(sha("query Me { me }"))}), 200, ""},
			{"/graphql", body(t, map[string]any{"operationName": "Me", "extensions": persisted(sha("query Me { me }"))}), 200, ""},
			{"/graphql", body(t, map[string]any{"query": "query Me { me }", "extensions": persisted(sha("query Me { me }"))}), 200, ""},
			{"/graphql", body(t, map[string]any{"id": "doc-17"}), 200, ""},
			{"/graphql", body(t, map[string]any{"documentId": "doc-17", "variables": map[string]any{"first": 3}}), 200, ""},
			{"/graphql?extensions=" + url.QueryEscape(body(t, persisted(sha("query Me { me }")))), "", 200, ""},
			{"/graphql", document("{ projects { id } }"), 200, ""},
			{"/graphql", document("{ billing }"), 403, "not among"},
			{"/graphql", body(t, map[string]any{"id": "doc-18"}), 403, "not among"},
			{"/graphql", body(t, map[string]any{"id": "doc-19"}), 403, "not among"},
			{"/graphql", body(t, map[string]any{"id": "doc-66"}), 403, "not among"},
			{"/graphql", body(t, map[string]any{"id": "doc-1"}), 403, "not registered"},
			{"/graphql", body(t, map[string]any{"id": "DOC-17"}), 403, "not registered"},
			{"/graphql", body(t, map[string]any{"extensions": persisted(sha("{ me }"))}), 403, "not registered"},
			{"/graphql?extensions=" + url.QueryEscape(body(t, persisted(sha("{ me }")))), "", 403, "not registered"},
			{"/graphql", body(t, map[string]any{"id": "doc-17", "query": "{ projects { id } }"}), 400, "malformed"},
			{"/graphql", body(t, map[string]any{"id": "doc-17", "queryId": "doc-66"}), 400, "malformed"},
			{"/graphql", body(t, map[string]any{"id": "doc-17", "extensions": persisted(sha("query Me { me }"))}), 400, "malformed"},
			{"/graphql", body(t, map[string]any{"query": "{ billing }", "extensions": persisted(sha("query Me { me }"))}), 400, "malformed"},
			{"/graphql", `{}`, 400, "malformed"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.setPolicy(box, c.policy)
			for _, r := range c.requests {
				args := []string{"request", "-2", "-H", "Content-Type: application/json", "-target", r.path}
				if r.body == "" {
					args = []string{"request", "-2", "-X", "GET", "-target", r.path}
				}
				got := box.client(r.body, append(args, "https://shop.example/")...)
				seen, _ := server.take()
				if got.Status != r.status {
					t.Errorf("%s %s: %+v, want %d", r.path, r.body, got, r.status)
					continue
				}
				if r.status == 200 {
					if len(seen) != 1 {
						t.Errorf("%s %s: the server saw %+v", r.path, r.body, seen)
					}
					continue
				}
				said := refusal(t, got.Body)
				if !strings.Contains(said.Reason, r.reason) || len(seen) > 0 || fmt.Sprint(said.Event) != got.Event {
					t.Errorf("%s %s: told %+v, the server saw %+v", r.path, r.body, said, seen)
				}
			}
		})
	}
}
