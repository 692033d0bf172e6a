// Load is a program for the tests that puts load on an echo server or a
// resolver until its standard input ends, and says on one line how it went.
//
//	load idle ADDRESS:PORT N        opens N connections and keeps them; the line comes when all are open or refused
//	load paced ADDRESS:PORT EVERY   a connection with one echo, over and over, one begun every so often
//	load storm ADDRESS:PORT N       the same from N workers at once, without a pause
//	load storm NAME@ADDRESS:PORT N  the same with HTTPS requests to a name
//	load echo ADDRESS:PORT -        is a server for them
//	load dns NAME N                 asks for N names, in which %d is the number
//	load names NAME N               the same N times a second, each once
package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// patience is how long one connection or question may take.
const patience = 10 * time.Second

// Result is what the line says. Times are in microseconds.
type Result struct {
	OK, Refused int
	P50, P99    int64
	Seconds     float64
	Error       string         // the last one
	Codes       map[string]int // of DNS
}

func main() {
	if len(os.Args) != 4 {
		fail(errors.New("want a mode and two arguments"))
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	mode, target := os.Args[1], os.Args[2]
	switch mode {
	case "idle":
		n, err := strconv.Atoi(os.Args[3])
		fail(err)
		say(idle(target, n))
		<-stop
	case "paced":
		every, err := time.ParseDuration(os.Args[3])
		fail(err)
		say(run(target, 1, every, stop))
	case "storm":
		n, err := strconv.Atoi(os.Args[3])
		fail(err)
		say(run(target, n, 0, stop))
	case "echo":
		l, err := net.Listen("tcp", target)
		fail(err)
		say(Result{})
		go echo(l)
		<-stop
	case "dns":
		n, err := strconv.Atoi(os.Args[3])
		fail(err)
		say(ask(target, n))
	case "names":
		n, err := strconv.Atoi(os.Args[3])
		fail(err)
		say(askPaced(target, n, stop))
	default:
		fail(fmt.Errorf("unknown mode %q", mode))
	}
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func fail(err error) {
	if err != nil {
		say(Result{Error: err.Error()})
		os.Exit(1)
	}
}

func say(r Result) { json.NewEncoder(os.Stdout).Encode(r) }

// open connects and has one byte echoed: only that proves a connection. No
// protocol begins with a zero, so that nobody waits for more. Where a name is
// given it is asked for over HTTPS instead.
func open(target string) (*net.TCPConn, error) {
	name, address, https := strings.Cut(target, "@")
	if !https {
		address = target
	}
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	talk, say := c, "\x00"
	if https {
		talk, say = tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}), "GET / HTTP/1.1\r\nHost: "+name+"\r\n\r\n"
	}
	if _, err = io.WriteString(talk, say); err == nil {
		_, err = io.ReadFull(talk, make([]byte, len(say))) // what answers a request is longer
	}
	tcp := c.(*net.TCPConn)
	tcp.SetLinger(0) // no port stays in use
	if err != nil {
		tcp.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return tcp, nil
}

func idle(target string, n int) (r Result) {
	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var held []*net.TCPConn
	todo := make(chan struct{})
	for range 64 {
		wg.Go(func() {
			for range todo {
				c, err := open(target)
				mu.Lock()
				if err != nil {
					r.Refused++
					r.Error = err.Error()
				} else {
					held = append(held, c)
				}
				mu.Unlock()
			}
		})
	}
	for range n {
		todo <- struct{}{}
	}
	close(todo)
	wg.Wait()
	r.OK, r.Seconds = len(held), time.Since(began).Seconds()
	return r
}

func run(target string, workers int, every time.Duration, stop <-chan struct{}) (r Result) {
	began := time.Now()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var took []time.Duration
	for range workers {
		wg.Go(func() {
			var tick <-chan time.Time
			if every > 0 {
				t := time.NewTicker(every)
				defer t.Stop()
				tick = t.C
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if tick != nil {
					<-tick
				}
				start := time.Now()
				c, err := open(target)
				if err == nil {
					c.Close()
				}
				mu.Lock()
				if err != nil {
					r.Refused++
					r.Error = err.Error()
				} else {
					took = append(took, time.Since(start))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	r.OK, r.Seconds = len(took), time.Since(began).Seconds()
	if n := len(took); n > 0 {
		r.P50, r.P99 = took[n/2].Microseconds(), took[n*99/100].Microseconds()
	}
	return r
}

// askPaced asks so many questions a second, until it is stopped.
func askPaced(name string, rate int, stop <-chan struct{}) (r Result) {
	began := time.Now()
	r.Codes = map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	numbers := make(chan int, rate)
	for range 16 {
		wg.Go(func() {
			client := dns.Client{Timeout: patience}
			for i := range numbers {
				m, _, err := client.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(fmt.Sprintf(name, i)), dns.TypeA), "8.8.8.8:53")
				mu.Lock()
				if err != nil {
					r.Refused++
					r.Error = err.Error()
				} else {
					r.OK++
					r.Codes[dns.RcodeToString[m.Rcode]]++
				}
				mu.Unlock()
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for asked, on := 0, true; on; {
		select {
		case <-stop:
			on = false
		case <-tick.C:
			for due := int(time.Since(began).Seconds() * float64(rate)); asked < due; asked++ {
				numbers <- asked
			}
		}
	}
	close(numbers)
	wg.Wait()
	r.Seconds = time.Since(began).Seconds()
	return r
}

// ask puts its questions one after the other to a server that is not there:
// whoever captures them answers.
func ask(name string, n int) (r Result) {
	began := time.Now()
	r.Codes = map[string]int{}
	client := dns.Client{Timeout: patience}
	for i := range n {
		q := name
		if slices.Contains([]byte(name), '%') {
			q = fmt.Sprintf(name, i)
		}
		m, _, err := client.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(q), dns.TypeA), "8.8.8.8:53")
		if err != nil {
			r.Error = err.Error()
			continue
		}
		r.OK++
		r.Codes[dns.RcodeToString[m.Rcode]]++
	}
	r.Seconds = time.Since(began).Seconds()
	return r
}
