package redirect

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// watched is an attachment with its Watch running.
type watched struct {
	*lab
	a       *Attachment
	reports chan Tamper
}

func newWatched(t *testing.T) *watched {
	l := newLab(t)
	ns := l.container("ct", 2)
	l.sh("ct", "nft add table ip theirs '{ chain out { type nat hook output priority -100; ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40000; }; }'")
	return watch(t, l, l.install(ns))
}

// watch runs an attachment's Watch as long as the test.
func watch(t *testing.T, l *lab, a *Attachment) *watched {
	w := &watched{lab: l, a: a, reports: make(chan Tamper, 4096)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.a.Watch(ctx, func(tamper Tamper) { w.reports <- tamper }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return w
}

func (w *watched) next(kind TamperKind) Tamper {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-w.reports:
			if got.Kind == kind {
				return got
			}
			w.t.Logf("passed over: %+v", got)
		case <-deadline:
			w.t.Fatalf("no report of kind %s", kind)
		}
	}
}

// Whatever is done to our table is undone and reported; what is not ours is
// left alone.
func TestWatchRestoresRuleset(t *testing.T) {
	w := newWatched(t)
	whole := w.sh("ct", "nft list table inet weir")
	for _, c := range []struct{ do, want string }{
		{"nft flush ruleset", "table inet weir was deleted"},
		{"nft delete table inet weir", "table inet weir was deleted"},
		{"nft flush chain inet weir capture_output", "chain capture_output was changed"},
		{"nft insert rule inet weir judge_output accept", "chain judge_output was changed"},
		{"nft add chain inet weir judge_output '{ policy accept; }'", "chain judge_output was changed"},
		{"nft add chain inet weir mine '{ type filter hook output priority -300; }'", "chain mine was added"},
		{"nft add set inet weir s '{ type mark; }'", "set s was added"},
		{"nft delete element inet weir uplinks '{ eth0 }'", "set uplinks was changed"},
		{"nft add table inet weir '{ flags dormant; }'", "table was changed"},
		// Over when it is looked for.
		{"nft 'add chain inet weir c; delete chain inet weir c'", "looks as before"},
	} {
		start := time.Now()
		w.sh("ct", c.do)
		got := w.next(Ruleset)
		if !got.Restored || got.Err != nil || !strings.Contains(got.What, c.want) {
			t.Errorf("%s: got %+v, want %q", c.do, got, c.want)
		}
		t.Logf("%s: %q after %v", c.do, got.What, time.Since(start))
		if d := cmp.Diff(whole, w.sh("ct", "nft list table inet weir")); d != "" {
			t.Errorf("%s: the table is another than before:\n%s", c.do, d)
		}
	}
	// Another table with as many rules, whose handles are the same.
	theirs, _, err := openNFT(w.a.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.CloseLasting()
	if err := newRuleset(ports{tcp: 1, dnsTCP: 2, dnsUDP: 3, udp: 4}).install(theirs, w.a.links.uplinkIndexes(w.a.interfaces)); err != nil {
		t.Fatal(err)
	}
	if got := w.next(Ruleset); !got.Restored || !strings.Contains(got.What, "looks as before") {
		t.Errorf("another table: got %+v", got)
	}
	if d := cmp.Diff(whole, w.sh("ct", "nft list table inet weir")); d != "" {
		t.Errorf("the other table is still there:\n%s", d)
	}
	echoDst(w.a)
	if got := w.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "198.51.100.1:443 <nil>" {
		t.Errorf("got %q", got)
	}
	w.sh("ct", "nft add table ip theirs2 '{ chain out { type nat hook output priority -100; }; }'; nft add table ip theirs3 '{ chain raw { type filter hook output priority -300; }; }'")
	if got := w.next(ForeignChain); !strings.Contains(got.What, "theirs3") || got.Restored {
		t.Errorf("got %+v", got)
	}
	if out := w.sh("ct", "nft list tables"); !strings.Contains(out, "theirs2") || !strings.Contains(out, "theirs3") {
		t.Errorf("foreign tables were removed:\n%s", out)
	}
}

// A container that changes its ruleset without end does not end the watch.
func TestWatchUnderFire(t *testing.T) {
	w := newWatched(t)
	whole := w.sh("ct", "nft list table inet weir")
	w.sh("ct", "i=0; while [ $i -lt 60 ]; do nft flush ruleset; nft add table inet weir; nft delete table inet weir || true; i=$((i+1)); done 2>/dev/null")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		if got, err := w.try("ct", "nft list table inet weir"); err == nil && got == whole {
			return
		}
	}
	t.Error("the ruleset did not come back")
}

