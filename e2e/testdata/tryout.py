"""Tries every way out of a container and prints what answered.

Usage: tryout.py CANARY4 CANARY6 GATEWAY4 GATEWAYMAC NEIGHBOUR4 NEIGHBOUR6 NEIGHBOURMAC INTERFACE [marks]
"""
import socket, struct, sys

canary4, canary6, gateway4, gateway_mac, neighbour4, neighbour6, neighbour_mac, interface = sys.argv[1:9]
marks = [1 << n for n in range(32)] if sys.argv[9:] == ["marks"] else [0]


def address_of(family, target):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect((target, 9))
        return s.getsockname()[0]


def link_local(mac):
    b = bytes.fromhex(mac.replace(":", ""))
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + bytes([b[0] ^ 2]) + b[1:3] + b"\xff\xfe" + b[3:])


def attempt(what, f):
    try:
        answer = f()
        if answer:
            print("ANSWER", what, answer, flush=True)
    except OSError:
        pass


def opened(family, kind, mark):
    s = socket.socket(family, kind)
    s.settimeout(0.3)
    if mark:
        s.setsockopt(socket.SOL_SOCKET, 36, struct.pack("I", mark))  # SO_MARK
    return s


def tcp(family, to, mark):
    with opened(family, socket.SOCK_STREAM, mark) as s:
        s.connect(to)
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return s.recv(100)


def udp(family, to, mark):
    with opened(family, socket.SOCK_DGRAM, mark) as s:
        s.sendto(b"knock", to)


def icmp(to, mark):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with s:
        if mark:
            s.setsockopt(socket.SOL_SOCKET, 36, struct.pack("I", mark))
        s.sendto(ECHO, (to, 0))


def checksum(b):
    b += b"\0" * (len(b) % 2)
    n = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    while n >> 16:
        n = (n & 0xFFFF) + (n >> 16)
    return ~n & 0xFFFF


ECHO = b"\x08\0" + struct.pack("!H", checksum(b"\x08\0\0\0\0\x01\0\x01")) + b"\0\x01\0\x01"
SYN = struct.pack("!HHIIBBHHH", 40000, 80, 1, 0, 0x50, 2, 1000, 0, 0)
ACK = struct.pack("!HHIIBBHHH", 40000, 80, 1, 1, 0x50, 16, 1000, 0, 0)
DATAGRAM = struct.pack("!HHHH", 40000, 80, 12, 0) + b"raw!"


def ip4(src, dst, proto, payload):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, proto, 0, socket.inet_aton(src), socket.inet_aton(dst))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(src, dst, proto, payload):
    return struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst) + payload


def frame(packet, to_mac, bypass):
    kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        if bypass:
            s.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
        s.bind((interface, 0))
        own = s.getsockname()[4]
        s.send(bytes.fromhex(to_mac.replace(":", "")) + own + struct.pack("!H", kind) + packet)


def raw_ip(packet, dst):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(packet, (dst, 0))


scope = socket.if_nametoindex(interface)
for mark in marks:
    for target in (canary4, gateway4, neighbour4):
        attempt("tcp " + target, lambda: tcp(socket.AF_INET, (target, 80), mark))
        attempt("udp " + target, lambda: udp(socket.AF_INET, (target, 80), mark))
        attempt("icmp " + target, lambda: icmp(target, mark))
    for target in (canary6, neighbour6):
        attempt("tcp " + target, lambda: tcp(socket.AF_INET6, (target, 80), mark))
        attempt("udp " + target, lambda: udp(socket.AF_INET6, (target, 80), mark))
    for target in (link_local(neighbour_mac), link_local(gateway_mac)):
        attempt("tcp " + target, lambda: tcp(socket.AF_INET6, (target, 80, 0, scope), mark))
        attempt("udp " + target, lambda: udp(socket.AF_INET6, (target, 80, 0, scope), mark))

try:
    own4, own6 = address_of(socket.AF_INET, canary4), address_of(socket.AF_INET6, canary6)
except OSError:  # no route any more
    own4, own6 = "10.66.66.66", "2001:db8:77::bad"
for bypass in (False, True):
    for source in (own4, neighbour4, canary4):
        for proto, payload in ((17, DATAGRAM), (6, SYN), (6, ACK), (1, ECHO), (47, b"gre!")):
            for mac, target in ((gateway_mac, canary4), (neighbour_mac, neighbour4), ("ff:ff:ff:ff:ff:ff", neighbour4)):
                attempt("frame", lambda: frame(ip4(source, target, proto, payload), mac, bypass))
    for source in (own6, neighbour6, link_local(neighbour_mac)):
        for mac, target in ((gateway_mac, canary6), (neighbour_mac, neighbour6)):
            attempt("frame", lambda: frame(ip6(source, target, 17, DATAGRAM), mac, bypass))
for proto, payload in ((17, DATAGRAM), (6, SYN), (6, ACK)):
    for target in (canary4, neighbour4):
        attempt("raw ip", lambda: raw_ip(ip4(own4, target, proto, payload), target))
