package graphql

import (
	"fmt"
	"strings"
)

// A Code names one reason to refuse a request. Codes never change their
// meaning; the table in the package's documentation explains each.
type Code string

// What is not GraphQL over HTTP or WebSocket as this package reads it. Nothing
// says that the request is broken, but it cannot be judged.
const (
	UnsupportedMethod      Code = "unsupported_method"
	UnsupportedContentType Code = "unsupported_content_type"
	UnsupportedEncoding    Code = "unsupported_content_encoding"
	UnsupportedSubprotocol Code = "unsupported_subprotocol"
	EmptyRequest           Code = "empty_request"
	TooLarge               Code = "too_large"
)

// What is broken, or could mean one thing here and another at the server.
const (
	InvalidUTF8           Code = "invalid_utf8"
	ByteOrderMark         Code = "byte_order_mark"
	InvalidJSON           Code = "invalid_json"
	TrailingBytes         Code = "trailing_bytes"
	TooDeep               Code = "too_deep"
	TooManyTokens         Code = "too_many_tokens"
	DuplicateKey          Code = "duplicate_key"
	KeyVariant            Code = "key_variant"
	WrongType             Code = "wrong_type"
	EmptyBatch            Code = "empty_batch"
	NestedBatch           Code = "nested_batch"
	BodyWithGet           Code = "body_with_get"
	InvalidEscape         Code = "invalid_escape"
	DuplicateParameter    Code = "duplicate_parameter"
	ParameterWithPost     Code = "parameter_with_post"
	MissingDocument       Code = "missing_document"
	TwoIDs                Code = "two_ids"
	IDWithHash            Code = "id_with_hash"
	IDWithDocument        Code = "id_with_document"
	HashMismatch          Code = "hash_mismatch"
	HashVersion           Code = "hash_version"
	AmbiguousText         Code = "ambiguous_text"
	SyntaxError           Code = "syntax_error"
	TypeSystem            Code = "type_system"
	NoOperation           Code = "no_operation"
	OperationNameRequired Code = "operation_name_required"
	UnknownOperation      Code = "unknown_operation"
	DuplicateOperation    Code = "duplicate_operation"
	DuplicateFragment     Code = "duplicate_fragment"
	UndefinedFragment     Code = "undefined_fragment"
	FragmentCycle         Code = "fragment_cycle"
	UnknownMessage        Code = "unknown_message"
)

// Error is the only error type of this package: why a request is refused.
type Error struct {
	Code Code
	// Message is one line that says what is wrong; its length is bounded. It is
	// fit to be stored: names of operations and fragments, and those of protocol
	// elements that are widely known, may be in it; nothing else of the document,
	// and no value of a variable, parameter or header field.
	Message string
}

func (e *Error) Error() string { return "graphql: " + e.Message }

// Malformed reports whether the request is broken or ambiguous (to be answered
// with 400) rather than of a kind that is not supported (403).
func (e *Error) Malformed() bool {
	switch e.Code {
	case UnsupportedMethod, UnsupportedContentType, UnsupportedEncoding, UnsupportedSubprotocol, EmptyRequest, TooLarge:
		return false
	}
	return true
}

// maxQuoted bounds what a message repeats of the request.
const maxQuoted = 80

// quote makes untrusted text fit for a message.
func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}

// known repeats a value of the client's with a space before it, if it is one of
// a few that are no secret: whatever else it is, it stays out of messages.
func known(value string, list ...string) string {
	for _, k := range list {
		if strings.EqualFold(value, k) {
			return " " + k
		}
	}
	return ""
}

func refuse(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
