package trust

import (
	"bytes"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// hashName is the name under which OpenSSL looks the authority up in hashDir:
// the hash of its subject and a number that tells authorities with equal
// hashes apart. It is the one that already holds own, or else the first that
// is free. See openssl-rehash(1).
func (in *installation) hashName(ca *x509.Certificate, own []byte) (string, error) {
	hash, err := subjectHash(ca)
	if err != nil {
		return "", err
	}
	for n := range 10 {
		name := fmt.Sprintf("%s/%08x.%d", hashDir, hash, n)
		file, err := in.root.ReadFile(name, maxBundle)
		if errors.Is(err, fs.ErrNotExist) || err == nil && bytes.Equal(file.Data, own) {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s holds ten authorities whose names hash to %08x: remove those that are not needed", hashDir, hash)
}

// subjectHash is X509_NAME_hash_ex(3): the first four bytes, little-endian, of
// the SHA-1 of the subject in canonical form: each value as UTF8String, lower
// case, white space trimmed and runs of it made one space, and without the
// outer SEQUENCE.
func subjectHash(ca *x509.Certificate) (uint32, error) {
	var sets []asn1.RawValue
	if _, err := asn1.Unmarshal(ca.RawSubject, &sets); err != nil {
		return 0, fmt.Errorf("subject of the authority: %w", err)
	}
	var canonical []byte
	for _, set := range sets {
		var attributes []struct {
			Type  asn1.ObjectIdentifier
			Value string
		}
		if _, err := asn1.UnmarshalWithParams(set.FullBytes, &attributes, "set"); err != nil {
			return 0, fmt.Errorf("subject of the authority: %w", err)
		}
		type attribute struct {
			Type  asn1.ObjectIdentifier
			Value string `asn1:"utf8"`
		}
		var out []attribute
		for _, a := range attributes {
			out = append(out, attribute{a.Type, canonicalText(a.Value)})
		}
		der, err := asn1.MarshalWithParams(out, "set")
		if err != nil {
			return 0, fmt.Errorf("subject of the authority: %w", err)
		}
		canonical = append(canonical, der...)
	}
	sum := sha1.Sum(canonical)
	return binary.LittleEndian.Uint32(sum[:4]), nil
}

// canonicalText is how OpenSSL compares names: of ASCII only, case and white
// space do not count.
func canonicalText(s string) string {
	words := strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' })
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, strings.Join(words, " "))
}
