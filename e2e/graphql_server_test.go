package e2e

import (
	"encoding/json"
	"net/http"
	"sync"

	"github.com/vektah/gqlparser/v2"
	"github.com/vektah/gqlparser/v2/ast"
)

// GraphQLServer is a GraphQL server in Go: it checks documents against its
// schema and answers with the fields that they select.
type GraphQLServer struct {
	schema *ast.Schema
	mu     sync.Mutex
	ran    []string // root fields
}

func newGraphQLServer() *GraphQLServer {
	return &GraphQLServer{schema: gqlparser.MustLoadSchema(&ast.Source{Input: `
		type Project { id: ID! name: String! }
		type Query { me: String! project(id: ID!): Project }
		type Mutation { volumeDelete(volumeId: String!): Boolean! projectDelete(id: ID!): Boolean! }`})}
}

func (s *GraphQLServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Query, OperationName string
		Variables            map[string]any
	}
	err := json.NewDecoder(r.Body).Decode(&in)
	var doc *ast.QueryDocument
	if err == nil {
		if d, errs := gqlparser.LoadQuery(s.schema, in.Query); len(errs) > 0 {
			err = errs
		} else {
			doc = d
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(400)
		json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{"message": err.Error()}}})
		return
	}
	op := doc.Operations.ForName(in.OperationName)
	for _, f := range fieldsOf(op.SelectionSet) {
		s.mu.Lock()
		s.ran = append(s.ran, f.Name)
		s.mu.Unlock()
	}
	json.NewEncoder(w).Encode(map[string]any{"data": selected(op.SelectionSet, in.Variables, nil)})
}

// executed are the root fields of all operations so far.
func (s *GraphQLServer) executed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.ran...)
}

// fieldsOf are the fields of a selection, fragments included.
func fieldsOf(set ast.SelectionSet) (fields []*ast.Field) {
	for _, one := range set {
		switch one := one.(type) {
		case *ast.Field:
			fields = append(fields, one)
		case *ast.InlineFragment:
			fields = append(fields, fieldsOf(one.SelectionSet)...)
		case *ast.FragmentSpread:
			fields = append(fields, fieldsOf(one.Definition.SelectionSet)...)
		}
	}
	return fields
}

// selected is the object that a selection gets; project is the one it is about.
func selected(set ast.SelectionSet, variables map[string]any, project any) map[string]any {
	object := map[string]any{}
	for _, f := range fieldsOf(set) {
		var value any
		switch f.Name {
		case "__typename":
			value = f.ObjectDefinition.Name
		case "me":
			value = "tester"
		case "project":
			value = selected(f.SelectionSet, variables, f.ArgumentMap(variables)["id"])
		case "id":
			value = project
		case "name":
			value = "project " + project.(string)
		default:
			value = true
		}
		object[f.Alias] = value
	}
	return object
}
