package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"weir/rules"
)

func TestSOCKS(t *testing.T) {
	const (
		five  = "\x05\x02\x00\x02"
		four  = "\x04\x01\x00\x50\x00\x00\x00\x01me\x00evil.example\x00"
		short = "\x05\x01\x00"
	)
	for name, c := range map[string]struct {
		text string
		is   bool
	}{
		"version 5":                           {five, true},
		"version 5, one method":               {short, true},
		"version 5, private method":           {"\x05\x02\x00\x80", true},
		"version 5 and a request":             {short + "\x05\x01\x00\x03\x0cevil.example\x00\x50", true},
		"version 5 and a password":            {"\x05\x01\x02\x01\x02me\x02pw", true},
		"version 4":                           {four[:11], true},
		"version 4a":                          {four, true},
		"version 4, BIND":                     {"\x04\x02\x00\x50\xc6\x33\x64\x42\x00", true},
		"unfinished 5":                        {five[:3], true},
		"unfinished 4":                        {four[:6], true},
		"version 4 without an end":            {four[:8] + strings.Repeat("x", 100), true},
		"version 5 without methods":           {"\x05\x00\x0b\x03", false},
		"version 5, a method that is none":    {"\x05\x02\x00\x40", false},
		"version 5, then something else":      {short + "\x00\x00", false},
		"version 4, neither CONNECT nor BIND": {"\x04\x00\x00\x00\x01\x00\x00\x00\x16", false},
		"MongoDB, 261 bytes":                  {"\x05\x01\x00\x00" + strings.Repeat("\x01", 257), false},
		"version 6":                           {"\x06\x01\x00", false},
	} {
		claim, need := classify([]byte(c.text), netip.MustParseAddrPort("203.0.113.7:1080"), 80, true)
		if is := claim.Kind == rules.ClaimBroken && strings.Contains(claim.Problem, "SOCKS"); is != c.is || need != 0 {
			t.Errorf("%s: %+v, needs %d", name, claim, need)
		}
	}
	// However it comes in pieces, nothing of it passes as something else.
	for _, text := range []string{five, short, four} {
		for n := 1; n < len(text); n++ {
			claim, need := classify([]byte(text[:n]), netip.MustParseAddrPort("203.0.113.7:1080"), 80, false)
			if claim.Kind == rules.ClaimOther || need > 0 && need <= n {
				t.Errorf("%d bytes of %q: %+v, needs %d", n, text, claim, need)
			}
		}
	}
}
