package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The programs in the namespaces are this binary again, with a role:
//
//	server ADDR        serves TCP until its input ends
//	names ADDR         answers every DNS question with the server's address
//	https ADDR FILE    serves HTTP/1.1 in TLS, with the certificate and key in FILE
//	client ADDR JOB N  prints numbers, one a line
//	client ADDR JOB N ROOTS  the same in TLS, trusting the certificates in ROOTS
const roleVariable = "WEIR_BENCH_ROLE"

const (
	requestSize = 128
	answerSize  = 1024
)

// fail ends a role.
func fail(why ...any) {
	fmt.Fprintln(os.Stderr, why...)
	os.Exit(1)
}

func play(role []string) {
	switch role[0] {
	case "server":
		serve(role[1])
	case "names":
		serveNames(role[1])
	case "https":
		serveTLS(role[1], role[2])
	case "client":
		n, err := strconv.Atoi(role[3])
		if err != nil {
			fail(err)
		}
		if len(role) > 4 {
			requestTLS(role[1], role[2], n, role[4])
			return
		}
		client{netip.MustParseAddrPort(role[1])}.run(role[2], n)
	}
}

// serve does what the first byte of a connection asks for: 'u' takes
// everything, 'd' sends until nobody wants it, anything else is a request.
func serve(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fail(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveOne(c)
		}
	}()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

func serveOne(c net.Conn) {
	defer c.Close()
	b := make([]byte, requestSize, 256<<10)
	n, err := c.Read(b)
	if err != nil {
		return
	}
	kind := b[0]
	if kind == 'u' || kind == 'd' {
		for b = b[:cap(b)]; err == nil; {
			if kind == 'u' {
				_, err = c.Read(b)
			} else {
				_, err = c.Write(b)
			}
		}
		return
	}
	// HTTP, for those in between who read it: exactly answerSize.
	const head = "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
	answer := make([]byte, answerSize)
	copy(answer, fmt.Sprintf(head, answerSize-len(head)-1))
	for {
		if _, err = io.ReadFull(c, b[n:]); err == nil {
			_, err = c.Write(answer)
		}
		if err != nil {
			return
		}
		n = 0
	}
}

func serveNames(addr string) {
	l, err := net.ListenPacket("udp", addr)
	if err != nil {
		fail(err)
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, from, err := l.ReadFrom(b)
			if err != nil {
				return
			}
			end := 12
			for end < n && b[end] != 0 {
				end += 1 + int(b[end])
			}
			if end += 5; end > n {
				continue
			}
			binary.BigEndian.PutUint16(b[2:], 0x8180)
			copy(b[4:12], []byte{0, 1, 0, 1, 0, 0, 0, 0})
			a := append(b[:end], 0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4)
			server := netip.MustParseAddr(serverAddr).As4()
			l.WriteTo(append(a, server[:]...), from)
		}
	}()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// client uses blocking sockets: nothing of a runtime in its latencies.
type client struct{ to netip.AddrPort }

func (c client) socket(kind int) int {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(c.to.Port()), Addr: c.to.Addr().As4()})
	}
	if err != nil {
		fail("connect to ", c.to, ": ", err)
	}
	return fd
}

func (c client) dial() int {
	fd := c.socket(unix.SOCK_STREAM)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fd
}

// exchange is one request and its answer.
func exchange(fd int, question, room []byte) {
	if _, err := unix.Write(fd, question); err != nil {
		fail("write: ", err)
	}
	for got := 0; got < answerSize; {
		k, err := unix.Read(fd, room)
		if k <= 0 {
			fail("no answer: ", k, err)
		}
		got += k
	}
}

