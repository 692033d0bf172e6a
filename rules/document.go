package rules

// Document is a parsed and validated policy document.
type Document struct {
	Source string // file name or "" ; for messages
	Text   string // as given, YAML or JSON
	// Rules are the plain rules and, after them, one rule per endpoint, host
	// and port set, with Endpoint set.
	Rules []Rule
}

// A Warning is something in a document that is accepted and still worth a look.
type Warning struct {
	Source       string // as given to ParseDocument
	Line, Column int    // from 1; 0 when unknown
	Message      string
}
