package proxy

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"weir/audit"
)

// A stream that the HTTP/2 library resets by itself has an event all the same.
func TestRelayRecordsStreamsThatAreNoRequest(t *testing.T) {
	l := newRelayLab(t, 443, restPolicy)
	var server canary
	l.serve(&server, protocolsOf(true)...)
	for path, why := range map[string]string{"/ok/%zz": "bad path", "": "bad path"} {
		c := l.dial("h2")
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, f := range []hpack.HeaderField{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: labHost}, {Name: ":path", Value: path},
		} {
			enc.WriteField(f)
		}
		io.WriteString(c, http2.ClientPreface)
		fr := http2.NewFramer(c, c)
		fr.WriteSettings()
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("%q: %v", path, err)
			}
			if f.Header().Type == http2.FrameRSTStream {
				break
			}
		}
		if e := l.event(audit.HTTP); e.Verdict != "deny" || !strings.Contains(e.Reason, why) {
			t.Errorf("%q: event %+v", path, e)
		}
		c.Close()
	}
	if server.hits > 0 {
		t.Errorf("the server saw %s", server.text())
	}
}