// An interface that comes later is locked at once, an address that the
// container gives itself is reported.
func TestWatchInterfaces(t *testing.T) {
	w := newWatched(t)
	w.sh("", "ip -n "+w.prefix+"host link add late type veth peer name tmp0")
	w.sh("host", "ip link add br1 type bridge; ip link set late master br1 up; ip link set br1 up; ip addr add 172.29.0.1/24 dev br1; ip link set tmp0 netns "+w.prefix+"ct")
	if got := w.next(NewInterface); !got.Restored || !strings.Contains(got.What, "late is locked") {
		t.Errorf("got %+v", got)
	}
	w.sh("ct", "ip link set tmp0 name eth1; ip addr add 172.29.0.2/24 dev eth1; ip link set eth1 up")
	if !slices.ContainsFunc(w.a.Interfaces(), func(i Interface) bool { return i.Host == "late" && i.Locked }) {
		t.Errorf("interfaces: %+v", w.a.Interfaces())
	}
	// The new network's own address gets through once it is there.
	w.program("ct", `
import socket
s=socket.socket(); s.bind(("172.29.0.2",80)); s.listen(); print("ready",flush=True)
while True: c,_=s.accept(); c.send(b"late"); c.close()`)()
	if got := w.python("host", talk+`print(talk(TCP, "172.29.0.2", 80))`); got != "late" {
		t.Errorf("inbound by the new network: got %q", got)
	}
	if out := w.sh("ct", "nft list set inet weir uplinks"); !strings.Contains(out, "eth1") {
		t.Errorf("uplinks:\n%s", out)
	}
	w.sh("ct", "ip addr add 172.30.0.99/24 dev eth0")
	if got := w.next(AddressChange); !strings.Contains(got.What, "eth0") {
		t.Errorf("got %+v", got)
	}
	w.sh("host", "ip link del late")
	if got := w.sh("host", "nft list ruleset"); !strings.Contains(got, "vct") {
		t.Errorf("the lock of eth0 is gone:\n%s", got)
	}
}

// A program with CAP_NET_ADMIN over the host can make an interface on one of
// the host's. That cannot be locked; where nobody asked for more, it is told.
func TestInterfaceOnTheHostsIsReported(t *testing.T) {
	w := newWatched(t)
	index := strings.TrimSpace(w.sh("host", "cat /sys/class/net/out/ifindex"))
	w.sh("ct", "ip link add link if"+index+" name mv0 link-netnsid 0 type macvlan")
	if got := w.next(NewInterface); got.Restored || got.Err == nil || !strings.Contains(got.What, "mv0") {
		t.Errorf("got %+v", got)
	}
}

// Frames of such an interface leave by the host's own, past both locks. With
// Evict it is gone as soon as it is seen, and only it.
func TestInterfaceOnTheHostsIsRemoved(t *testing.T) {
	l := newLeakTest(t, "0")
	a := l.installAs(l.open("ct"), Spec{Evict: true})
	index := strings.TrimSpace(l.sh("host", "cat /sys/class/net/out/ifindex"))
	macvlan := "ip link add link if" + index + " name mv0 link-netnsid 0 type macvlan mode bridge; ip link set mv0 up"
	send := `
def out():
    s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); s.bind(("mv0",0))
    s.send(b"\xff"*6+mine+V4+ip("172.30.0.2","198.51.100.1",17,dgram(7777)))
tried(out)
`
	l.sh("ct", macvlan)
	if seen := l.run(send); len(seen["world"]) == 0 {
		t.Errorf("while nobody watches nothing gets out either; the attack is not what it should be")
	}
	w := watch(t, l.lab, a)
	for _, c := range []struct{ name, add string }{
		{"mv0", ""}, // from before
		{"mv0", macvlan},
		{"vx0", "ip link add vx0 link-netnsid 0 type vxlan id 7 dstport 4789 local 10.9.0.1 remote 10.9.0.2"},
	} {
		l.sh("ct", c.add)
		if got := w.next(NewInterface); !got.Restored || got.Err != nil || !strings.Contains(got.What, c.name+" has come and was removed") {
			t.Errorf("%s: got %+v", c.name, got)
		}
		if out, err := l.try("ct", "ip link show "+c.name); err == nil {
			t.Errorf("%s is still there: %s", c.name, out)
		}
	}
	l.silent("after the removal", l.run(send))

	l.sh("ct", "ip link add own0 link eth0 type macvlan mode bridge")
	if got := w.next(NewInterface); !got.Restored || !strings.Contains(got.What, "own0 has come, it needs no lock") {
		t.Errorf("got %+v", got)
	}
	l.sh("ct", "ip link show own0")
	echoDst(a)
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "198.51.100.1:443 <nil>" {
		t.Errorf("the capture does not work any more: got %q", got)
	}
}

