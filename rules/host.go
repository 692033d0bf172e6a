package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // bytes of a name in text form, RFC 1035 2.3.4
	maxLabel = 63  // bytes of a label, RFC 1035 2.3.4
)

// names is IDNA2008 with the mapping of UTS 46, as idna.Lookup, but for the
// two of its checks that refuse names in daily use: underscores (_dmarc,
// RFC 8552) and hyphens in the third and fourth place (r3---sn-x.example).
var names = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckJoiners(true),
	idna.StrictDomainName(false), idna.CheckHyphens(false), idna.Transitional(false))

// ErrAddress is returned, wrapped, by CanonicalName for text that names an
// address rather than a host: "203.0.113.7", "::1", "2130706433", "0177.1".
// Of these only the usual forms, which netip.ParseAddr reads, are addresses
// to Weir; the rest is refused everywhere.
var ErrAddress = errors.New("an address is not a name")

// CanonicalName returns the one form in which a host name is stored and
// looked up: lower case, without the trailing dot, IDNA A-labels.
//
// It refuses, quoting the name, what is not a host name: an empty name or
// label, a label over 63 bytes, a name over 253, anything but letters,
// digits, hyphen and underscore in a label (so NUL, control bytes, spaces,
// percent signs, and escaped dots as in `a\.b`), names that IDNA refuses, and
// names whose last label is a number, which some programs read as an IPv4
// address (ErrAddress).
func CanonicalName(s string) (string, error) {
	if isCanonicalName(s) {
		return s, nil
	}
	n := strings.TrimSuffix(s, ".")
	if n == "" {
		return "", fmt.Errorf("name %q: empty", s)
	}
	if len(s) > 4*maxName {
		return "", fmt.Errorf("name %q…: longer than %d bytes", s[:40], maxName)
	}
	if _, err := netip.ParseAddr(n); err == nil {
		return "", fmt.Errorf("name %q: %w", s, ErrAddress)
	}
	for _, c := range n { // before IDNA, so that its mapping hides nothing
		if c == utf8.RuneError || c < 0x80 && !nameByte(byte(unicode.ToLower(c))) && c != '.' {
			return "", fmt.Errorf("name %q: %q may not be in a host name", s, c)
		}
	}
	mapped, err := names.ToASCII(n)
	if err != nil {
		return "", fmt.Errorf("name %q: not a valid international name: %w", s, err)
	}
	mapped = strings.ToLower(mapped)
	if err := checkName(mapped); err != nil {
		return "", fmt.Errorf("name %q: %w", s, err)
	}
	return mapped, nil
}

// isCanonicalName reports, without allocating, whether s is in canonical form
// already. Names with A-labels go the long way, for IDNA to check them.
func isCanonicalName(s string) bool {
	return !strings.Contains(s, "xn--") && checkName(s) == nil
}

func checkName(s string) error {
	if s == "" {
		return errEmptyName
	}
	if len(s) > maxName {
		return errLongName
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if !nameByte(s[i]) {
				return errNameByte
			}
			continue
		}
		switch {
		case i == start:
			return errEmptyLabel
		case i-start > maxLabel:
			return errLongLabel
		}
		if i == len(s) && numeric(s[start:]) {
			return errNumber
		}
		start = i + 1
	}
	return nil
}

var (
	errEmptyName  = errors.New("empty")
	errEmptyLabel = errors.New("has an empty label")
	errLongName   = errors.New("longer than 253 bytes")
	errLongLabel  = errors.New("has a label longer than 63 bytes")
	errNumber     = fmt.Errorf("its last label is a number, so some programs read it as an IPv4 address: %w", ErrAddress)
	errNameByte   = errors.New("only letters, digits, hyphen and underscore may be in a host name")
)

// lookupName is CanonicalName for names on the path of a decision: it does
// not allocate when s is canonical, and trusts A-labels, which match only the
// rules that spell them the same.
func lookupName(s string) (string, error) {
	if checkName(s) == nil {
		return s, nil
	}
	return CanonicalName(s)
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// numeric reports whether a last label makes a name an IPv4 address to the
// parsers of the web: decimal, octal, or hexadecimal with 0x.
func numeric(label string) bool {
	digits := "0123456789"
	if rest, ok := strings.CutPrefix(label, "0x"); ok {
		label, digits = rest, "0123456789abcdef"
	}
	return strings.Trim(label, digits) == ""
}
