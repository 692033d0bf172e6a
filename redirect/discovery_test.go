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
