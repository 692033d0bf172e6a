package graphql

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// DefaultMaxBody is the limit on a request's body, in bytes, when Input says none.
const DefaultMaxBody = 65536

// Input is an HTTP request as far as it matters here.
type Input struct {
	Method          string // in upper case
	RawQuery        string // what follows "?" in the target, still escaped
	ContentType     string // the header; several lines joined with ", ", which is refused
	ContentEncoding string // the header, likewise; "" is identity
	Body            []byte // all of it, or at least one byte more than MaxBody

	// MaxBody limits the body, and the query string of a GET, in bytes; 0 is
	// DefaultMaxBody.
	MaxBody int
}

// Result is a request that was understood. Body and RawQuery are written anew
// from what was read: they, and nothing of the original, are to be sent on.
type Result struct {
	Operations []Operation // at least one; in the order of the batch
	Batch      bool        // the body was an array
	Body       []byte      // nil for a GET
	RawQuery   string
}

// Parse reads the operations of a request. Every error is an *Error; an error
// means that the request must not be sent on.
func Parse(in Input) (Result, error) { return parse(in, readDocument) }

func parse(in Input, read documentReader) (Result, error) {
	if in.MaxBody <= 0 {
		in.MaxBody = DefaultMaxBody
	}
	if in.Method != "GET" && in.Method != "POST" {
		return Result{}, refuse(UnsupportedMethod, "GraphQL is sent with GET or POST, and with no other method")
	}
	if e := in.ContentEncoding; e != "" && !strings.EqualFold(e, "identity") {
		return Result{}, refuse(UnsupportedEncoding, "Content-Encoding%s: send the body without compression", known(e, "gzip", "br", "deflate", "zstd", "compress"))
	}
	if len(in.Body) > in.MaxBody || len(in.RawQuery) > in.MaxBody {
		return Result{}, refuse(TooLarge, "request is larger than the limit of %d bytes", in.MaxBody)
	}
	params, err := readParameters(in.RawQuery)
	if err != nil {
		return Result{}, err
	}
	if in.Method == "GET" {
		if len(in.Body) > 0 {
			return Result{}, refuse(BodyWithGet, "GET with a body of %d bytes: parameters of a GET belong in the URL", len(in.Body))
		}
		return parseGet(params, read)
	}
	for _, p := range params {
		if p.control {
			return Result{}, refuse(ParameterWithPost, "POST with parameter %s in the URL: put it into the body", quote(p.key))
		}
	}
	if err := checkContentType(in.ContentType); err != nil {
		return Result{}, err
	}
	res, err := parsePost(in.Body, read)
	if err != nil {
		return Result{}, err
	}
	res.RawQuery = encodeParameters(params)
	return res, nil
}

// checkContentType takes application/json with at most a charset of UTF-8
// (RFC 9110, 8.3.1). Any other parameter could change what the server reads.
func checkContentType(header string) error {
	parts := strings.Split(header, ";")
	ok := strings.EqualFold(strings.Trim(parts[0], " \t"), "application/json")
	charsets := 0
	for _, p := range parts[1:] {
		p = strings.ToLower(strings.Trim(p, " \t"))
		switch p {
		case "": // RFC 9110, 5.6.6 allows an empty parameter
		case "charset=utf-8", `charset="utf-8"`:
			charsets++
		default:
			ok = false
		}
	}
	if !ok || charsets > 1 {
		return refuse(UnsupportedContentType, "Content-Type%s: send application/json, with charset utf-8 or none and no other parameter", known(strings.Trim(parts[0], " \t"),
			"application/json", "application/graphql", "application/graphql+json", "application/graphql-response+json",
			"application/x-www-form-urlencoded", "multipart/form-data", "multipart/mixed", "text/plain", "application/octet-stream"))
	}
	return nil
}

// checkText refuses bytes that JSON readers are known to read differently.
func checkText(text []byte) error {
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		return refuse(ByteOrderMark, "text starts with a byte order mark")
	}
	if !utf8.Valid(text) {
		return refuse(InvalidUTF8, "text is not valid UTF-8")
	}
	return nil
}
