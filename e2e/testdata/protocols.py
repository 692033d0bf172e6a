"""Sends one datagram or packet of every kind that a container can make without a connection, and says how many the kernel refused.

Usage: protocols.py CANARY4 CANARY6 INTERFACE
"""
import socket, struct, sys, time

canary4, canary6, interface = sys.argv[1:4]
scope = socket.if_nametoindex(interface)
sent = refused = 0


def attempt(f):
    global sent, refused
    try:
        f()
        sent += 1
    except OSError:
        refused += 1


def datagram(family, to, protocol=0):
    def go():
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if family == socket.AF_INET:
                s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
            s.sendto(b"secret" * 20, to)
    attempt(go)


def raw(family, protocol, payload, to):
    def go():
        with socket.socket(family, socket.SOCK_RAW, protocol) as s:
            s.sendto(payload, to)
    attempt(go)


def checksum(b):
    n = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    while n >> 16:
        n = (n & 0xFFFF) + (n >> 16)
    return ~n & 0xFFFF


began = time.monotonic()
v4, v6 = socket.AF_INET, socket.AF_INET6
for port in (443, 853, 123, 5353, 5355, 137, 4500, 65535):  # QUIC, DoQ, NTP, mDNS, LLMNR, NetBIOS, IPsec
    datagram(v4, (canary4, port))
    datagram(v6, (canary6, port))
    datagram(v6, ("::ffff:" + canary4, port))
datagram(v4, (canary4, 443), 136)  # UDP-Lite
for group in (("224.0.0.251", 5353), ("224.0.0.252", 5355), ("239.255.255.250", 1900), ("255.255.255.255", 137)):
    datagram(v4, group)
for group in (("ff02::fb", 5353, 0, scope), ("ff02::1:3", 5355, 0, scope), ("ff05::c", 1900, 0, scope), ("fe80::1", 5353, 0, scope)):
    datagram(v6, group)
secret = b"secret" * 100
echo = b"\x08\0\0\0\0\x01\0\x01" + secret
raw(v4, socket.IPPROTO_ICMP, echo[:2] + struct.pack("!H", checksum(echo)) + echo[4:], (canary4, 0))
raw(v6, socket.IPPROTO_ICMPV6, b"\x80\0\0\0\0\x01\0\x01" + secret, (canary6, 0))
for protocol in (4, 41, 47, 50, 51, 115, 132, 253):  # IP in IP, IPv6 in IP, GRE, ESP, AH, L2TP, SCTP, none
    raw(v4, protocol, secret, (canary4, 0))
    raw(v6, protocol, secret, (canary6, 0))
print("sent %d, refused %d, in %d s" % (sent, refused, time.monotonic() - began))
