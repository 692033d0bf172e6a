package redirect

import (
	"os"
	"strings"
	"testing"
)

// canary prints every IP packet on an interface that comes from the container
// or carries the word, and the sentinel that the host sends.
const canary = `
import socket,sys
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3)); s.bind(("%IF%",0)); print("ready",flush=True)
mac=bytes.fromhex("020000003002")
while True:
    f,a=s.recvfrom(4000)
    if a[2]==4: continue
    if b"SENTINEL" in f: print("SENTINEL",flush=True); continue
    p=f[14:]; t=f[12:14]
    own=f[6:12]==mac or (t==b"\x08\x00" and p[12:15]==bytes([172,30,0]) and p[15]!=1) or (t==b"\x86\xdd" and p[8:16]==bytes.fromhex("20010db800300000") and p[23]!=1)
    if t==b"\x86\xdd" and p[6]==58 and p[40] in (133,134,135,136): own=False
    if t==b"\x86\xdd" and p[6]==0 and p[40]==58: own=False
    if t==b"\x08\x06" and p[14:18]==bytes([172,30,0,2]) and p[8:14]==mac: own=False
    if own or b"CANARY" in f: print("leak "+f[:60].hex(),flush=True)
`

const hostCanary = `
import socket,threading
u=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); u.bind(("::",7777))
s=socket.socket(socket.AF_INET6); s.bind(("::",7778)); s.listen()
def tcp():
    while True: c,a=s.accept(); print("leak tcp",a,flush=True)
threading.Thread(target=tcp,daemon=True).start()
print("ready",flush=True)
while True:
    d,a=u.recvfrom(100); print("SENTINEL" if d==b"SENTINEL" else "leak %s %s"%(d,a),flush=True)
`

// attack is what a program with every capability in the namespace tries after
// it has thrown the ruleset away. No part waits for an answer.
const attack = `
import socket,struct,subprocess,os
def sh(c): subprocess.run(c,shell=True,stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL)
def tried(f):
    try: f()
    except OSError: pass
def udp(host,port,mark=0,source=None):
    def go():
        info=socket.getaddrinfo(host,port,type=socket.SOCK_DGRAM)[0]
        s=socket.socket(info[0],socket.SOCK_DGRAM)
        if mark: s.setsockopt(socket.SOL_SOCKET,36,struct.pack("I",mark))
        if source: s.bind((source,0))
        s.sendto(b"CANARY",info[4])
    tried(go)
def tcp(host,port,mark=0):
    def go():
        info=socket.getaddrinfo(host,port,type=socket.SOCK_STREAM)[0]
        s=socket.socket(info[0],socket.SOCK_STREAM); s.setblocking(False)
        if mark: s.setsockopt(socket.SOL_SOCKET,36,struct.pack("I",mark))
        s.connect_ex(info[4]); keep.append(s)
    tried(go)
keep=[]
def ping(host):
    def go():
        info=socket.getaddrinfo(host,0,type=socket.SOCK_DGRAM)[0]
        s=socket.socket(info[0],socket.SOCK_RAW,1 if info[0]==2 else 58)
        s.sendto(bytes([8 if info[0]==2 else 128,0,0,0,0,0,0,0])+b"CANARY",info[4])
    tried(go)
def csum(b):
    t=sum(struct.unpack("!%dH"%(len(b)//2),b)); t=(t>>16)+(t&0xffff); return ~(t+(t>>16))&0xffff
def ip(src,dst,proto,payload):
    h=struct.pack("!BBHHHBBH4s4s",0x45,0,20+len(payload),1,0,64,proto,0,socket.inet_aton(src),socket.inet_aton(dst))
    return h[:10]+struct.pack("!H",csum(h))+h[12:]+payload
def ip6(src,dst,proto,payload):
    return struct.pack("!IHBB16s16s",6<<28,len(payload),proto,64,socket.inet_pton(10,src),socket.inet_pton(10,dst))+payload
dgram=lambda port: struct.pack("!HHHH",9,port,14,0)+b"CANARY"
mine=bytes.fromhex("020000003002")
def frame(dst,src,kind,payload,bypass=False,lo=False):
    def go():
        s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); s.bind(("lo" if lo else "eth0",0))
        if bypass: s.setsockopt(263,20,1)
        s.send(dst+src+kind+payload)
    tried(go)
V4,V6,ARP=b"\x08\x00",b"\x86\xdd",b"\x08\x06"
gw,nb=bytes.fromhex(GATEWAY),bytes.fromhex("020000003003")
outside=["8.8.8.8","198.51.100.1","203.0.113.7","2001:db8:8::8","10.9.0.2"]
hosts=["172.30.0.1","10.9.0.1","2001:db8:30::1","2001:db8:9::1",HOSTLL+"%eth0","ff02::1%eth0"]
neighbours=["172.30.0.3","2001:db8:30::3"]
def everything():
    for mark in (0,0x04000000,0xffffffff):
        for h in outside+hosts+neighbours:
            udp(h,7777,mark); udp(h,53,mark); tcp(h,7778,mark)
    for h in outside+hosts+neighbours: udp(h,7777,0x08000087); ping(h)
    for bypass in (False,True):
        for dst in (gw,nb,b"\xff"*6):
            for a in ("198.51.100.1","172.30.0.1","172.30.0.3","224.0.0.251","255.255.255.255"):
                for src in ("172.30.0.2","172.30.0.1","172.30.0.3","172.30.0.77","8.8.8.8"):
                    frame(dst,mine,V4,ip(src,a,17,dgram(7777)),bypass)
                frame(dst,nb,V4,ip("172.30.0.3",a,17,dgram(7777)),bypass)
                frame(dst,mine,V4,ip("172.30.0.2",a,6,struct.pack("!HHIIBBHHH",9,80,1,1,0x50,0x10,99,0,0)+b"CANARY"),bypass)
                frame(dst,mine,V4,ip("172.30.0.2",a,132,b"CANARY.."),bypass)
                frame(dst,mine,b"\x81\x00\x00\x05"+V4,ip("172.30.0.2",a,17,dgram(7777)),bypass)
            for a in ("2001:db8:8::8","2001:db8:30::1","2001:db8:30::3","ff02::1",HOSTLL):
                for src in ("2001:db8:30::2","2001:db8:30::3","2001:db8:30::77"):
                    frame(dst,mine,V6,ip6(src,a,17,dgram(7777)),bypass)
            frame(dst,mine,b"\x88\xb5",b"CANARY"*10,bypass)
            frame(dst,mine,ARP,struct.pack("!HHBBH6s4s6s4s",1,0x800,6,4,2,mine,socket.inet_aton("172.30.0.77"),dst,socket.inet_aton("172.30.0.3"))+b"CANARY",bypass)
`

