package redirect

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the table inside the namespace.
const tableName = "weir"

// uplinksName is the set of interfaces by which the namespace is reached from
// outside; with no network but lo it holds lo.
const uplinksName = "uplinks"

// natPriority comes before Docker's translation of 127.0.0.11, which sits at
// -100; at -99 Docker wins.
const natPriority nftables.ChainPriority = -150

// dockerDNS is where Docker's embedded resolver listens in a container.
var dockerDNS = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// ports are the listeners' ports.
type ports struct {
	tcp, dnsTCP, dnsUDP, udp uint16
}

// ruleset is the table inside the namespace, ready to be sent.
type ruleset struct {
	table   *nftables.Table
	uplinks *nftables.Set
	chains  []chain
}

func newRuleset(p ports) ruleset {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	uplinks := &nftables.Set{
		Table: table, Name: uplinksName, KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian,
	}
	return ruleset{table: table, uplinks: uplinks, chains: []chain{
		captureOutput(p), capturePrerouting(p, uplinks), answerUDP(), captureUDPOutput(), captureUDPPrerouting(p),
		judgeOutput(), judgeForward(uplinks), judgeInput(p), judgePostrouting(uplinks),
	}}
}

// captureOutput redirects what the container's own programs send. There is no
// exemption by mark: any program with CAP_NET_RAW can set one. IPv6 link-local
// destinations are not redirected: they bind the socket to an interface by which
// lo is not reached, and redirected packets would be lost without a word. Left
// alone they are refused at once.
func captureOutput(p ports) chain {
	return chain{
		name: "capture_output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput,
		priority: natPriority, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"ip6 daddr fe80::/10 accept", match(toLinkLocal6(), verdict(expr.VerdictAccept))},
			{fmt.Sprintf("udp dport 53 redirect to :%d", p.dnsUDP), match(dport(unix.IPPROTO_UDP, 53), redirectTo(p.dnsUDP))},
			{fmt.Sprintf("tcp dport 53 redirect to :%d", p.dnsTCP), match(dport(unix.IPPROTO_TCP, 53), redirectTo(p.dnsTCP))},
			{"fib daddr type local accept", match(toLocal(), verdict(expr.VerdictAccept))},
			{fmt.Sprintf("meta l4proto tcp redirect to :%d", p.tcp), match(l4proto(unix.IPPROTO_TCP), redirectTo(p.tcp))},
		},
	}
}

// capturePrerouting does the same for namespaces nested in the container,
// whose traffic is forwarded through it. What comes in from outside is not the
// container's and is left alone; so is what goes from one nested network to
// another.
func capturePrerouting(p ports, uplinks *nftables.Set) chain {
	return chain{
		name: "capture_prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting,
		priority: natPriority, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"iif @uplinks accept", match(iifIn(uplinks), verdict(expr.VerdictAccept))},
			{"fib daddr type local accept", match(toLocal(), verdict(expr.VerdictAccept))},
			{"fib daddr oif != @uplinks accept", match(routeNotIn(uplinks), verdict(expr.VerdictAccept))},
			{fmt.Sprintf("udp dport 53 redirect to :%d", p.dnsUDP), match(dport(unix.IPPROTO_UDP, 53), redirectTo(p.dnsUDP))},
			{fmt.Sprintf("tcp dport 53 redirect to :%d", p.dnsTCP), match(dport(unix.IPPROTO_TCP, 53), redirectTo(p.dnsTCP))},
			{fmt.Sprintf("meta l4proto tcp redirect to :%d", p.tcp), match(l4proto(unix.IPPROTO_TCP), redirectTo(p.tcp))},
		},
	}
}

// udpPriority comes right after the redirect, which leads DNS to an address of
// the namespace.
const udpPriority = natPriority + 1

// answerUDP keeps the answers that Weir sends into the container out of
// connection tracking. If the container's datagram is forgotten there, an
// answer would count as a connection from outside, and what the container
// sends next as an answer to that.
func answerUDP() chain {
	return chain{
		name: "answer_udp", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput,
		priority: *nftables.ChainPriorityRaw, policy: nftables.ChainPolicyAccept,
		rules: []rule{{
			fmt.Sprintf("meta l4proto udp meta mark %#08x fib daddr type local notrack", answerMark),
			match(l4proto(unix.IPPROTO_UDP), markIs(answerMark), toLocal(), []expr.Any{&expr.Notrack{}}),
		}},
	}
}

