// Package graphql says which operations an HTTP request or a WebSocket message
// executes on a GraphQL server, and refuses everything of which that cannot be
// said with certainty. It decides nothing about who may run what, knows no
// schema, and does no I/O: bytes in, operations out.
//
//	res, err := graphql.Parse(graphql.Input{
//		Method:      "POST",
//		ContentType: "application/json",
//		Body:        []byte(`{"query":"query Q { me: viewer { login } ...F } fragment F on Query { rateLimit { cost } }"}`),
//	})
//	// res.Operations: [{Type: "query", Name: "Q", Fields: ["rateLimit", "viewer"]}]
//	// res.Body:       what to send on
//
// # What counts as an operation
//
//   - the parameters of a GET;
//   - the JSON object of a POST, and each object of an array (a batch);
//   - the payload of a subscribe or start message on a WebSocket.
//
// Of a document with several operations, the one that operationName selects.
// Its root fields are those a server could resolve at the top: real names
// whatever the alias, fragments and inline fragments expanded whatever their
// type condition, fields behind @skip and @include counted. A hash or an id
// without a document gives an Operation with only Persisted (and Name, when
// operationName selects within it), to be looked up by the caller.
//
// # Invariants
//
//   - What is sent on is what was judged: body, query string and message are
//     written anew from what was read. Members of an envelope without a meaning
//     here, and absent ones (null, the empty string), are left out. Other URL
//     parameters, extensions and the content of variables stay; numbers keep
//     their digits, members their order.
//   - A document is sent on as it came, to the byte, so that its hash holds.
//   - One reading: where JSON, URL or GraphQL readers differ, the request is
//     refused, not interpreted.
//   - What a Classifier remembers never changes an answer, and is bounded.
//   - Time and memory are linear in the size of the request. Fragments are
//     walked once each; nesting is limited before anything recurses.
//
// # Refusals
//
// Every error is an [*Error]. Requests that are broken or ambiguous:
//
//	invalid_utf8             text is not strict UTF-8 (UTF-16 is not JSON either)
//	byte_order_mark          text starts with a byte order mark
//	invalid_json             not JSON by the letter of RFC 8259, half surrogates included
//	trailing_bytes           something follows the JSON value
//	too_deep                 more than 128 levels of JSON or of brackets in a document
//	too_many_tokens          more than 20 000 tokens in a document
//	duplicate_key            a key comes twice in one object, at any depth, however escaped
//	key_variant              a key that some servers take for a control key: Query, query[]
//	wrong_type               a control key of another type than it must be, a batch element that is no object
//	empty_batch              an array without an element
//	nested_batch             an array in an array
//	body_with_get            a GET that also has a body
//	invalid_escape           a query string with a bad percent escape
//	duplicate_parameter      a control parameter twice in the URL of a GET
//	parameter_with_post      a control parameter in the URL of a POST
//	missing_document         neither a document nor a hash or an id
//	two_ids                  two of id, documentId and queryId
//	id_with_hash             an id and a persisted hash
//	id_with_document         an id and a document
//	hash_mismatch            a persisted hash that is not the SHA-256 of the document beside it
//	hash_version             a persistedQuery of another version than 1
//	ambiguous_text           a document that lexers are known to split differently
//	syntax_error             a document that does not parse
//	type_system              a document that defines types
//	no_operation             a document with nothing to execute
//	operation_name_required  several operations and no operationName
//	unknown_operation        an operationName that is not in the document
//	duplicate_operation      two operations of one name, or two without
//	duplicate_fragment       two fragments of one name
//	undefined_fragment       a spread of a fragment that is not in the document
//	fragment_cycle           a fragment that contains itself, used or not
//	unknown_message          a WebSocket message of a type that clients do not send
//
// Requests of a kind that is not supported:
//
//	unsupported_method            neither GET nor POST
//	unsupported_content_type      a POST of anything but application/json in UTF-8
//	unsupported_content_encoding  a compressed body
//	unsupported_subprotocol       a WebSocket without a known GraphQL subprotocol
//	empty_request                 a POST without a body, a GET without control parameters
//	too_large                     more than the limit in bytes
package graphql
