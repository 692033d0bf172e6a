package rules

import (
	"fmt"
	"slices"

	"weir/graphql"
)

// operation is a GraphQL operation as it is judged: one that came with its
// document, or what a registry says about one that did not.
type operation struct {
	graphql.Operation
	nameUnknown   bool // a registry entry without operation_name
	fieldsUnknown bool // a registry entry without fields
}

// resolve looks a persisted operation up in the endpoint's registry.
func (e *Endpoint) resolve(op graphql.Operation) (operation, bool) {
	if op.Persisted == "" {
		return operation{Operation: op}, true
	}
	entry, ok := e.Registry[op.Persisted]
	if !ok || !e.AllowRegistered {
		return operation{}, false
	}
	op.Type, op.Name, op.Fields = entry.Type, entry.Name, entry.Fields
	return operation{Operation: op, nameUnknown: entry.Name == "", fieldsUnknown: len(entry.Fields) == 0}, true
}

// allowsOperation reports whether one allow rule or the preset covers op.
func (e *Endpoint) allowsOperation(op operation) bool {
	if e.Access != "" {
		return slices.Contains(presetTypes(e.Access), op.Type)
	}
	return slices.ContainsFunc(e.Allow, func(r RequestRule) bool { return r.allowsOperation(op) })
}

func (r *RequestRule) allowsOperation(op operation) bool {
	if r.OperationType != "" && r.OperationType != op.Type {
		return false
	}
	if r.OperationName != "" && (op.nameUnknown || !matchFlat(r.OperationName, op.Name)) {
		return false
	}
	if len(r.Fields) == 0 {
		return true
	}
	if len(op.Fields) == 0 { // also when they are unknown
		return false
	}
	for _, f := range op.Fields {
		if f == "__typename" && len(op.Fields) > 1 {
			continue // says nothing but a type's name, and clients add it unasked
		}
		if !matchAny(r.Fields, f) {
			return false
		}
	}
	return true
}

// deniesOperation reports whether the deny rule covers op; field names what
// it matched, "" when that was the operation as such. What is unknown matches.
func (r *RequestRule) deniesOperation(op operation) (field string, denied bool) {
	if r.OperationType != "" && r.OperationType != op.Type {
		return "", false
	}
	if r.OperationName != "" && !op.nameUnknown && !matchFlat(r.OperationName, op.Name) {
		return "", false
	}
	if len(r.Fields) == 0 || op.fieldsUnknown {
		return "", true
	}
	for _, f := range op.Fields {
		if matchAny(r.Fields, f) {
			return f, true
		}
	}
	return "", false
}

// describeOperation names an operation, for a person.
func describeOperation(op graphql.Operation) string {
	switch {
	case op.Type == "":
		return fmt.Sprintf("persisted operation %q", op.Persisted)
	case op.Name != "":
		return fmt.Sprintf("%s %q", op.Type, op.Name)
	}
	return "unnamed " + op.Type
}