// captureUDPOutput marks datagrams that leave, and has them routed anew by the
// mark, to lo; see steer. Multicast and broadcast have no single other side to
// be judged by and are left to be refused. A redirect would do for sending, but
// does not tell a UDP socket where a datagram was going.
func captureUDPOutput() chain {
	return chain{
		name: "capture_udp_output", kind: nftables.ChainTypeRoute, hook: nftables.ChainHookOutput,
		priority: udpPriority, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"meta l4proto != udp accept", match(l4protoNot(unix.IPPROTO_UDP), verdict(expr.VerdictAccept))},
			{"ip6 daddr fe80::/10 accept", match(toLinkLocal6(), verdict(expr.VerdictAccept))},
			{"fib daddr type local accept", match(toLocal(), verdict(expr.VerdictAccept))},
			{"fib daddr type broadcast accept", match(toType(unix.RTN_BROADCAST, true), verdict(expr.VerdictAccept))},
			{"fib daddr type multicast accept", match(toType(unix.RTN_MULTICAST, true), verdict(expr.VerdictAccept))},
			{"ct direction reply ct state established,related accept", match(replying(), verdict(expr.VerdictAccept))},
			{fmt.Sprintf("meta mark set %#08x", udpMark), putMark(udpMark)},
		},
	}
}

// captureUDPPrerouting hands what was marked to the socket when it comes in
// by lo. With another sender than an address of the namespace an answer could
// come back here as a datagram of its own, without end.
func captureUDPPrerouting(p ports) chain {
	marked := func() []expr.Any {
		return match(iifIs(loopbackIndex), l4proto(unix.IPPROTO_UDP), markIs(udpMark), toType(unix.RTN_LOCAL, false))
	}
	const text = `iif "lo" meta l4proto udp meta mark %#08x fib daddr type != local `
	return chain{
		name: "capture_udp_prerouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
		priority: udpPriority, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{
				fmt.Sprintf(text+"fib saddr type local tproxy to :%d accept", udpMark, p.udp),
				match(marked(), fromLocal(), tproxyTo(p.udp), verdict(expr.VerdictAccept)),
			},
			{fmt.Sprintf(text+"drop", udpMark), match(marked(), verdict(expr.VerdictDrop))},
		},
	}
}

// judgeOutput refuses at once whatever was not captured. It runs last, after
// all translation, so that a packet taken out of connection tracking by a
// notrack rule, and therefore not redirected, is refused too. Docker's
// resolver is refused before replies are accepted: a program with CAP_NET_RAW
// can make its own query look like a reply. A marked datagram passes only as
// far as judgePostrouting: by which interface it leaves is not known here.
func judgeOutput() chain {
	docker := func() []expr.Any { return ip4Dst(dockerDNS) }
	return chain{
		name: "judge_output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput,
		priority: *nftables.ChainPriorityLast, policy: nftables.ChainPolicyDrop,
		rules: []rule{
			{"ip daddr 127.0.0.11 meta l4proto tcp reject with tcp reset", match(docker(), l4proto(unix.IPPROTO_TCP), rejectReset())},
			{"ip daddr 127.0.0.11 reject", match(docker(), rejectUnreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH))},
			{"fib daddr type local accept", match(toLocal(), verdict(expr.VerdictAccept))},
			{"ct direction reply ct state established,related accept", match(replying(), verdict(expr.VerdictAccept))},
			{fmt.Sprintf("meta l4proto udp meta mark %#08x accept", udpMark), match(l4proto(unix.IPPROTO_UDP), markIs(udpMark), verdict(expr.VerdictAccept))},
			{"icmpv6 type nd-neighbor-solicit accept", match(icmp6Type(ndSolicit), verdict(expr.VerdictAccept))},
			{"icmpv6 type nd-neighbor-advert accept", match(icmp6Type(ndAdvert), verdict(expr.VerdictAccept))},
			{"meta l4proto tcp reject with tcp reset", match(l4proto(unix.IPPROTO_TCP), rejectReset())},
			{"meta l4proto udp reject", match(l4proto(unix.IPPROTO_UDP), rejectUnreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH))},
			{"reject with icmpx admin-prohibited", rejectUnreachable(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED)},
		},
	}
}

