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
	tcp, dnsTCP, dnsUDP uint16
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
		captureOutput(p), capturePrerouting(p, uplinks), judgeOutput(), judgeForward(uplinks), judgeInput(p),
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

// judgeOutput refuses at once whatever was not captured. It runs last, after
// all translation, so that a packet taken out of connection tracking by a
// notrack rule, and therefore not redirected, is refused too. Docker's
// resolver is refused before replies are accepted: a program with CAP_NET_RAW
// can make its own query look like a reply.
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
