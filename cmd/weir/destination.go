package main

import "weir/api"

// splitDestination is api.SplitDestination for what stands on the command line.
func splitDestination(s string) (dest, ports string, err error) {
	if dest, ports, err = api.SplitDestination(s); err != nil {
		return "", "", &usageError{err}
	}
	return dest, ports, nil
}
