package proxy

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize: measured, a request or answer of usual size moves cheapest
	// by one small read and write.
	bufferSize = 16 << 10
	// bulkAfter full buffers in a row, splice(2) takes over: it halves the
	// work of bulk data. So many small loads in a row end it.
	bulkAfter = 4
	// pipeSize is asked for and not insisted on: with the kernel's default of
	// 64 KB bulk data costs a third more CPU.
	pipeSize = 1 << 20
	// spliceMost is how much one splice(2) may move; the pipe holds less.
	spliceMost = 1 << 20
	// pipesKept is how many unused pipes a Server keeps open.
	pipesKept = 16
)

// A socket is a TCP connection: the container's is a *net.TCPConn, the one to
// the outside usually an *os.File.
type socket interface {
	io.Closer
	syscall.Conn
	SetReadDeadline(time.Time) error
}

// A side is one of a flow's two connections.
type side struct {
	socket
	raw syscall.RawConn
}

func sideOf(c socket) (side, error) {
	raw, err := c.SyscallConn()
	return side{c, raw}, err
}

// closeWrite ends the direction towards the other end.
func (s side) closeWrite() error {
	var err error
	if gone := s.raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); gone != nil {
		return gone
	}
	return err
}

// A pump moves the bytes of one direction. It holds a buffer or a pipe only
// while there is something in it: a connection that is idle, as most are,
// holds two sockets and nothing else. One goroutine at a time may use it.
type pump struct {
	src, dst side
	moved    *atomic.Int64 // counts what was written to dst
	stores   *stores
	// seen, if set, gets everything read so far after it was passed on, until
	// it returns false.
	seen func(b []byte) (more bool)

	buf    []byte            // read and not yet forgotten; nil: no buffer held
	sent   int               // how much of buf was written
	pooled *[bufferSize]byte // what buf lies in, if it came from the pool

	pipe *pipe
	held int // bytes in pipe

	// Results of the callbacks below. They are fields, and the callbacks are
	// made once, so that moving bytes does not allocate.
	n                                       int
	err                                     error
	readable, writable, fillable, drainable func(fd uintptr) bool
}

func (p *pump) init(src, dst side, moved *atomic.Int64, st *stores) {
	p.src, p.dst, p.moved, p.stores = src, dst, moved, st
	p.readable, p.writable = p.tryRead, p.tryWrite
}

// run passes everything on until the source ends, then ends the destination's
// direction. Any other end is an error, after which both sides are useless.
func (p *pump) run() error {
	for full := 0; ; {
		if err := p.flush(); err != nil {
			return err
		}
		if p.seen != nil && len(p.buf) > 0 && !p.seen(p.buf) {
			p.seen = nil
		}
		if p.seen == nil {
			p.drop()
			if full >= bulkAfter {
				full = 0
				if err := p.bulk(); err != nil {
					return p.finish(err)
				}
			}
		}
		before := len(p.buf)
		if err := p.read(); err != nil {
			return p.finish(err)
		}
		if len(p.buf)-before == bufferSize {
			full++
		} else {
			full = 0
		}
	}
}

// finish turns the end of the source into the end of this direction.
func (p *pump) finish(err error) error {
	if err == io.EOF {
		return p.dst.closeWrite()
	}
	return err
}

// read waits for bytes and adds them to buf; io.EOF at the end of the source.
func (p *pump) read() error {
	p.n, p.err = 0, nil
	if err := p.src.raw.Read(p.readable); err != nil {
		return err
	}
	if p.err == nil && p.n == 0 {
		p.err = io.EOF
	}
	if p.err != nil && len(p.buf) == 0 {
		p.drop()
	}
	return p.err
}

func (p *pump) tryRead(fd uintptr) bool {
	n, err := read(int(fd), p.room())
	if err == unix.EAGAIN {
		if len(p.buf) == 0 {
			p.drop()
		}
		return false
	}
	if n > 0 {
		p.buf = p.buf[:len(p.buf)+n]
	}
	p.n, p.err = n, err
	return true
}

// flush writes what was read and not yet written.
func (p *pump) flush() error {
	if p.sent == len(p.buf) {
		return nil
	}
	p.err = nil
	if err := p.dst.raw.Write(p.writable); err != nil {
		return err
	}
	return p.err
}

func (p *pump) tryWrite(fd uintptr) bool {
	for p.sent < len(p.buf) {
		n, err := write(int(fd), p.buf[p.sent:])
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			p.err = err
			return true
		}
		p.sent += n
		p.moved.Add(int64(n))
	}
	return true
}

