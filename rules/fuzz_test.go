package rules

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// A destination that is accepted is canonical after one round, and what it
// matches is what its canonical form matches.
func FuzzDestination(f *testing.F) {
	for _, s := range []string{
		"*", "a.test", "*.a.test", "**.A.test.", "a*b", "10.0.0.0/8", "::ffff:1.2.3.4/100", "fe80::1%eth0", "2130706433",
		"0177.1", "bücher.test", "xn--bcher-kva.test", "_dmarc.a.test", "a\x00.test", "1.2.3.4.", "０x7f.1", "a.test。", "*.*", "/", "1/2",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, _, err := Canonical(Rule{Destination: s, Action: ActionAllow})
		if err != nil {
			if len(s) < 100 && !strings.Contains(err.Error(), "destination ") {
				t.Fatalf("%q: the error does not say what it is about: %v", s, err)
			}
			return
		}
		again, _, err := Canonical(c)
		if err != nil || again.Destination != c.Destination {
			t.Fatalf("%q: %q, then %q: %v", s, c.Destination, again.Destination, err)
		}
		if strings.ContainsFunc(c.Destination, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' || 'A' <= r && r <= 'Z' }) {
			t.Fatalf("%q: %q is not canonical", s, c.Destination)
		}
		d, err := parseDestination(c.Destination)
		if err != nil {
			t.Fatal(err)
		}
		if d.kind == address && (d.prefix.Addr().Is4In6() || d.prefix.Addr().Zone() != "") || d.kind == network && d.prefix != d.prefix.Masked() {
			t.Fatalf("%q: %v", s, d.prefix)
		}
	})
}

// Two spellings of a name are one name, and no name is an address.
func FuzzCanonicalName(f *testing.F) {
	for _, s := range []string{"a.test", "A.TEST.", "bücher.test", "ＡＢＣ.test", "a..b", "a\\.b", "1.2.3.4", "0x7f.1", "xn--a", "a.0x", "r3---sn-x.test", "٣.test", "a.１"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := CanonicalName(s)
		if err != nil {
			return
		}
		again, err := CanonicalName(c)
		if err != nil || again != c {
			t.Fatalf("%q: %q, then %q: %v", s, c, again, err)
		}
		if upper, err := CanonicalName(strings.ToUpper(c) + "."); err != nil || upper != c {
			t.Fatalf("%q: %q in upper case is %q: %v", s, c, upper, err)
		}
		if _, err := netip.ParseAddr(c); err == nil {
			t.Fatalf("%q: %q is an address", s, c)
		}
		if looked, err := lookupName(c); err != nil || looked != c {
			t.Fatalf("%q: looked up as %q: %v", s, looked, err)
		}
	})
}

// A port set holds what its text says, and its canonical text says the same.
func FuzzPorts(f *testing.F) {
	for _, s := range []string{"*", "", "80", "80,443,8000-9000", "1-65535", "65535,1-65534", "90-80", "0", "65536", "+1", " 1 , 2 ", "1-2-3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := parsePorts(s)
		if err != nil {
			return
		}
		again, err := parsePorts(set.String())
		if err != nil || !slices.Equal(again.spans, set.spans) || again.count != set.count {
			t.Fatalf("%q: %q: %v", s, set, err)
		}
		n := 0
		for port := range 1 << 16 {
			if set.contains(uint16(port)) {
				n++
			}
		}
		if n != set.count || set.contains(0) {
			t.Fatalf("%q: holds %d ports, counts %d", s, n, set.count)
		}
		left := 0
		for _, p := range set.minus([]span{{1, everyPort}}) {
			for port := int(p.first); port <= int(p.last); port++ {
				if left++; set.contains(uint16(port)) {
					t.Fatalf("%q: %d is in both the set and what is left without it", s, port)
				}
			}
		}
		if left+n != everyPort {
			t.Fatalf("%q: %d in the set and %d outside", s, n, left)
		}
	})
}

// No address that embeds a forbidden one passes the guard under "allow *".
func FuzzEmbeddedAddresses(f *testing.F) {
	for _, s := range []string{"64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::ffff:0.0.0.0", "fe80::5efe:10.0.0.1", "2001::1", "::1", "::2"} {
		a := netip.MustParseAddr(s).As16()
		f.Add(a[:])
	}
	l, err := NewLayer(Session, []Rule{{ID: "any", Destination: "*", Action: ActionAllow}})
	if err != nil {
		f.Fatal(err)
	}
	p := Compile(Stack{Layers: []*Layer{l}})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		d := p.Decide(Request{Time: naiveNow, Stage: Connect, Transport: TCP, Addr: a, Port: 80, Captured: true})
		means, n := embedded(a.Unmap())
		for _, m := range append(means[:n:n], a.Unmap()) {
			if special := m.IsPrivate() || m.IsLoopback() || m.IsLinkLocalUnicast() || m.IsMulticast() || m.IsUnspecified(); special && d.Verdict != Deny {
				t.Fatalf("%s, which means %s: %+v", a, m, d)
			}
		}
	})
}
