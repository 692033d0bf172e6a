package graphql

// Operation is one executable operation with fragments expanded and aliases removed.
type Operation struct {
	Type string `json:"type"` // query, mutation or subscription
	// Name is the operation's own name; for a persisted operation it is the
	// operationName that was sent with the hash or id, which selects what runs.
	Name   string   `json:"name,omitempty"`
	Fields []string `json:"fields,omitempty"` // root fields, real names, sorted, without duplicates
	// Persisted is the hash or id of a persisted operation that came without
	// its document; Type and Fields are then empty until looked up. It is as
	// sent: hexadecimal digits keep their case.
	Persisted string `json:"persisted,omitempty"`
}
