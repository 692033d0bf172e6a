package proxy

import (
	"fmt"
	"net"

	"weir/rules"
)

// abort closes c with a reset, so that the other end fails at once instead of
// taking what came so far for everything.
func abort(c *net.TCPConn) {
	if c != nil {
		c.SetLinger(0)
		c.Close()
	}
}

// deny is a refusal that no rule made. Every other one comes from the policy.
func deny(layer rules.Source, format string, args ...any) rules.Decision {
	return rules.Decision{Verdict: rules.Deny, Layer: layer, Reason: fmt.Sprintf(format, args...)}
}
