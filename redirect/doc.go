// Package redirect captures what leaves one network namespace: it hands every
// TCP connection, datagram and DNS query of a container to listeners opened
// inside its namespace, and refuses the rest at once. It decides nothing about
// destinations and knows no container runtime.
//
//	ns, err := redirect.Open("/proc/4711/ns/net")
//	a, err := redirect.Install(ctx, ns, redirect.Spec{Name: "0123456789ab"})
//	go a.Watch(ctx, report)
//	c, err := a.TCP().AcceptTCP()
//	dst, err := redirect.OriginalDst(c)
//	...
//	n, client, dst, err := a.UDP().ReadFrom(buf)
//	err = a.UDP().Reply(answer, client, dst)
//	...
//	err = a.Close()
//
// # In the namespace
//
// One table, installed in one batch, for IPv4 and IPv6 alike. DNSUDP, DNSTCP,
// TCP and UDP are the listeners' ports, which the kernel chose:
//
//	table inet weir {
//		set uplinks { type iface_index; }       # lo, and what leads outside
//		chain capture_output {                  # before Docker's at -100
//			type nat hook output priority -150;
//			ip6 daddr fe80::/10 accept          # cannot be redirected; refused below
//			udp dport 53 redirect to :DNSUDP    # 127.0.0.11 and lo included
//			tcp dport 53 redirect to :DNSTCP
//			fib daddr type local accept         # the container's own addresses
//			meta l4proto tcp redirect to :TCP
//		}
//		chain capture_prerouting {              # the same for nested namespaces
//			type nat hook prerouting priority -150;
//			iif @uplinks accept                 # inbound is not the container's
//			fib daddr type local accept
//			fib daddr oif != @uplinks accept    # from one nested network to another
//			... redirect as above
//		}
//		chain answer_udp {                      # ours, to clients
//			type filter hook output priority -300;
//			meta l4proto udp meta mark 0x08000088 fib daddr type local notrack
//		}
//		chain capture_udp_output {              # routed anew by the mark
//			type route hook output priority -149;
//			meta l4proto != udp accept
//			ip6 daddr fe80::/10 accept
//			fib daddr type { local, broadcast, multicast } accept
//			ct direction reply ct state established,related accept
//			meta mark set 0x08000087
//		}
//		chain capture_udp_prerouting {
//			type filter hook prerouting priority -149;
//			iif lo meta l4proto udp meta mark 0x08000087 fib daddr type != local jump {
//				fib saddr type local tproxy to :UDP accept
//				drop
//			}
//		}
//		chain judge_output {                    # after all translation
//			type filter hook output priority 2147483647; policy drop;
//			ip daddr 127.0.0.11 reject          # Docker's resolver by its real port
//			fib daddr type local accept
//			ct direction reply ct state established,related accept
//			meta l4proto udp meta mark 0x08000087 accept
//			icmpv6 type nd-neighbor-solicit accept
//			icmpv6 type nd-neighbor-advert accept
//			reject                              # tcp reset, or an ICMP error
//		}
//		chain judge_forward {
//			type filter hook forward priority 2147483647; policy drop;
//			oif != @uplinks accept
//			ct direction reply ct state established,related accept
//			reject
//		}
//		chain judge_input {
//			type filter hook input priority 0;
//			ip daddr 127.0.0.11 drop
//			... the listeners' ports, reached without a redirect: reject
//		}
//		chain judge_postrouting {
//			type filter hook postrouting priority 2147483647;
//			meta l4proto != udp accept
//			oif lo accept
//			oif != @uplinks accept
//			ct direction reply ct state established,related accept
//			drop
//		}
//	}
//
// Marked datagrams get to lo by a routing rule (priority 87, table 8787) and a
// route in its table for either family, of protocol 87. By which interface a
// datagram leaves is known only after routing, so the last word is spoken in
// judge_postrouting: whatever the container does to marks and routes, UDP
// leaves by no uplink. Answers go into the namespace by raw sockets, as from the
// address that the container spoke to.
//
// What the kernel refuses fails in the sender's own send call (EPERM), refused
// TCP with a reset. Where a family has no default route, as with --network none, it
// gets one by lo (protocol 87, the highest metric), because connect() fails
// without a route before the packet meets any hook.
//
// # On the host
//
// The second lock, which a container cannot touch whatever its capabilities
// are, and which AF_PACKET does not pass. One netdev table per attachment with
// a chain for the host's end of each interface: it drops frames under other
// addresses (MAC, IPv4, IPv6, ARP, neighbour advertisements) than the ones the
// interface had when it came up, and marks the rest. Two tables shared by all
// attachments judge the mark:
//
//	table inet weir_lock {
//		chain judge {
//			type filter hook prerouting priority -199;
//			meta mark & 0x04000000 == 0 accept
//			icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 daddr ff02::/16 accept
//			icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } fib daddr type local accept
//			ct direction reply ct state established meta mark set meta mark & 0xfbffffff accept
//			drop
//		}
//	}
//	table bridge weir_lock {
//		chain judge {
//			type filter hook forward priority 10;
//			meta mark & 0x04000000 != 0 drop
//		}
//	}
//
// Answers to inbound connections pass: published ports, and flows that the
// daemon itself dials from the host to another container. Errors about them
// (ICMP) do not: which connection an error belongs to is said by what it quotes,
// and a container could speak to whoever has any connection with this host. The
// mark is taken off what passes, so br_netfilter may be on or off. Bit 0x04000000 of the mark
// must not be used otherwise on the host.
//
// # Limits
//
//   - With br_netfilter off, a neighbour on the same bridge cannot connect to
//     an attached container: bridged frames have no connection tracking that
//     would tell its answers from attempts of its own.
//   - An interface without an end of its own in the host's namespace (macvlan,
//     ipvlan, a tap of a user-mode network, a physical device) cannot be
//     locked; Interfaces says so. Then the ruleset alone holds, against
//     programs without CAP_NET_RAW and CAP_NET_ADMIN.
//   - CAP_NET_ADMIN in the user namespace that the host's network namespace
//     belongs to reaches the host's interfaces by IFLA_LINK_NETNSID and
//     IFLA_TARGET_NETNSID (rtnetlink(7)): a program that has it can make a
//     macvlan or a tunnel there, which passes both locks. Watch reports those
//     that show, and with Spec.Evict removes them. That stops nobody who makes
//     one after the other: each lives for some tens of milliseconds and sends
//     meanwhile; one made in a namespace of the container's own, or while no
//     daemon runs, is not seen as new.
//   - Answers to inbound connections are a way out for whoever controls the
//     other side.
//   - A closed UDP port does not tell an inbound sender so.
//   - Neighbours on one bridge see which addresses the container asks for by
//     ARP: ten bytes a frame that it can choose.
//   - Connections from before the attach are cut, inbound ones too.
//   - Multicast, broadcast, UDP of nested namespaces and UDP of sockets that are
//     bound to an interface are refused.
//   - After Release datagrams are lost without a word: the kernel makes no ICMP
//     error under an address that is not its own.
//
// # Invariants
//
//   - What a socket accepts comes from this namespace: the listeners lie inside
//     it, and their ports take nothing but what our own rules led there.
//   - No packet is exempt by its mark, its user or its program: our own mark
//     leads into the capture, and nowhere else.
//   - The lock is there before the ruleset and goes after it. A daemon that
//     dies leaves both; Release does so on purpose.
//   - Nothing of others is changed: no foreign table, no route or routing rule,
//     no sysctl.
package redirect
