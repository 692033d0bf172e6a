package proxy

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The benchmarks compare the way through a Server with the direct one over
// loopback. Client and server are processes of their own, so that this one
// does nothing but proxy; they are this binary again, with a role:
//
//	server            prints its address and serves until stdin ends
//	client ADDR JOB N prints a number
const roleVariable = "WEIR_BENCH_ROLE"

func TestMain(m *testing.M) {
	switch role := strings.Fields(os.Getenv(roleVariable)); {
	case len(role) == 0:
		os.Exit(m.Run())
	case role[0] == "server":
		benchServer()
	default:
		benchClient(role[1], role[2], role[3])
	}
}

const (
	requestSize = 128
	answerSize  = 1024
)

// benchServer does what the first byte of a connection asks for: 'u' takes
// everything, 'd' sends until nobody wants it, 'r' answers requests.
func benchServer() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 256<<10)
				if _, err := io.ReadFull(c, b[:1]); err != nil {
					return
				}
				for kind := b[0]; ; {
					var err error
					switch kind {
					case 'u':
						_, err = c.Read(b)
					case 'd':
						_, err = c.Write(b)
					default:
						if _, err = io.ReadFull(c, b[:requestSize]); err == nil {
							_, err = c.Write(b[:answerSize])
						}
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}

// benchClient uses blocking sockets: nothing of a runtime in its latencies.
func benchClient(addr, job, count string) {
	n, _ := strconv.Atoi(count)
	to := netip.MustParseAddrPort(addr)
	dial := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}
		if err != nil {
			panic(err)
		}
		return fd
	}
	answer := make([]byte, answerSize)
	exchange := func(fd int, question []byte) {
		if _, err := unix.Write(fd, question); err != nil {
			panic(err)
		}
		for got := 0; got < answerSize; {
			k, err := unix.Read(fd, answer)
			if k <= 0 {
				panic(fmt.Sprint("no answer: ", k, err))
			}
			got += k
		}
	}
	question := append([]byte("r"), make([]byte, requestSize)...)
	switch job {
	case "fresh", "rate": // p50 in µs; connections a second
		took := make([]time.Duration, n)
		start := time.Now()
		for i := range took {
			t := time.Now()
			fd := dial()
			exchange(fd, question)
			// A reset leaves no TIME_WAIT to run out of ports by.
			unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			unix.Close(fd)
			took[i] = time.Since(t)
		}
		if job == "rate" {
			fmt.Println(float64(n) / time.Since(start).Seconds())
			return
		}
		slices.Sort(took)
		fmt.Println(took[n/2].Seconds() * 1e6)
	case "keep": // p50 in µs
		fd := dial()
		exchange(fd, question)
		took := make([]time.Duration, n)
		for i := range took {
			t := time.Now()
			exchange(fd, question[1:])
			took[i] = time.Since(t)
		}
		slices.Sort(took)
		fmt.Println(took[n/2].Seconds() * 1e6)
	case "u1", "u8", "d1", "d8": // MB a second, n MB in all
		streams := int(job[1] - '0')
		var all sync.WaitGroup
		start := time.Now()
		for range streams {
			all.Go(func() {
				fd := dial()
				defer unix.Close(fd)
				unix.Write(fd, []byte(job[:1]))
				b := make([]byte, 256<<10)
				for moved := 0; moved < n<<20/streams; {
					var k int
					var err error
					if job[0] == 'u' {
						k, err = unix.Write(fd, b)
					} else {
						k, err = unix.Read(fd, b)
					}
					if k <= 0 {
						panic(fmt.Sprint(job, k, err))
					}
					moved += k
				}
			})
		}
		all.Wait()
		fmt.Println(float64(n) / time.Since(start).Seconds())
	}
}

// role starts this binary in a role.
func role(b *testing.B, words ...string) *exec.Cmd {
	c := exec.CommandContext(b.Context(), os.Args[0])
	c.Env = append(os.Environ(), roleVariable+"="+strings.Join(words, " "))
	c.Stderr = os.Stderr
	return c
}

func measure(b *testing.B, addr, job string, n int) float64 {
	b.Helper()
	out, err := role(b, "client", addr, job, strconv.Itoa(n)).Output()
	if err != nil {
		b.Fatal(job, err)
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// benchWorld is a world with a server process at siteA.
func benchWorld(b *testing.B) (w *world, direct string) {
	b.Helper()
	w = newWorld(b, func(s *Server) {
		s.Limits.PerSecond = 1 << 30
		s.Limits.Connections = 1 << 20
	}, allow("203.0.113.7"))
	go func() {
		for range w.events { // the recorder keeps up
		}
	}()
	server := role(b, "server")
	stdin, _ := server.StdinPipe()
	stdout, _ := server.StdoutPipe()
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		server.Wait()
	})
	if _, err := fmt.Fscanln(stdout, &direct); err != nil {
		b.Fatal(err)
	}
	w.outside[siteA] = direct
	return w, direct
}

func cpu() float64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkAgainstDirect: paired rounds, medians. Rates as the ratio to
// direct (of-direct), latencies as what is added (added-µs).
func BenchmarkAgainstDirect(b *testing.B) {
	for _, job := range []struct {
		name string
		n    int
	}{{"u1", 2048}, {"d1", 2048}, {"u8", 2048}, {"d8", 2048}, {"rate", 4000}, {"fresh", 4000}, {"keep", 20000}} {
		b.Run(job.name, func(b *testing.B) {
			w, direct := benchWorld(b)
			rounds := max(b.N, 5)
			var ratios, added, used []float64
			for range rounds {
				plain := measure(b, direct, job.name, job.n)
				before := cpu()
				through := measure(b, w.addr, job.name, job.n)
				used = append(used, cpu()-before)
				ratios = append(ratios, through/plain)
				added = append(added, through-plain)
			}
			b.ReportMetric(0, "ns/op")
			switch job.name {
			case "fresh", "keep":
				b.ReportMetric(median(added), "added-µs")
			case "rate":
				b.ReportMetric(median(ratios), "of-direct")
				b.ReportMetric(median(used)/float64(job.n)*1e6, "cpu-µs/conn")
			default:
				b.ReportMetric(median(ratios), "of-direct")
				b.ReportMetric(median(used)/float64(job.n)*1024, "cpu-s/GB")
			}
		})
	}
}

// BenchmarkIdle reports what a connection costs that moves nothing.
func BenchmarkIdle(b *testing.B) {
	const n = 2000
	w, _ := benchWorld(b)
	count := func() (resident, fds int) {
		runtime.GC()
		text, _ := os.ReadFile("/proc/self/statm")
		var size, pages int
		fmt.Sscan(string(text), &size, &pages)
		open, _ := os.ReadDir("/proc/self/fd")
		return pages * os.Getpagesize(), len(open)
	}

	r0, f0 := count()
	var clients []int
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		to := netip.MustParseAddrPort(w.addr)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
			b.Fatal(err)
		}
		clients = append(clients, fd)
	}
	w.live(n)
	r1, f1 := count()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(r1-r0)/n, "B/conn")
	b.ReportMetric(float64(f1-f0-n)/n, "fds/conn")
	for _, fd := range clients {
		unix.Close(fd)
	}
}
