package graphql

import "strings"

// The control keys: what of an envelope decides about the operation that runs.
const (
	keyQuery         = "query"
	keyOperationName = "operationName"
	keyVariables     = "variables"
	keyExtensions    = "extensions"
	keyID            = "id"
	keyDocumentID    = "documentId"
	keyQueryID       = "queryId"
)

func isControl(key string) bool {
	switch key {
	case keyQuery, keyOperationName, keyVariables, keyExtensions, keyID, keyDocumentID, keyQueryID:
		return true
	}
	return false
}

// An envelope is what is sent around one document. Empty strings are absent.
type envelope struct {
	document      string
	operationName string
	id            string // under whichever of the three keys
	ids           int    // how many of the three keys were there
	hash          string // extensions.persistedQuery.sha256Hash
}

// set takes over a control value that is a string.
func (e *envelope) set(key, value string) {
	if value == "" {
		return
	}
	switch key {
	case keyQuery:
		e.document = value
	case keyOperationName:
		e.operationName = value
	default:
		e.id = value
		e.ids++
	}
}

// parsePost reads a body: one envelope or a batch of them.
func parsePost(body []byte, read documentReader) (Result, error) {
	if len(body) == 0 {
		return Result{}, refuse(EmptyRequest, "POST without a body: send a JSON object with a query")
	}
	if err := checkText(body); err != nil {
		return Result{}, err
	}
	r := &reader{text: string(body), out: make([]byte, 0, len(body)+16)}
	var res Result
	one := func() error {
		op, err := readEnvelope(r, read)
		if err == nil {
			res.Operations = append(res.Operations, op)
		}
		return err
	}
	var err error
	if r.peek() == '[' {
		res.Batch = true
		err = r.array(one)
	} else {
		err = one()
	}
	if err == nil {
		err = r.end()
	}
	if err != nil {
		return Result{}, err
	}
	if len(res.Operations) == 0 {
		return Result{}, refuse(EmptyBatch, "batch without a request")
	}
	res.Body = r.out
	return res, nil
}

// readEnvelope reads one envelope and its operation. Members that are absent
// by meaning (null, the empty string) or unknown are not written: a server
// that gave an unknown member a meaning would do what was never judged.
func readEnvelope(r *reader, read documentReader) (Operation, error) {
	switch r.peek() {
	case '{':
	case '[':
		return Operation{}, refuse(NestedBatch, "JSON at byte %d: a batch inside a batch", r.pos)
	case 0:
		return Operation{}, r.fail("a request should be here")
	default:
		// A text that is no JSON at all is better named so.
		if err := r.value(); err != nil {
			return Operation{}, err
		}
		return Operation{}, refuse(WrongType, "JSON at byte %d: a request is an object", r.pos)
	}
	var e envelope
	err := r.object(func(key string) (bool, error) {
		switch {
		case key == keyVariables:
			return r.optionalObject(key, func(string) (bool, error) { return true, r.value() })
		case key == keyExtensions:
			return readExtensions(r, &e)
		case isControl(key):
			s, err := r.optionalString(key)
			e.set(key, s)
			return s != "", err
		}
		if err := checkVariant(key, isControl); err != nil {
			return false, err
		}
		return false, r.value()
	})
	if err != nil {
		return Operation{}, err
	}
	return e.operation(read)
}

// checkVariant refuses a key that some reader could take for a control key:
// encoding/json ignores case, and its folding knows "ſ" and the Kelvin sign.
func checkVariant(key string, control func(string) bool) error {
	for _, c := range [...]string{
		keyQuery, keyOperationName, keyVariables, keyExtensions, keyID, keyDocumentID, keyQueryID,
		keyPersistedQuery, keyVersion, keyHash, keyType, keyPayload,
	} {
		if control(c) && c != key && strings.EqualFold(c, key) {
			return refuse(KeyVariant, "key %s: write %q", quote(key), c)
		}
	}
	return nil
}

// optionalString reads a string, or null as the empty string.
func (r *reader) optionalString(key string) (string, error) {
	switch r.peek() {
	case '"':
		s, err := r.string()
		r.out = appendString(r.out, s)
		return s, err
	case 'n':
		return "", r.value()
	}
	return "", r.wrongType(key, "a string")
}

// optionalObject reads an object, or nothing: null or the empty string.
func (r *reader) optionalObject(key string, member func(key string) (bool, error)) (there bool, err error) {
	switch r.peek() {
	case '{':
		return true, r.object(member)
	case 'n':
		return false, r.value()
	case '"':
		if s, err := r.string(); err != nil || s == "" {
			return false, err
		}
	}
	return false, r.wrongType(key, "an object")
}

func (r *reader) wrongType(key, want string) error {
	return refuse(WrongType, "JSON at byte %d: %q must be %s", r.pos, key, want)
}
