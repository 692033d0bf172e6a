package graphql

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// The keys inside extensions that name a persisted operation.
const (
	keyPersistedQuery = "persistedQuery"
	keyVersion        = "version"
	keyHash           = "sha256Hash"
)

// readExtensions reads the extensions object. What it holds beside
// persistedQuery is kept as it came.
func readExtensions(r *reader, e *envelope) (there bool, err error) {
	return r.optionalObject(keyExtensions, func(key string) (bool, error) {
		if key == keyPersistedQuery {
			return readPersistedQuery(r, e)
		}
		if err := checkVariant(key, func(c string) bool { return c == keyPersistedQuery }); err != nil {
			return false, err
		}
		return true, r.value()
	})
}

// readPersistedQuery reads extensions.persistedQuery as automatic persisted
// queries have it: {"version": 1, "sha256Hash": "…"}.
func readPersistedQuery(r *reader, e *envelope) (there bool, err error) {
	return r.optionalObject(keyPersistedQuery, func(key string) (bool, error) {
		switch key {
		case keyHash:
			e.hash, err = r.optionalString(key)
			return e.hash != "", err
		case keyVersion:
			return readVersion(r)
		}
		if err := checkVariant(key, func(c string) bool { return c == keyHash || c == keyVersion }); err != nil {
			return false, err
		}
		return true, r.value()
	})
}

func readVersion(r *reader) (there bool, err error) {
	c := r.peek()
	mark := len(r.out)
	if err := r.value(); err != nil {
		return false, err
	}
	switch v := string(r.out[mark:]); {
	case v == "1":
		return true, nil
	case v == "null" || v == `""`:
		return false, nil
	case c == '-' || c >= '0' && c <= '9':
		return false, refuse(HashVersion, "persistedQuery of another version than 1, the only one that is known")
	}
	return false, r.wrongType(keyVersion, "the number 1")
}

// operation says what runs when this envelope is executed.
func (e *envelope) operation(read documentReader) (Operation, error) {
	switch {
	case e.ids > 1:
		return Operation{}, refuse(TwoIDs, "two ids of a persisted operation: send one of id, documentId and queryId")
	case e.id != "" && e.hash != "":
		return Operation{}, refuse(IDWithHash, "an id together with a persisted hash: send one of them")
	case e.id != "" && e.document != "":
		return Operation{}, refuse(IDWithDocument, "an id together with a document: send one of them")
	case e.id != "":
		return Operation{Name: e.operationName, Persisted: e.id}, nil
	case e.document == "" && e.hash != "":
		return Operation{Name: e.operationName, Persisted: e.hash}, nil
	case e.document == "":
		return Operation{}, refuse(MissingDocument, "neither a query nor the hash or id of a persisted one")
	case e.hash != "":
		sum := sha256.Sum256([]byte(e.document))
		if want := hex.EncodeToString(sum[:]); !strings.EqualFold(want, e.hash) {
			return Operation{}, refuse(HashMismatch, "the persisted hash is not the document's, which is %s", want)
		}
	}
	return read(e.document, e.operationName)
}
