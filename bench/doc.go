// Package bench measures the weir binary from the outside: a client in one
// network namespace, a server in another, and between them the host, once
// with an attached namespace, once without, and once with each other proxy
// that this machine has. All of it lives in a network namespace of its own, so
// nothing of the machine's network is touched.
//
// Client, proxy and server share the processors, so a ratio to the direct way
// is mostly a ratio of work. The ways take turns within each round; what is
// printed are the rounds, and scripts/bench takes their medians.
//
// The benchmarks need root, nftables and iproute2. Others are measured beside
// when they are found: haproxy, sing-box, redsocks (in front of sing-box or
// microsocks), squid, mitmproxy and dnsmasq in PATH, or where WEIR_BENCH_HAPROXY,
// WEIR_BENCH_SING_BOX, WEIR_BENCH_REDSOCKS, WEIR_BENCH_MICROSOCKS, WEIR_BENCH_SQUID,
// WEIR_BENCH_MITMPROXY and WEIR_BENCH_DNSMASQ say; set to nothing, they are left
// out. programs has how they are set up.
package bench
