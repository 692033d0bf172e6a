package redirect

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/*.nft from the kernel's listing")

// The kernel's own listing of what we installed is compared with testdata, and
// each rule with the text it claims to be.
func TestListing(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	a := l.install(ns)
	p := a.listeners.ports()
	named := strings.NewReplacer(
		itoa(p.tcp), "TCP", itoa(p.dnsTCP), "DNSTCP", itoa(p.dnsUDP), "DNSUDP", ":"+itoa(p.udp), ":UDP", " "+itoa(p.udp)+" ", " UDP ", a.lock.table().Name, "weir-NAME",
	)
	for _, listing := range []struct {
		in, file string
		chains   []chain
	}{
		{"ct", "namespace.nft", a.rules.chains},
		{"host", "host.nft", []chain{lockPrerouting(), lockBridge(), lockIngress(a.interfaces[0])}},
	} {
		raw := l.sh(listing.in, "nft list ruleset")
		got := named.Replace(raw)
		file := filepath.Join("testdata", listing.file)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s (-want +got):\n%s", file, d)
		}
		for _, ch := range listing.chains {
			for _, r := range ch.rules {
				if !strings.Contains(raw, "\t\t"+r.text+"\n") {
					t.Errorf("chain %s: the kernel does not list the rule %q", ch.name, r.text)
				}
			}
		}
	}
}

func itoa(p uint16) string { return strconv.Itoa(int(p)) }
