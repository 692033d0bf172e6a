package policytest

import "errors"

// readRaw reads a request from bytes, as the relay does.
func readRaw(raw string) (method, target string, h headers, body []byte, err error) {
	return "", "", nil, nil, errors.New("raw requests cannot be read")
}
