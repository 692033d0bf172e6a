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

// BenchmarkTCP is one round of each job: all ways, one after the other.
func BenchmarkTCP(b *testing.B) {
	for _, job := range []struct {
		name string
		n    int
	}{{"up1", 1024}, {"down1", 1024}, {"up8", 1024}, {"down8", 1024}, {"rate", 8000}, {"fresh", 4000}, {"named", 4000}, {"keep", 10000}} {
		b.Run(job.name, func(b *testing.B) {
			l := theLab.open(b)
			for b.Loop() {
				var direct []float64
				for _, w := range l.ways {
					if job.name == "named" && w.name == "weir" {
						l.client(b, w.namespace, resolver, "cached", 2)
					}
					user, kernel := cpu(b, w.proxy)
					got := l.client(b, w.namespace, server, job.name, job.n)
					user1, kernel1 := cpu(b, w.proxy)
					user, kernel = user1-user, kernel1-kernel
					used := user + kernel
					if w.proxy == nil {
						direct = got
					}
					report := func(value float64, unit string) { b.ReportMetric(value, w.name+":"+unit) }
					switch job.name {
					case "fresh", "named", "keep":
						if w.proxy == nil {
							report(got[0], "p50-µs")
							report(got[1], "p99-µs")
							continue
						}
						report(got[0]-direct[0], "added-p50-µs")
						report(got[1]-direct[1], "added-p99-µs")
						report(used/float64(job.n)*1e6, "cpu-µs/op")
						report(user/float64(job.n)*1e6, "user-µs/op")
					case "rate":
						if w.proxy == nil {
							report(got[0], "conns/s")
							continue
						}
						report(got[0]/direct[0], "of-direct")
						report(used/float64(job.n)*1e6, "cpu-µs/op")
						report(user/float64(job.n)*1e6, "user-µs/op")
					default:
						if w.proxy == nil {
							report(got[0]*8/1000, "Gbit/s")
							continue
						}
						report(got[0]/direct[0], "of-direct")
						report(used/float64(job.n)*1024, "cpu-s/GB")
					}
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkIdle is what a connection costs that moves nothing. Of the kernel's
// memory it is what is used beyond that of a direct connection.
func BenchmarkIdle(b *testing.B) {
	const n = 2000
	l := theLab.open(b)
	hold := func(w way) (slabs, memory, files float64) {
		s0, m0, f0 := slab(b), 0.0, 0.0
		if w.proxy != nil {
			m0, f0 = resident(b, w.proxy), descriptors(b, w.proxy)
		}
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		defer cancel()
		c := l.command(ctx, w.namespace, fmt.Sprintf("client %s idle %d", server, n))
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
		slabs = slab(b) - s0
		if w.proxy != nil {
			memory, files = resident(b, w.proxy)-m0, descriptors(b, w.proxy)-f0
		}
		in.Close()
		c.Wait()
		return slabs / n, memory / n, files / n
	}
	for b.Loop() {
		l.startDaemon(b) // memory that it has already would not be seen
		var direct float64
		for _, w := range l.ways {
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
	if binary := peer("dnsmasq"); binary != "" {
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
				user, kernel := cpu(b, l.daemon)
				ours := l.client(b, l.ways[1].namespace, resolver, job, n)[0]
				b.ReportMetric(ours, "weir:queries/s")
				user1, kernel1 := cpu(b, l.daemon)
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