type leakTest struct {
	*lab
	world, neighbour, host func() string
}

func newLeakTest(t *testing.T, bridged string) *leakTest {
	l := newLab(t)
	l.container("ct", 2)
	l.container("nb", 3)
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		l.sh("host", "sysctl -qw net.bridge.bridge-nf-call-iptables="+bridged+" net.bridge.bridge-nf-call-ip6tables="+bridged)
	} else if bridged == "1" {
		t.Log("the kernel has no br_netfilter; this run is the same as with it off")
	}
	lt := &leakTest{
		lab:       l,
		world:     l.program("world", strings.Replace(canary, "%IF%", "in", 1)),
		neighbour: l.program("nb", strings.Replace(canary, "%IF%", "eth0", 1)),
		host:      l.program("host", hostCanary),
	}
	lt.world()
	lt.neighbour()
	lt.host()
	return lt
}

// run lets the container do something and returns what the canaries saw.
func (l *leakTest) run(program string) map[string][]string {
	l.t.Helper()
	ll := strings.Fields(l.sh("host", "ip -6 -o addr show dev br0 scope link"))[3]
	mac := strings.ReplaceAll(strings.TrimSpace(l.sh("host", "cat /sys/class/net/vct/master/address 2>/dev/null || cat /sys/class/net/vct/address")), ":", "")
	script := strings.NewReplacer("HOSTLL", `"`+strings.Split(ll, "/")[0]+`"`, "GATEWAY", `"`+mac+`"`).Replace(attack)
	l.python("ct", script+program+"\nprint('done')")
	// The attack forges the neighbour's hardware address: without a lock the
	// bridge then takes the neighbour to be where the attacker is, until it
	// says something itself.
	l.python("nb", `import socket
socket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(b"HERE",("172.30.0.1",9))`)
	l.python("host", `
import socket
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
for a in ("10.9.0.2","172.30.0.3","127.0.0.1"): u.sendto(b"SENTINEL",(a,7777))
print("sent")`)
	seen := map[string][]string{}
	for name, line := range map[string]func() string{"world": l.world, "neighbour": l.neighbour, "host": l.host} {
		for s := line(); s != "SENTINEL"; s = line() {
			seen[name] = append(seen[name], s)
		}
	}
	return seen
}

func (l *leakTest) silent(what string, seen map[string][]string) {
	l.t.Helper()
	for name, lines := range seen {
		l.t.Errorf("%s: %s received %d packets, first %s", what, name, len(lines), lines[0])
	}
}

