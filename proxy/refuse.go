package proxy

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weir/rules"
)

// abort closes c with a reset, so that the other end fails at once instead of
// taking what came so far for everything.
func abort(c socket) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		})
	}
	c.Close()
}

// deny is a refusal that no rule made. Every other one comes from the policy.
func deny(layer rules.Source, format string, args ...any) rules.Decision {
	return rules.Decision{Verdict: rules.Deny, Layer: layer, Reason: fmt.Sprintf(format, args...)}
}
