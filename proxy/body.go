package proxy

import (
	"bufio"
	"errors"
	"io"
	"strconv"
	"strings"
)

// maxChunkLine bounds a chunk's size line with its extensions, in bytes.
const maxChunkLine = 512

// A body reads the body of one HTTP/1 message as its head frames it. Read
// ends with io.EOF; a body that breaks off gives io.ErrUnexpectedEOF and one
// that is not framed by the letter of RFC 9112 a problem.
type body struct {
	br      *bufio.Reader
	left    int64 // of the body, or of the chunk
	chunked bool
	open    bool // ends with the connection
	ended   bool
	inside  bool // chunked: in a chunk, or behind it before its line end
	limits  *RelayLimits
	held    []byte  // read before, given again ahead of the rest
	trailer []field // chunked, after io.EOF
}

func (b *body) Read(p []byte) (int, error) {
	if len(b.held) > 0 {
		n := copy(p, b.held)
		b.held = b.held[n:]
		return n, nil
	}
	if b.ended {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	switch {
	case b.open:
		n, err := b.br.Read(p)
		b.ended = err == io.EOF
		return n, err
	case b.chunked:
		for b.left == 0 {
			if err := b.nextChunk(); err != nil {
				return 0, broke(err)
			}
			if b.ended {
				return 0, io.EOF
			}
		}
	case b.left == 0:
		b.ended = true
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.br.Read(p)
	b.left -= int64(n)
	if b.chunked && b.left == 0 && b.br.Buffered() >= 2 {
		// The line end goes with its chunk: what is buffered afterwards is
		// there to be read, which copyTo takes for a reason not to flush.
		if end, _ := b.br.Peek(2); string(end) == "\r\n" {
			b.br.Discard(2)
			b.inside = false
		}
	}
	return n, broke(err)
}

// nextChunk reads up to the first byte of the next chunk, or to the end.
func (b *body) nextChunk() error {
	if b.inside {
		line, err := b.line(2)
		if err != nil {
			return err
		}
		if line != "" {
			return problem("a chunk is longer than its size says")
		}
		b.inside = false
	}
	line, err := b.line(maxChunkLine)
	if err != nil {
		return err
	}
	size, extensions, _ := strings.Cut(line, ";")
	if size = strings.TrimRight(size, " \t"); len(size) > 15 || !hexadecimal(size) || !fieldValue(extensions) {
		return problem("malformed chunk size")
	}
	n, err := strconv.ParseInt(size, 16, 64)
	if err != nil {
		return problem("malformed chunk size")
	}
	if b.left, b.inside = n, n > 0; n > 0 {
		return nil
	}
	return b.readTrailer()
}

func (b *body) readTrailer() error {
	var text strings.Builder
	for {
		line, err := b.line(b.limits.HeaderBytes - text.Len())
		if err != nil {
			return err
		}
		if line == "" {
			break
		}
		text.WriteString(line + "\r\n")
	}
	fs, err := parseFields(strings.TrimSuffix(text.String(), "\r\n"), b.limits.Fields)
	if err != nil {
		return err
	}
	for _, f := range fs {
		if name := strings.ReplaceAll(f.name, "_", "-"); framing(name) || hopByHop(name) {
			return problem("the field " + f.name + " in the trailer")
		}
	}
	b.trailer, b.ended = fs, true
	return nil
}

// line reads one line of at most limit bytes that ends with CRLF.
func (b *body) line(limit int) (string, error) {
	var whole []byte
	for {
		part, err := b.br.ReadSlice('\n')
		if len(whole)+len(part) > limit {
			return "", problem("over-long or unended line in a chunked body")
		}
		if err == nil && whole == nil {
			whole = part // not kept beyond the conversion below
		} else {
			whole = append(whole, part...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			return "", err
		}
		line, ok := strings.CutSuffix(string(whole), "\r\n")
		if !ok || strings.IndexByte(line, '\r') >= 0 {
			return "", problem("bare CR or LF in the framing of a chunked body")
		}
		return line, nil
	}
}

func hexadecimal(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f') {
			return false
		}
	}
	return s != ""
}

// broke: inside a body the end of the connection is not its end.
func broke(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// errOverBudget: no more of Limits.Buffered is left.
var errOverBudget = errors.New("limit of buffered bytes reached")

// readAll reads at most most bytes of r, taking from the budget what it
// holds. The caller gives it back.
func (g *gauge) readAll(r io.Reader, most int) (b []byte, taken int64, err error) {
	for len(b) < most {
		if len(b) == cap(b) {
			size := min(max(2*cap(b), 4096), most)
			grow := int64(size - cap(b))
			if !g.take(grow) {
				return b, taken, errOverBudget
			}
			taken += grow
			larger := make([]byte, len(b), size)
			copy(larger, b)
			b = larger
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, taken, nil
		}
		if err != nil {
			return b, taken, err
		}
	}
	return b, taken, nil
}

// take takes n places at once; who gets true gives them back.
func (g *gauge) take(n int64) bool {
	if g.now.Add(n) > g.most {
		g.now.Add(-n)
		g.hits.Add(1)
		return false
	}
	return true
}

func (g *gauge) give(n int64) { g.now.Add(-n) }

// copyTo writes the body to w, as chunks if chunks is set, and flushes
// whenever the next byte is not here yet: what streams must not wait. before
// is called ahead of each read that may block.
func (b *body) copyTo(w *bufio.Writer, chunks bool, buf []byte, moved func(n int), before func()) error {
	for {
		if b.br.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return writing{err}
			}
			if before != nil {
				before()
			}
		}
		n, err := b.Read(buf)
		if n > 0 {
			moved(n)
			if werr := writePart(w, buf[:n], chunks); werr != nil {
				return writing{werr}
			}
		}
		if err == io.EOF {
			if chunks {
				w.WriteString("0\r\n")
				for _, f := range b.trailer {
					writeField(w, f)
				}
				w.WriteString("\r\n")
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func writePart(w *bufio.Writer, p []byte, chunk bool) error {
	if !chunk {
		_, err := w.Write(p)
		return err
	}
	var size [16]byte
	w.Write(strconv.AppendInt(size[:0], int64(len(p)), 16))
	w.WriteString("\r\n")
	w.Write(p)
	_, err := w.WriteString("\r\n")
	return err
}

func writeField(w *bufio.Writer, f field) {
	w.WriteString(f.name)
	w.WriteString(": ")
	w.WriteString(f.value)
	w.WriteString("\r\n")
}

// writing marks an error of the side that is written to.
type writing struct{ err error }

func (w writing) Error() string { return w.err.Error() }
func (w writing) Unwrap() error { return w.err }
