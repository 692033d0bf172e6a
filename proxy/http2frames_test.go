package proxy

import (
	"bytes"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"pgregory.net/rapid"
)

// pieces is a connection whose bytes come in given lengths.
type pieces struct {
	net.Conn
	text    []byte
	lengths []int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.text) == 0 {
		return 0, io.EOF
	}
	n := len(p.text)
	if len(p.lengths) > 0 {
		n, p.lengths = min(n, p.lengths[0]), p.lengths[1:]
	}
	n = copy(b, p.text[:n])
	p.text = p.text[n:]
	return n, nil
}

// However frames are cut into reads, only the size of frames in SETTINGS is
// another one, and only there.
func TestSmallFramesChangesOneSetting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sent, want bytes.Buffer
		for range rapid.IntRange(1, 6).Draw(t, "frames") {
			if rapid.Bool().Draw(t, "data") {
				payload := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
				for _, w := range []io.Writer{&sent, &want} {
					http2.NewFramer(w, nil).WriteData(1, false, payload)
				}
				continue
			}
			var before, after []http2.Setting
			for range rapid.IntRange(0, 4).Draw(t, "settings") {
				s := http2.Setting{ID: http2.SettingID(rapid.Uint16Range(0, 8).Draw(t, "id")), Val: rapid.Uint32().Draw(t, "value")}
				before = append(before, s)
				if s.ID == http2.SettingMaxFrameSize {
					s.Val = 16384
				}
				after = append(after, s)
			}
			http2.NewFramer(&sent, nil).WriteSettings(before...)
			http2.NewFramer(&want, nil).WriteSettings(after...)
		}
		lengths := rapid.SliceOfN(rapid.IntRange(1, 20), 0, 60).Draw(t, "lengths")
		got, err := io.ReadAll(&smallFrames{Conn: &pieces{text: sent.Bytes(), lengths: lengths}})
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("%v\n%x\n%x", err, got, want.Bytes())
		}
	})
}