// judgeForward refuses what nested namespaces send out by an uplink without
// having been captured.
func judgeForward(uplinks *nftables.Set) chain {
	return chain{
		name: "judge_forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
		priority: *nftables.ChainPriorityLast, policy: nftables.ChainPolicyDrop,
		rules: []rule{
			{"oif != @uplinks accept", match(oifNotIn(uplinks), verdict(expr.VerdictAccept))},
			{"ct direction reply ct state established,related accept", match(replying(), verdict(expr.VerdictAccept))},
			{"meta l4proto tcp reject with tcp reset", match(l4proto(unix.IPPROTO_TCP), rejectReset())},
			{"reject with icmpx admin-prohibited", rejectUnreachable(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED)},
		},
	}
}

// judgeInput keeps everybody from the listeners' own ports. Frames written to
// lo with AF_PACKET never pass the output hook, so Docker's resolver is closed
// here again.
func judgeInput(p ports) chain {
	direct := func(proto byte, port uint16) []expr.Any { return match(dport(proto, port), notRedirected()) }
	return chain{
		name: "judge_input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput,
		priority: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"ip daddr 127.0.0.11 drop", match(ip4Dst(dockerDNS), verdict(expr.VerdictDrop))},
			{fmt.Sprintf("tcp dport %d ct status ! dnat reject with tcp reset", p.tcp), match(direct(unix.IPPROTO_TCP, p.tcp), rejectReset())},
			{fmt.Sprintf("tcp dport %d ct status ! dnat reject with tcp reset", p.dnsTCP), match(direct(unix.IPPROTO_TCP, p.dnsTCP), rejectReset())},
			{fmt.Sprintf("udp dport %d ct status ! dnat reject", p.dnsUDP), match(direct(unix.IPPROTO_UDP, p.dnsUDP), rejectUnreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH))},
			{fmt.Sprintf("udp dport %d fib daddr type local reject", p.udp), match(dport(unix.IPPROTO_UDP, p.udp), toLocal(), rejectUnreachable(unix.NFT_REJECT_ICMPX_PORT_UNREACH))},
		},
	}
}

// judgePostrouting drops datagrams that leave by an uplink all the same, which
// they do when the container has changed its routes or bound them to an
// interface. The sender gets EPERM.
func judgePostrouting(uplinks *nftables.Set) chain {
	return chain{
		name: "judge_postrouting", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting,
		priority: *nftables.ChainPriorityLast, policy: nftables.ChainPolicyAccept,
		rules: []rule{
			{"meta l4proto != udp accept", match(l4protoNot(unix.IPPROTO_UDP), verdict(expr.VerdictAccept))},
			{`oif "lo" accept`, match(oifIs(loopbackIndex), verdict(expr.VerdictAccept))},
			{"oif != @uplinks accept", match(oifNotIn(uplinks), verdict(expr.VerdictAccept))},
			{"ct direction reply ct state established,related accept", match(replying(), verdict(expr.VerdictAccept))},
			{"drop", verdict(expr.VerdictDrop)},
		},
	}
}

// install replaces the whole table in one batch, so that no packet ever meets
// half of it.
func (r ruleset) install(c *nftables.Conn, uplinks []int) error {
	c.AddTable(r.table) // deleting a table that is not there would be an error
	c.DelTable(r.table)
	c.AddTable(r.table)
	if err := c.AddSet(r.uplinks, indexElements(uplinks)); err != nil {
		return fmt.Errorf("add set %s: %w", uplinksName, err)
	}
	for _, ch := range r.chains {
		ch.queue(c, r.table)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install the ruleset in the namespace: %w", err)
	}
	return nil
}

// removeTable deletes a table if it is there.
func removeTable(c *nftables.Conn, t *nftables.Table) error {
	c.AddTable(t)
	c.DelTable(t)
	return c.Flush()
}

func indexElements(indexes []int) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, i := range indexes {
		elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i))})
	}
	return elements
}
