package graphql

// Operation is one executable operation with fragments expanded and aliases removed.
type Operation struct {
	Type   string   `json:"type"` // query, mutation or subscription
	Name   string   `json:"name,omitempty"`
	Fields []string `json:"fields,omitempty"` // root fields, real names, sorted, without duplicates
	// Persisted is the hash or id of a persisted operation that came without
	// its document; Type, Name and Fields are then empty until looked up.
	Persisted string `json:"persisted,omitempty"`
}
