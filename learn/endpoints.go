package learn

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"weir/graphql"
	"weir/rules"
)

// endpoint is one endpoint of a site.
type endpoint struct {
	path     string // glob; "": all that no other endpoint has
	protocol rules.Protocol
	slashes  bool // encoded slashes were seen
	maxBody  int  // of GraphQL; 0: as usual
	reduced  bool // more was folded than ids
	requests []request
}

// request is an entry of an endpoint's rules.
type request struct {
	seen
	methods []string
	path    string

	operationType string
	operationName string
	fields        []string
}

// endpoints sorts a site's requests into endpoints: one for each path that
// speaks GraphQL or WebSocket, and one for all the others.
func (l *learner) endpoints(s *site) {
	protocols := map[string]rules.Protocol{}
	for i := range s.requests {
		o := &s.requests[i]
		switch {
		case len(o.Operations) > 0:
			protocols[o.Path] = rules.ProtocolGraphQL
		case protocols[o.Path] == "" && (o.Upgrade == "websocket" || message(o.Method)):
			protocols[o.Path] = rules.ProtocolWebSocket
		}
	}
	byPath := map[string][]Observation{}
	var plain []Observation
	for _, o := range s.requests {
		switch protocol := protocols[o.Path]; {
		case protocol == "":
			plain = append(plain, o)
		case protocol == rules.ProtocolGraphQL && len(o.Operations) == 0 && o.Upgrade != "websocket":
			l.left = append(l.left, Left{o, "the path speaks GraphQL, and this was none"})
		case protocol == rules.ProtocolWebSocket && o.Upgrade != "websocket" && !message(o.Method):
			l.left = append(l.left, Left{o, "the path speaks WebSocket, and this was none"})
		default:
			byPath[o.Path] = append(byPath[o.Path], o)
		}
	}
	s.endpoints = nil
	webSockets := map[string]*endpoint{}
	ways := map[string]string{}
	if !l.exactWays {
		var paths []string
		for path, protocol := range protocols {
			if protocol == rules.ProtocolWebSocket {
				paths = append(paths, path)
			}
		}
		ways, _ = foldPaths(paths)
	}
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		if protocols[path] == rules.ProtocolGraphQL {
			s.endpoints = append(s.endpoints, l.graphQL(path, byPath[path]))
			continue
		}
		glob := cmp.Or(ways[path], exact(path))
		e := webSockets[glob]
		if e == nil {
			e = &endpoint{path: glob, protocol: rules.ProtocolWebSocket, requests: []request{{path: glob}}}
			webSockets[glob] = e
		}
		e.slashes = e.slashes || hasSlash(path)
		r := &e.requests[0]
		for i := range byPath[path] {
			o := &byPath[path][i]
			r.add(o)
			if !slices.Contains(r.methods, o.Method) {
				r.methods = append(r.methods, o.Method)
			}
		}
	}
	for _, glob := range slices.Sorted(maps.Keys(webSockets)) {
		e := webSockets[glob]
		slices.Sort(e.requests[0].methods)
		s.endpoints = append(s.endpoints, *e)
	}
	if len(plain) > 0 {
		s.endpoints = append(s.endpoints, rest(plain))
	}
}

func message(method string) bool {
	return method == rules.MethodWebSocketText || method == rules.MethodWebSocketBinary
}

// exact is the glob of one path.
func exact(path string) string {
	var b strings.Builder
	for _, p := range parts(path) {
		if b.Len()+1+len(p.glob) > maxGlob {
			b.WriteString("/**")
			break
		}
		b.WriteString("/" + p.glob)
	}
	return b.String()
}

func hasSlash(path string) bool { return strings.Contains(path, "%2F") }

// rest is the endpoint for requests that are neither GraphQL nor WebSocket.
func rest(obs []Observation) endpoint {
	e := endpoint{protocol: rules.ProtocolREST}
	var paths []string
	for _, o := range obs {
		paths = append(paths, o.Path)
		e.slashes = e.slashes || hasSlash(o.Path)
	}
	var globs map[string]string
	globs, e.reduced = foldPaths(paths)
	byGlob := map[string]*request{}
	for i := range obs {
		o := &obs[i]
		glob := globs[o.Path]
		r := byGlob[glob]
		if r == nil {
			r = &request{path: glob}
			byGlob[glob] = r
		}
		r.add(o)
		if !slices.Contains(r.methods, o.Method) {
			r.methods = append(r.methods, o.Method)
		}
	}
	for _, glob := range slices.Sorted(maps.Keys(byGlob)) {
		r := byGlob[glob]
		slices.Sort(r.methods)
		if slices.Contains(r.methods, "GET") { // which covers HEAD
			r.methods = slices.DeleteFunc(r.methods, func(m string) bool { return m == "HEAD" })
		}
		e.requests = append(e.requests, *r)
	}
	return e
}

// graphQL is the endpoint for a path that speaks GraphQL.
func (l *learner) graphQL(path string, obs []Observation) endpoint {
	e := endpoint{path: exact(path), protocol: rules.ProtocolGraphQL, slashes: hasSlash(path)}
	type operation struct{ kind, name string }
	known := map[operation]*request{}
	fields := map[operation]map[string]bool{}
	most := int64(0)
	for i := range obs {
		o := &obs[i]
		if slices.ContainsFunc(o.Operations, func(op graphql.Operation) bool { return op.Type == "" }) {
			l.left = append(l.left, Left{*o, "the operation came as a hash or id only: register it under graphql_persisted_queries"})
			continue
		}
		most = max(most, o.MostOut)
		for _, op := range o.Operations {
			k := operation{op.Type, op.Name}
			if known[k] == nil {
				known[k] = &request{operationType: op.Type, operationName: op.Name}
				fields[k] = map[string]bool{}
			}
			known[k].add(o)
			for _, f := range op.Fields {
				fields[k][f] = true
			}
		}
	}
	for k, r := range known {
		r.fields = slices.Sorted(maps.Keys(fields[k]))
		e.requests = append(e.requests, *r)
	}
	slices.SortFunc(e.requests, func(a, b request) int {
		return cmp.Or(cmp.Compare(a.operationType, b.operationType), cmp.Compare(a.operationName, b.operationName))
	})
	// The bytes sent include the head of the request, so this is rather too much.
	if most > rules.DefaultMaxBody*9/10 {
		e.maxBody = rules.DefaultMaxBody
		for int64(e.maxBody) < most && e.maxBody < 16<<20 {
			e.maxBody *= 2
		}
	}
	return e
}