func TestHostLockRestored(t *testing.T) {
	w := newWatched(t)
	for _, do := range []string{"nft flush ruleset", "nft delete table netdev " + w.a.lock.table().Name, "nft flush chain bridge weir_lock judge"} {
		whole := w.sh("host", "nft list ruleset")
		w.sh("host", do)
		found, err := w.a.checkHostLock()
		if err != nil || len(found) > 1 {
			t.Fatalf("%s: %+v, %v", do, found, err)
		}
		for _, f := range found {
			if f.Kind != HostLock || !f.Restored {
				t.Errorf("%s: %+v", do, f)
			}
		}
		lines := func(s string) []string { l := strings.Split(s, "\n"); slices.Sort(l); return l }
		if d := cmp.Diff(lines(whole), lines(w.sh("host", "nft list ruleset"))); d != "" {
			t.Errorf("%s: the lock is another than before:\n%s", do, d)
		}
	}
}

func TestClassify(t *testing.T) {
	attrs := func(nsid, parent, master int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: "x", Index: 9, NetNsID: nsid, ParentIndex: parent, MasterIndex: master}
	}
	for _, c := range []struct {
		name                    string
		link                    netlink.Link
		uplink, reason, outside bool
	}{
		{"veth to the host", &netlink.Veth{LinkAttrs: attrs(3, 7, 0)}, true, false, false},
		{"veth to elsewhere", &netlink.Veth{LinkAttrs: attrs(4, 7, 0)}, true, true, false},
		{"veth of a nested container", &netlink.Veth{LinkAttrs: attrs(4, 7, 5)}, false, false, false},
		{"veth to itself", &netlink.Veth{LinkAttrs: attrs(-1, 7, 0)}, false, false, false},
		{"bridge", &netlink.Bridge{LinkAttrs: attrs(-1, 0, 0)}, false, false, false},
		{"macvlan on the host's", &netlink.Macvlan{LinkAttrs: attrs(3, 2, 0)}, true, true, true},
		{"macvlan on its own", &netlink.Macvlan{LinkAttrs: attrs(-1, 2, 0)}, true, false, false},
		{"tap", &netlink.Tuntap{LinkAttrs: attrs(-1, 0, 0)}, true, true, false},
		{"device", &netlink.Device{LinkAttrs: attrs(-1, 0, 0)}, true, true, false},
		{"tunnel", &netlink.Sittun{LinkAttrs: attrs(-1, 0, 0)}, true, false, false},
		{"tunnel from the host's", &netlink.Sittun{LinkAttrs: attrs(3, 0, 0)}, true, true, true},
		{"vxlan from elsewhere", &netlink.Vxlan{LinkAttrs: attrs(4, 0, 0)}, true, true, true},
		{"wireguard", &netlink.Wireguard{LinkAttrs: attrs(-1, 0, 0)}, true, true, true},
	} {
		got := classify(c.link, 3)
		if got.uplink != c.uplink || (got.Reason != "") != c.reason || got.outside != c.outside {
			t.Errorf("%s: got uplink %v, reason %q, outside %v", c.name, got.uplink, got.Reason, got.outside)
		}
	}
}

func TestBypass(t *testing.T) {
	for _, c := range []struct {
		family   nftables.TableFamily
		kind     nftables.ChainType
		hook     *nftables.ChainHook
		priority nftables.ChainPriority
		want     bool
	}{
		{nftables.TableFamilyIPv4, nftables.ChainTypeNAT, nftables.ChainHookOutput, -100, false}, // Docker's
		{nftables.TableFamilyIPv4, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100, false},
		{nftables.TableFamilyIPv4, nftables.ChainTypeNAT, nftables.ChainHookOutput, -150, true},
		{nftables.TableFamilyIPv6, nftables.ChainTypeFilter, nftables.ChainHookOutput, -300, true},
		{nftables.TableFamilyIPv4, nftables.ChainTypeRoute, nftables.ChainHookOutput, -150, true},
		{nftables.TableFamilyINet, nftables.ChainTypeFilter, nftables.ChainHookOutput, 0, false},
		{nftables.TableFamilyINet, nftables.ChainTypeFilter, nftables.ChainHookPostrouting, 0, true},
		{nftables.TableFamilyNetdev, nftables.ChainTypeFilter, nftables.ChainHookIngress, 0, true},
		{nftables.TableFamilyBridge, nftables.ChainTypeFilter, nftables.ChainHookForward, 0, false},
	} {
		ch := &nftables.Chain{Table: &nftables.Table{Name: "x", Family: c.family}, Type: c.kind, Hooknum: c.hook, Priority: &c.priority}
		if got := bypass(ch); (got != "") != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}

func TestHostAddresses(t *testing.T) {
	addrs, err := HostAddresses()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(addrs, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("127.0.0.1 is not among %v", addrs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []netip.Addr
	if err := WatchHostAddresses(ctx, func(a []netip.Addr) { got = a; cancel() }); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("127.0.0.1 is not among %v", got)
	}
}
