package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// clientHello returns what a crypto/tls client sends first.
func clientHello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		tls.Client(here, c).Handshake()
		here.Close()
	}()
	there.SetReadDeadline(time.Now().Add(5 * time.Second))
	head := make([]byte, recordHeader)
	if _, err := io.ReadFull(there, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(there, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// oracle reads a hello as crypto/tls does; ok is false when it refuses it.
func oracle(b []byte) (name string, ok bool) {
	var got *tls.ClientHelloInfo
	stop := errors.New("seen")
	tls.Server(&reading{bytes.NewReader(b)}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			got = h
			return nil, stop
		},
	}).Handshake()
	if got == nil {
		return "", false
	}
	return got.ServerName, true
}

type reading struct{ *bytes.Reader }

func (reading) Write(b []byte) (int, error)      { return len(b), nil }
func (reading) Close() error                     { return nil }
func (reading) LocalAddr() net.Addr              { return nil }
func (reading) RemoteAddr() net.Addr             { return nil }
func (reading) SetDeadline(time.Time) error      { return nil }
func (reading) SetReadDeadline(time.Time) error  { return nil }
func (reading) SetWriteDeadline(time.Time) error { return nil }

// split spreads the handshake message of a one-record hello over records of n bytes.
func split(b []byte, n int) []byte {
	var out []byte
	for body := b[recordHeader:]; len(body) > 0; {
		k := min(n, len(body))
		out = append(out, typeHandshake, b[1], b[2], byte(k>>8), byte(k))
		out = append(out, body[:k]...)
		body = body[k:]
	}
	return out
}

// handmade builds a hello with the given extensions (type, body pairs).
func handmade(exts ...any) []byte {
	var e []byte
	for i := 0; i < len(exts); i += 2 {
		body := exts[i+1].([]byte)
		e = binary.BigEndian.AppendUint16(e, uint16(exts[i].(int)))
		e = binary.BigEndian.AppendUint16(e, uint16(len(body)))
		e = append(e, body...)
	}
	m := append([]byte{3, 3}, make([]byte, 32)...)
	m = append(m, 0)                   // session id
	m = append(m, 0, 2, 0x13, 1, 1, 0) // one suite, null compression
	m = binary.BigEndian.AppendUint16(m, uint16(len(e)))
	m = append(m, e...)
	m = append([]byte{typeClientHello, byte(len(m) >> 16), byte(len(m) >> 8), byte(len(m))}, m...)
	var out []byte
	for len(m) > 0 {
		k := min(len(m), maxRecord)
		out = append(out, typeHandshake, 3, 1, byte(k>>8), byte(k))
		out, m = append(out, m[:k]...), m[k:]
	}
	return out
}

func sni(names ...string) []byte {
	var l []byte
	for _, n := range names {
		l = append(l, nameTypeHostName, byte(len(n)>>8), byte(len(n)))
		l = append(l, n...)
	}
	return append([]byte{byte(len(l) >> 8), byte(len(l))}, l...)
}

const testLimit = 64 << 10

func TestClientHello(t *testing.T) {
	plain := clientHello(t, &tls.Config{ServerName: "api.example.com"})
	cases := []struct {
		name  string
		bytes []byte
		want  string
		ech   bool
		err   error
	}{
		{"go", plain, "api.example.com", false, nil},
		{"without a name", clientHello(t, &tls.Config{InsecureSkipVerify: true}), "", false, nil},
		{"tls 1.2", clientHello(t, &tls.Config{ServerName: "old.example", MaxVersion: tls.VersionTLS12}), "old.example", false, nil},
		{"records of one byte", split(plain, 1), "api.example.com", false, nil},
		{"records of 100 bytes", split(plain, 100), "api.example.com", false, nil},
		{"40 KB", handmade(21, make([]byte, 40000), extServerName, sni("big.example")), "big.example", false, nil},
		{"over the limit", append([]byte{22, 3, 1, 0x40, 0, 1, 1, 0, 0}, make([]byte, 100)...), "", false, errTooLong},
		{"ech", handmade(extServerName, sni("outer.example"), extECH, []byte{0, 0, 1}), "outer.example", true, nil},
		{"two names", handmade(extServerName, sni("a.example", "b.example")), "", false, errSNI},
		{"name twice", handmade(extServerName, sni("a.example"), extServerName, sni("b.example")), "", false, errHello},
		{"empty name", handmade(extServerName, sni("")), "", false, errSNI},
		{"empty extension", handmade(extServerName, []byte{}), "", false, errSNI},
		{"NUL in the name is left to the caller", handmade(extServerName, sni("a\x00b")), "a\x00b", false, nil},
		{"server hello", []byte{22, 3, 3, 0, 5, 2, 0, 0, 1, 0}, "", false, errHello},
		{"empty record", []byte{22, 3, 3, 0, 0}, "", false, errRecord},
		{"alert in between", append(split(plain, 100)[:105], 21, 3, 3, 0, 2, 1, 0), "", false, errRecord},
		{"ssl 2", []byte{22, 2, 0, 0, 1}, "", false, errRecord},
		{"cut off", plain[:len(plain)-1], "", false, errMore},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h, need, err := parseClientHello(c.bytes, testLimit)
			if err != c.err {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && (h.name != c.want || h.ech != c.ech) {
				t.Errorf("got %+v, want name %q, ech %v", h, c.want, c.ech)
			}
			if err == errMore && need <= len(c.bytes) {
				t.Errorf("needs %d bytes of %d that are there", need, len(c.bytes))
			}
		})
	}
}

// However a hello is cut into records, it says the same, and no beginning of
// it says anything yet.
func TestClientHelloSplit(t *testing.T) {
	plain := clientHello(t, &tls.Config{ServerName: "api.example.com"})
	rapid.Check(t, func(t *rapid.T) {
		b := split(plain, rapid.IntRange(1, len(plain)).Draw(t, "record"))
		if h, _, err := parseClientHello(b, testLimit); err != nil || h.name != "api.example.com" {
			t.Fatalf("got %+v, %v", h, err)
		}
		n := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, need, err := parseClientHello(b[:n], testLimit); err != errMore || need <= n {
			t.Fatalf("%d of %d bytes: need %d, error %v", n, len(b), need, err)
		}
	})
}

func FuzzClientHello(f *testing.F) {
	plain := clientHello(f, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2", "http/1.1"}})
	f.Add(plain)
	f.Add(split(plain, 50))
	f.Add(handmade(extServerName, sni("a.example"), extECH, []byte{0}))
	f.Add(handmade(extServerName, sni("a.example", "b.example")))
	f.Add(plain[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, need, err := parseClientHello(b, testLimit)
		if err == errMore && need <= len(b) && len(b) < testLimit {
			t.Fatalf("needs %d bytes of %d that are there", need, len(b))
		}
		name, ok := oracle(b)
		if err == nil && ok && name != h.name {
			t.Fatalf("name %q, crypto/tls reads %q", h.name, name)
		}
		// What a server would understand must not pass as something unfinished.
		if errors.Is(err, errMore) && ok {
			t.Fatalf("unfinished to us, but crypto/tls reads %q", name)
		}
	})
}
