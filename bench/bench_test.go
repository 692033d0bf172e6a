package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A job is a benchmark of which each round is all ways that can do it, one after the
// other.
type job struct {
	name  string
	needs ability // one of them
	n     int
}

// BenchmarkTCP is connections, and plain HTTP where a name is needed.
func BenchmarkTCP(b *testing.B) {
	for _, j := range []job{{"up1", relays, 1024}, {"down1", relays, 1024}, {"up8", relays, 1024}, {"down8", relays, 1024}, {"rate", relays, 8000},
		{"fresh", relays, 4000}, {"named", relays | requests, 4000}, {"keep", relays, 10000}} {
		j.measure(b)
	}
}

// BenchmarkInspected is HTTP in TLS that everybody in between opens and judges.
func BenchmarkInspected(b *testing.B) {
	for _, j := range []job{{"rest1", inspects, 2000}, {"rest64", inspects, 1000}, {"tls", inspects, 500}} {
		j.measure(b)
	}
}

func (j job) measure(b *testing.B) {
	b.Run(j.name, func(b *testing.B) {
		l := theLab.open(b)
		for b.Loop() {
			var direct []float64
			for _, w := range l.ways {
				if w.does&j.needs == 0 {
					continue
				}
				got, user, kernel := l.round(b, w, j)
				if w.proxy == nil {
					direct = got
				}
				report := func(value float64, unit string) { b.ReportMetric(value, w.name+":"+unit) }
				perOperation := func() {
					report((user+kernel)/float64(j.n)*1e6, "cpu-µs/op")
					report(user/float64(j.n)*1e6, "user-µs/op")
				}
				switch j.name {
				case "fresh", "named", "keep", "rest1", "rest64", "tls":
					if w.proxy == nil {
						report(got[0], "p50-µs")
						report(got[1], "p99-µs")
						continue
					}
					report(got[0]-direct[0], "added-p50-µs")
					report(got[1]-direct[1], "added-p99-µs")
					if j.needs == inspects {
						report(got[2]/direct[2], "of-direct")
					}
					perOperation()
				case "rate":
					if w.proxy == nil {
						report(got[0], "conns/s")
						continue
					}
					report(got[0]/direct[0], "of-direct")
					perOperation()
				default:
					if w.proxy == nil {
						report(got[0]*8/1000, "Gbit/s")
						continue
					}
					report(got[0]/direct[0], "of-direct")
					report((user+kernel)/float64(j.n)*1024, "cpu-s/GB")
				}
			}
		}
		b.ReportMetric(0, "ns/op")
	})
}

// round does a job once by a way; it returns what the client says, and the
// CPU time that was used in between.
func (l *lab) round(b *testing.B, w way, j job) (got []float64, user, kernel float64) {
	b.Helper()
	if w.name == "weir" && j.needs&(requests|inspects) != 0 {
		l.client(b, w.namespace, resolver, "cached", 2)
	}
	addr, roots := w.server+port, []string(nil)
	if j.needs == inspects {
		addr, roots = w.server+securePort, []string{w.roots}
		if status := l.client(b, w.namespace, addr, "refused", 1, w.roots)[0]; w.proxy != nil && status != 403 {
			b.Fatalf("%s answers %v to what it is to refuse", w.name, status)
		}
	}
	before, before1 := cpu(b, w.proxy)
	got = l.client(b, w.namespace, addr, j.name, j.n, roots...)
	user, kernel = cpu(b, w.proxy)
	return got, user - before, kernel - before1
}

// BenchmarkIdle is what a connection costs that moves nothing. Of the kernel's
// memory it is what is used beyond that of a direct connection.
func BenchmarkIdle(b *testing.B) {
	const n = 2000
	l := theLab.open(b)
	hold := func(w way) (slabs, memory, files float64) {
		s0, m0, f0 := slab(b), resident(b, w.proxy), descriptors(b, w.proxy)
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		defer cancel()
		c := l.command(ctx, w.namespace, fmt.Sprintf("client %s idle %d", w.server+port, n))
		in, err := c.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		var got int
		if _, err := fmt.Fscanln(out, &got); err != nil {
			b.Fatal(err)
		}
		time.Sleep(2 * time.Second) // what only settles
		slabs, memory, files = slab(b)-s0, resident(b, w.proxy)-m0, descriptors(b, w.proxy)-f0
		in.Close()
		c.Wait()
		return slabs / n, memory / n, files / n
	}
	for b.Loop() {
		l.startDaemon(b) // memory that it has already would not be seen
		var direct float64
		for _, w := range l.ways {
			if w.does&relays == 0 {
				continue
			}
			slabs, memory, files := hold(w)
			if w.proxy == nil {
				direct = slabs
				continue
			}
			b.ReportMetric(memory, w.name+":B/conn")
			b.ReportMetric(slabs-direct, w.name+":kernel-B/conn")
			b.ReportMetric(files, w.name+":fds/conn")
			time.Sleep(time.Second)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkDNS asks the daemon, which records each question, and dnsmasq,
// which records none.
func BenchmarkDNS(b *testing.B) {
	l := theLab.open(b)
	var dnsmasq *exec.Cmd
	if binary := peer(program{name: "dnsmasq"}); binary != "" {
		dnsmasq = exec.Command(binary, "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--server=198.51.100.53", "--listen-address=10.10.0.1",
			"--bind-interfaces", "--cache-size=10000", "--dns-forward-max=10000", "--user=root", "--group=root", "--pid-file="+filepath.Join(l.dir, "dnsmasq.pid"))
		dnsmasq.Stderr = os.Stderr
		l.start(b, dnsmasq)
		time.Sleep(300 * time.Millisecond) // it says nothing when it is ready
		defer dnsmasq.Process.Kill()
	}
	for _, job := range []string{"cached", "missed"} {
		b.Run(job, func(b *testing.B) {
			for b.Loop() {
				const n = 20000
				user, kernel := cpu(b, l.ways[1].proxy)
				ours := l.client(b, l.ways[1].namespace, resolver, job, n)[0]
				b.ReportMetric(ours, "weir:queries/s")
				user1, kernel1 := cpu(b, l.ways[1].proxy)
				b.ReportMetric((user1-user+kernel1-kernel)/n*1e6, "weir:cpu-µs/op")
				if dnsmasq != nil {
					theirs := l.client(b, "direct", "10.10.0.1:53", job, n)[0]
					b.ReportMetric(theirs, "dnsmasq:queries/s")
					b.ReportMetric(ours/theirs, "weir:of-dnsmasq")
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
