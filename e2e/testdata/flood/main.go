// Flood opens connections to an echo server at a steady rate until its
// standard input ends, and prints one line for each that was answered: when it
// was begun and when it was answered, in nanoseconds since 1970.
//
// Usage: flood ADDRESS:PORT PER-SECOND
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long one attempt may take; workers is how many may be under
// way at once.
const (
	patience = 2 * time.Second
	workers  = 256
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: flood ADDRESS:PORT PER-SECOND")
	}
	rate, err := strconv.Atoi(os.Args[2])
	if err != nil || rate < 1 {
		log.Fatalf("flood: %q: want a number of connections a second", os.Args[2])
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	out := bufio.NewWriter(os.Stdout)
	var mu sync.Mutex
	var tried atomic.Int64
	var wg sync.WaitGroup
	due := make(chan struct{})
	for range workers {
		wg.Go(func() {
			for range due {
				tried.Add(1)
				start := time.Now()
				if answered(os.Args[1]) {
					mu.Lock()
					fmt.Fprintf(out, "%d %d\n", start.UnixNano(), time.Now().UnixNano())
					mu.Unlock()
				}
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	begin, sent := time.Now(), 0
loop:
	for {
		select {
		case <-stop:
			break loop
		case <-tick.C:
		}
		// What could not be begun in time is not made up for.
		for want := int(time.Since(begin).Seconds() * float64(rate)); sent < want; sent++ {
			select {
			case due <- struct{}{}:
			default:
			}
		}
	}
	close(due)
	wg.Wait()
	fmt.Fprintf(out, "tried %d in %d ms\n", tried.Load(), time.Since(begin).Milliseconds())
	out.Flush()
}

// answered says whether the server echoed a byte.
func answered(address string) bool {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte{'x'}); err != nil {
		return false
	}
	n, err := io.ReadFull(c, make([]byte, 1))
	return err == nil && n == 1
}
