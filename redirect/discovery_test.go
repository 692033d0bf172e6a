package redirect

import "testing"

// A container advertises itself as nobody's router, redirects nobody, and
// speaks for no neighbour's address.
func TestRouterAndForeignAdvertisementsStayInside(t *testing.T) {
	const advertise = `
def icmp6(src,dst,body):
    pseudo=socket.inet_pton(10,src)+socket.inet_pton(10,dst)+struct.pack("!II",len(body),58)
    return ip6(src,dst,58,body[:2]+struct.pack("!H",csum(pseudo+body))+body[4:]).replace(b"\x3a\x40",b"\x3a\xff",1)
own=subprocess.run("ip -6 -o addr show dev eth0 scope link",shell=True,capture_output=True,text=True).stdout.split()[3].split("/")[0]
word=b"CANARY.."*2
other,gateway=socket.inet_pton(10,"2001:db8:30::3"),socket.inet_pton(10,"2001:db8:30::1")
for src in (own,"2001:db8:30::2","2001:db8:30::3"):
    for dst,mac in (("ff02::1",b"\x33\x33\0\0\0\x01"),("2001:db8:30::3",nb)):
        for body in (
            b"\x86\0\0\0\x40\0\xff\xff"+b"\0"*8+word,           # router advertisement
            b"\x89\0\0\0\0\0\0\0"+gateway+other+word,           # redirect
            b"\x88\0\0\0\x20\0\0\0"+other+word,                 # neighbour advertisement for the neighbour
            b"\x88\0\0\0\x20\0\0\0"+gateway+word,               # and for the gateway
        ):
            frame(mac,mine,V6,icmp6(src,dst,body))
`
	for _, bridged := range []string{"0", "1"} {
		l := newLeakTest(t, bridged)
		if seen := l.run(advertise); len(seen["neighbour"]) < 20 {
			t.Errorf("without a lock the neighbour sees %d packets", len(seen["neighbour"]))
		}
		l.install(l.open("ct"))
		l.silent("with the ruleset", l.run(advertise))
		l.silent("after a flush", l.run(`sh("nft flush ruleset")`+advertise))
	}
}

// What finds neighbours carries nothing: a solicitation or an advertisement of
// its own that the container sends to an address far away is not forwarded
// there, and ARP has no room behind its addresses.
func TestNeighbourDiscoveryIsNoWayOut(t *testing.T) {
	const far = `
def icmp6(src,dst,body,extra=b""):
    pseudo=socket.inet_pton(10,src)+socket.inet_pton(10,dst)+struct.pack("!II",len(body),58)
    body=body[:2]+struct.pack("!H",csum(pseudo+body))+body[4:]
    if extra: return ip6(src,dst,extra[0],bytes([58])+extra[1:]+body).replace(b"\x40",b"\xff",1)
    return ip6(src,dst,58,body).replace(b"\x3a\x40",b"\x3a\xff",1)
word=b"CANARY.."*2
target=socket.inet_pton(10,"2001:db8:30::2")
for body in (b"\x87\0\0\0\0\0\0\0"+target+word, b"\x88\0\0\0\x20\0\0\0"+target+word):
    for dst,mac in (("2001:db8:8::8",gw),("2001:db8:9::2",gw),("2001:db8:30::3",nb)):
        for extra in (b"",bytes([0,0,5,2,0,0,1,0]),bytes([60,0,1,4,0,0,0,0])):
            frame(mac,mine,V6,icmp6("2001:db8:30::2",dst,body,extra))
arp=lambda op,to: struct.pack("!HHBBH6s4s6s4s",1,0x800,6,4,op,mine,socket.inet_aton("172.30.0.2"),to,socket.inet_aton("172.30.0.3"))+b"CANARY"
for to in (nb,b"\xff"*6):
    frame(to,mine,ARP,arp(1,b"\0"*6)); frame(to,mine,ARP,arp(2,nb))
`
	for _, bridged := range []string{"0", "1"} {
		l := newLeakTest(t, bridged)
		l.sh("host", "busybox ping -6 -c 1 -W 5 2001:db8:9::2") // so that nothing waits in the host to be sent later
		seen := l.run(far)
		if len(seen["world"]) < 4 || len(seen["neighbour"]) < 10 {
			t.Errorf("without a lock the world sees %d packets, the neighbour %d", len(seen["world"]), len(seen["neighbour"]))
		}
		l.install(l.open("ct"))
		l.silent("with the ruleset", l.run(far))
		l.silent("after a flush", l.run(`sh("nft flush ruleset")`+far))
	}
}

// An ICMP error counts as part of the connection that it quotes, whoever sends
// it. A container must not answer in connections that others have with
// somebody outside.
func TestErrorsAboutConnectionsOfOthers(t *testing.T) {
	const quote = `
def error(src,dst,inner,kind=3,code=1):
    body=bytes([kind,code,0,0,0,0,0,0])+inner
    return ip(src,dst,1,body[:2]+struct.pack("!H",csum(body))+body[4:])
def error6(src,dst,inner,kind=1,code=0):
    body=bytes([kind,code,0,0,0,0,0,0])+inner
    pseudo=socket.inet_pton(10,src)+socket.inet_pton(10,dst)+struct.pack("!II",len(body),58)
    return ip6(src,dst,58,body[:2]+struct.pack("!H",csum(pseudo+body))+body[4:])
udp4=struct.pack("!HHHH",5000,7000,24,0)+b"CANARY.."*2
for src,dst in (("10.9.0.2","172.30.0.3"),("10.9.0.2","10.9.0.1")):
    for kind,code in ((3,1),(3,3),(3,4),(5,1),(11,0),(12,0)): frame(gw,mine,V4,error("172.30.0.2",src,ip(src,dst,17,udp4),kind,code))
for src,dst in (("2001:db8:9::2","2001:db8:30::3"),("2001:db8:9::2","2001:db8:9::1")):
    for kind,code in ((1,4),(2,0),(3,0),(4,0)): frame(gw,mine,V6,error6("2001:db8:30::2",src,ip6(src,dst,17,udp4),kind,code))
`
	l := newLeakTest(t, "0")
	l.program("nb", `
import socket
u=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); u.bind(("::",7000)); print("ready",flush=True)
while True: u.recvfrom(99)`)()
	l.program("world", `
import socket,time
print("ready",flush=True)
s=[]
for f,me,to in ((2,"10.9.0.2",("172.30.0.3","10.9.0.1")),(10,"2001:db8:9::2",("2001:db8:30::3","2001:db8:9::1"))):
    u=socket.socket(f,socket.SOCK_DGRAM); u.bind((me,5000)); s.append((u,to))
while True:
    for u,to in s:
        for t in to: u.sendto(b"hello",(t,7000))
    print("again",flush=True); time.sleep(0.2)`)()
	l.sh("host", "nft 'add table inet theirs { chain c { type filter hook prerouting priority 0; ct state new; }; }'") // tracks connections
	if seen := l.run(quote); len(seen["world"]) < 8 {
		t.Errorf("without a lock the world sees %d packets", len(seen["world"]))
	}
	l.install(l.open("ct"))
	l.silent("with the ruleset", l.run(quote))
	l.silent("after a flush", l.run(`sh("nft flush ruleset")`+quote))
}