// A program with every capability that has thrown the ruleset away reaches
// nobody: not outside, not the host, not its neighbours.
func TestAttacks(t *testing.T) {
	for _, bridged := range []string{"0", "1"} {
		t.Run("br_netfilter "+bridged, func(t *testing.T) {
			l := newLeakTest(t, bridged)
			before := l.run("everything()")
			for _, who := range []string{"world", "neighbour", "host"} {
				if len(before[who]) == 0 {
					t.Errorf("the attack reaches %s not even without a lock", who)
				}
			}
			a := l.install(l.open("ct"))
			l.silent("with the ruleset", l.run("everything()"))
			l.silent("after a flush", l.run(`sh("nft flush ruleset"); everything()`))
			l.silent("with another address", l.run(`sh("ip addr add 172.30.0.77/24 dev eth0; ip -6 addr add 2001:db8:30::77/64 dev eth0 nodad")
udp("198.51.100.1",7777,0,"172.30.0.77"); udp("2001:db8:8::8",7777,0,"2001:db8:30::77"); udp("172.30.0.3",7777,0,"172.30.0.77")
everything()`))
			l.silent("with a macvlan", l.run(`sh("ip link add mv0 link eth0 type macvlan mode bridge; ip addr add 172.30.0.88/24 dev mv0; ip link set mv0 up")
sh("ip link add iv0 link eth0 type ipvlan mode l2; ip addr add 172.30.0.89/24 dev iv0; ip link set iv0 up")
udp("172.30.0.3",7777,0,"172.30.0.88"); udp("198.51.100.1",7777,0,"172.30.0.88"); udp("172.30.0.3",7777,0,"172.30.0.89")`))
			if a.Interfaces()[0].Locked != true {
				t.Error("eth0 does not count as locked")
			}
		})
	}
}

// Rules that take packets out of connection tracking or translate them first
// get nothing out, whether or not somebody watches.
func TestNotrack(t *testing.T) {
	l := newLeakTest(t, "0")
	a := l.install(l.open("ct"))
	echoDst(a)
	for _, rules := range []string{
		"table inet x { chain raw { type filter hook output priority -300; notrack; }; }",
		"table inet x { chain raw { type filter hook output priority -300; meta mark set 0x04000000; notrack; }; }",
		"table inet x { chain nat { type nat hook output priority -199; accept; }; chain n2 { type nat hook output priority -198; tcp dport 7778 dnat ip to 198.51.100.1:7778; }; }",
	} {
		l.sh("ct", "nft '"+rules+"'")
		l.silent(rules, l.run("everything()"))
		l.sh("ct", "nft delete table inet x")
	}
}

// A veth that is routed by the host, without a bridge.
func TestRoutedVeth(t *testing.T) {
	l := newLeakTest(t, "0")
	l.sh("ct", "ip route flush dev eth0")
	l.sh("host", "ip link set vct nomaster; ip addr flush dev vct; ip addr add 172.31.0.1/32 dev vct; ip route add 172.30.0.2/32 dev vct; ip -6 route add 2001:db8:30::2/128 dev vct")
	l.sh("ct", "ip route add 172.31.0.1 dev eth0; ip route add default via 172.31.0.1")
	a := l.install(l.open("ct"))
	echoDst(a)
	if got := l.python("ct", talk+`print(talk(TCP, "198.51.100.1", 443))`); got != "198.51.100.1:443 <nil>" {
		t.Errorf("got %q", got)
	}
	l.silent("after a flush", l.run(`sh("nft flush ruleset"); everything()`))
}

// Docker's resolver answers on another port than 53, too.
func TestResolverByRealPort(t *testing.T) {
	l := newLab(t)
	ns := l.container("ct", 2)
	resolver := l.program("ct", `
import socket
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.bind(("127.0.0.11",40000)); print("ready",flush=True)
while True: d,a=u.recvfrom(99); print(d.decode(),flush=True)`)
	resolver()
	ask := `
import struct
udp("127.0.0.11",40000); udp("127.0.0.11",40000,1)
# as a reply: first a packet that claims to come from the resolver
def raw():
    s=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW); s.sendto(ip("127.0.0.11","127.0.0.1",17,struct.pack("!HHHH",40000,5555,9,0)+b"y"),("127.0.0.1",0))
tried(raw)
def answer():
    s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(("127.0.0.1",5555)); s.sendto(b"CANARY",("127.0.0.11",40000))
tried(answer)
sh("cd /proc/sys/net/ipv4/conf/lo; echo 1 > route_localnet; echo 1 > accept_local; echo 0 > rp_filter")
frame(b"\0"*6,b"\0"*6,V4,ip("127.0.0.1","127.0.0.11",17,dgram(40000)),lo=True)
`
	word := func(w string) string {
		return "import socket\nsocket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(b'" + w + "',('127.0.0.11',40000))\nprint('sent')"
	}
	heard := func(last string) (n int) {
		for resolver() != last {
			n++
		}
		return n
	}
	script := strings.NewReplacer("HOSTLL", `"fe80::1"`, "GATEWAY", `"ffffffffffff"`).Replace(attack) + ask + "\nprint('done')"
	l.python("ct", script)
	l.python("ct", word("MIDDLE"))
	if n := heard("MIDDLE"); n < 4 {
		t.Errorf("without us the resolver hears %d queries; the attack is not what it should be", n)
	}
	a := l.install(ns)
	l.python("ct", script)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	l.python("ct", word("END"))
	if n := heard("END"); n != 0 {
		t.Errorf("%d queries reached the resolver", n)
	}
}
