package main

import (
	"strings"

	"weir/api"
)

// splitDestination splits DEST[:PORTS][/tcp|/udp]; see api.SplitDestination.
// transport is what a flag says, "" when it says nothing; what stands behind
// the slash may not contradict it.
func splitDestination(s, flag string) (dest, ports, transport string, err error) {
	rest := s
	for _, t := range []string{"tcp", "udp"} {
		if cut, ok := strings.CutSuffix(s, "/"+t); ok {
			rest, transport = cut, t
		}
	}
	if dest, ports, err = api.SplitDestination(rest); err != nil {
		return "", "", "", &usageError{err}
	}
	if transport != "" && flag != "" && flag != transport {
		return "", "", "", usage("%q: --transport says %s", s, flag)
	}
	if transport == "" {
		transport = flag
	}
	return dest, ports, transport, nil
}