// room returns free space behind buf, taking a buffer or a larger one first
// if there is none. Only a message that is being looked at gets a larger one.
func (p *pump) room() []byte {
	if p.buf == nil {
		p.pooled = p.stores.buffer()
		p.buf = p.pooled[:0]
	}
	if len(p.buf) == cap(p.buf) {
		larger := make([]byte, len(p.buf), 2*cap(p.buf))
		copy(larger, p.buf)
		sent := p.sent
		p.drop()
		p.buf, p.sent = larger, sent
	}
	return p.buf[len(p.buf):cap(p.buf)]
}

// drop forgets buf.
func (p *pump) drop() {
	if p.pooled != nil {
		p.stores.buffers.Put(p.pooled)
	}
	p.buf, p.pooled, p.sent = nil, nil, 0
}

// bulk moves bytes through a pipe without copying them, until the source ends
// (io.EOF), loads are small again, or no pipe is to be had (nil).
func (p *pump) bulk() error {
	if p.fillable == nil {
		p.fillable, p.drainable = p.tryFill, p.tryDrain
	}
	defer p.dropPipe()
	for small := 0; small < bulkAfter; {
		p.n, p.err = 0, nil
		if err := p.src.raw.Read(p.fillable); err != nil {
			return err
		}
		if p.err == errNoPipe {
			return nil
		}
		if p.err != nil {
			return p.err
		}
		if p.n == 0 {
			return io.EOF
		}
		if p.n < bufferSize {
			small++
		} else {
			small = 0
		}
		p.held = p.n
		if err := p.dst.raw.Write(p.drainable); err != nil {
			return err
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}

var errNoPipe = errors.New("no pipe")

func (p *pump) tryFill(fd uintptr) bool {
	if p.pipe == nil {
		if p.pipe = p.stores.pipe(); p.pipe == nil {
			p.err = errNoPipe
			return true
		}
	}
	p.n, p.err = splice(int(fd), p.pipe.w, spliceMost)
	if p.err == unix.EAGAIN {
		p.err = nil
		p.dropPipe() // empty
		return false
	}
	if p.err == unix.EINVAL {
		p.err = errNoPipe // not a socket that can be spliced
	}
	return true
}

func (p *pump) tryDrain(fd uintptr) bool {
	for p.held > 0 {
		n, err := splice(p.pipe.r, int(fd), p.held)
		if err == unix.EAGAIN {
			return false
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			p.err = err
			return true
		}
		p.held -= n
		p.moved.Add(int64(n))
	}
	return true
}

// dropPipe gives the pipe back; one that still holds bytes is closed.
func (p *pump) dropPipe() {
	if p.pipe != nil {
		p.stores.giveBack(p.pipe, p.held == 0)
		p.pipe, p.held = nil, 0
	}
}

// stores are a Server's buffers and pipes.
type stores struct {
	buffers sync.Pool
	unused  chan *pipe // when full, pipes are closed
	pipes   gauge
}

type pipe struct{ r, w int }

func (st *stores) init(pipes int) {
	st.unused = make(chan *pipe, pipesKept)
	st.pipes.most = int64(pipes)
}

func (st *stores) buffer() *[bufferSize]byte {
	if b, ok := st.buffers.Get().(*[bufferSize]byte); ok {
		return b
	}
	return new([bufferSize]byte)
}

// pipe returns an empty pipe, or nil when there are too many.
func (st *stores) pipe() *pipe {
	if !st.pipes.enter() {
		return nil
	}
	select {
	case p := <-st.unused:
		return p
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		st.pipes.leave()
		return nil
	}
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{fds[0], fds[1]}
}

func (st *stores) giveBack(p *pipe, empty bool) {
	defer st.pipes.leave()
	if empty {
		select {
		case st.unused <- p:
			return
		default:
		}
	}
	p.close()
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// close closes the unused pipes; all flows have ended.
func (st *stores) close() {
	for {
		select {
		case p := <-st.unused:
			p.close()
		default:
			return
		}
	}
}

// The sockets and pipes below never block, so the runtime need not be told of
// these calls: otherwise it takes the processor away from a goroutine whose
// write takes longer than 20 µs, which over a virtual interface, where the
// receiver's work is done on the way, is the usual case.

func read(fd int, b []byte) (n int, err error) {
	return quickCall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
}

func write(fd int, b []byte) (n int, err error) {
	return quickCall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
}

func splice(from, to, most int) (int, error) {
	return quickCall(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(most), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
}

// quickCall is a system call that does not wait.
func quickCall(number, a, b, c, d, e, f uintptr) (n int, err error) {
	for {
		n, _, errno := unix.RawSyscall6(number, a, b, c, d, e, f)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
