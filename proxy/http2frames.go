package proxy

import (
	"net"

	"golang.org/x/net/http2"
)

// smallFrames is the connection to an HTTP/2 server that cannot make its
// client use frames of more than 16 KiB: the library holds a buffer of one
// frame for each body that it sends, so that a server which takes large ones
// would decide how much memory requests take. What is read passes as it is,
// but for SETTINGS_MAX_FRAME_SIZE (RFC 9113, 6.5.2).
type smallFrames struct {
	net.Conn

	head     [9]byte // of the frame that is being read (RFC 9113, 4.1)
	got      int     // bytes of head
	left     int     // bytes of its payload
	settings bool
	entry    [2]byte // the identifier of the setting that is being read
	at       int     // position in the setting, which has six bytes
}

func (s *smallFrames) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	for p := b[:n]; len(p) > 0; {
		switch {
		case s.left == 0:
			took := copy(s.head[s.got:], p)
			p = p[took:]
			if s.got += took; s.got == len(s.head) {
				s.got = 0
				s.left = int(s.head[0])<<16 | int(s.head[1])<<8 | int(s.head[2])
				s.settings, s.at = http2.FrameType(s.head[3]) == http2.FrameSettings, 0
			}
		case !s.settings:
			took := min(s.left, len(p))
			s.left -= took
			p = p[took:]
		default:
			s.setting(&p[0])
			s.left--
			p = p[1:]
		}
	}
	return n, err
}

// setting takes the next byte of a SETTINGS frame, which it may change.
func (s *smallFrames) setting(b *byte) {
	switch {
	case s.at < len(s.entry):
		s.entry[s.at] = *b
	case http2.SettingID(s.entry[0])<<8|http2.SettingID(s.entry[1]) == http2.SettingMaxFrameSize:
		*b = [...]byte{0, 0, 0x40, 0}[s.at-len(s.entry)] // 16384, the least that is allowed
	}
	s.at = (s.at + 1) % 6
}
