// Package e2e tests the weir binary from the outside, as its users meet it:
// real containers, real clients in them, real servers in a network namespace
// that plays the internet. Nothing of Weir's own packages is imported; what
// the tests know is what the commands print and what the packets do.
//
// The tests need root, Docker, nftables and the packages that scripts/test
// installs; they fail, rather than skip, where one is missing.
package e2e
