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
// when they are found: haproxy, dnsmasq and sing-box in PATH, or where
// WEIR_BENCH_HAPROXY, WEIR_BENCH_DNSMASQ and WEIR_BENCH_SING_BOX say.
package bench