// run does a job and prints what it measured.
func (c client) run(job string, n int) {
	answer := make([]byte, answerSize)
	question := make([]byte, requestSize)
	if job == "named" { // what it takes to know the name
		job = "fresh"
		copy(question, slices.Repeat([]byte{'x'}, requestSize))
		copy(question, "GET /"+strings.Repeat("x", requestSize-5-len(httpRest))+httpRest)
	}
	switch job {
	case "fresh": // p50 and p99 in µs, then connections a second
		took := make([]time.Duration, n)
		start := time.Now()
		for i := range took {
			t := time.Now()
			fd := c.dial()
			exchange(fd, question, answer)
			// A reset leaves no TIME_WAIT to run out of ports by.
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			unix.Close(fd)
			took[i] = time.Since(t)
		}
		all := time.Since(start)
		percentiles(took)
		fmt.Println(float64(n) / all.Seconds())
	case "rate": // connections a second, from several clients at once
		var all sync.WaitGroup
		start := time.Now()
		for range rateClients {
			all.Go(func() {
				answer := make([]byte, answerSize)
				for range n / rateClients {
					fd := c.dial()
					exchange(fd, question, answer)
					unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
					unix.Close(fd)
				}
			})
		}
		all.Wait()
		fmt.Println(float64(n) / time.Since(start).Seconds())
	case "keep": // p50 and p99 in µs
		fd := c.dial()
		exchange(fd, question, answer)
		took := make([]time.Duration, n)
		for i := range took {
			t := time.Now()
			exchange(fd, question, answer)
			took[i] = time.Since(t)
		}
		percentiles(took)
	case "up1", "up8", "down1", "down8": // MB a second, n MB in all
		streams := int(job[len(job)-1] - '0')
		var all sync.WaitGroup
		start := time.Now()
		for range streams {
			all.Go(func() { c.bulk(job[0], n<<20/streams) })
		}
		all.Wait()
		fmt.Println(float64(n) / time.Since(start).Seconds())
	case "idle": // holds n connections until its input ends
		for range n {
			exchange(c.dial(), question, answer)
		}
		fmt.Println(n)
		io.Copy(io.Discard, os.Stdin)
	case "cached", "missed": // queries a second
		var all sync.WaitGroup
		start := time.Now()
		for i := range 2 {
			all.Go(func() { c.ask(job == "missed", i, n/2) })
		}
		all.Wait()
		fmt.Println(float64(n) / time.Since(start).Seconds())
	default:
		fail("no job", job)
	}
}

func percentiles(took []time.Duration) {
	slices.Sort(took)
	fmt.Println(took[len(took)/2].Seconds() * 1e6)
	fmt.Println(took[len(took)*99/100].Seconds() * 1e6)
}

func (c client) bulk(direction byte, size int) {
	fd := c.dial()
	defer unix.Close(fd)
	unix.Write(fd, []byte{direction})
	b := make([]byte, 256<<10)
	for moved := 0; moved < size; {
		var k int
		var err error
		if direction == 'u' {
			k, err = unix.Write(fd, b)
		} else {
			k, err = unix.Read(fd, b)
		}
		if k <= 0 {
			fail("bulk: ", k, err)
		}
		moved += k
	}
}

// ask keeps a window of DNS questions under way; one that is lost is asked
// again, so that losing does not pay.
func (c client) ask(fresh bool, who, n int) {
	const window = 32
	fd := c.socket(unix.SOCK_DGRAM)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	b := make([]byte, 4096)
	run := strconv.FormatInt(time.Now().UnixNano()%1e9, 36)
	send := func(i int) {
		label := "www"
		if fresh {
			label = fmt.Sprint("n", who, "-", i, "-", run)
		}
		q := append([]byte{byte(i >> 8), byte(i), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(label))}, label...)
		q = append(q, "\x07example\x03com\x00\x00\x01\x00\x01"...)
		unix.Write(fd, q)
	}
	waiting := map[uint16]int{}
	for sent := 0; sent < n || len(waiting) > 0; {
		for len(waiting) < window && sent < n {
			waiting[uint16(sent)] = sent
			send(sent)
			sent++
		}
		k, err := unix.Read(fd, b)
		if err == unix.EAGAIN || err == unix.EINTR {
			for _, i := range waiting {
				send(i)
			}
			continue
		}
		if err != nil || k < 12 || b[3]&15 != 0 {
			fail(fmt.Sprintf("dns: %v % x", err, b[:max(k, 0)]))
		}
		delete(waiting, binary.BigEndian.Uint16(b))
	}
}
