package redirect

import (
	"errors"
	"fmt"
)

var (
	// ErrHostNetwork says that the namespace is the host's own: a redirect
	// there would capture the host, and the dialled flows with it.
	ErrHostNetwork = errors.New("the container shares the host's network; give it a network of its own")
	// ErrNotRedirected says that a connection was made straight to a listener
	// instead of being captured on its way to somewhere else.
	ErrNotRedirected = errors.New("the connection was made straight to the listener, it has no other destination")
	// ErrClosed says that the attachment was closed or released.
	ErrClosed = errors.New("the attachment is closed")
)

// FeatureError says that the kernel lacks something that an attachment needs.
type FeatureError struct {
	Feature string // what it is, as in Finding.Feature
	Kernel  string // the first kernel version that has it, for example "5.5"
	Config  string // the build options that provide it
	Err     error  // what the kernel answered
}

// Error names the feature, the version and the options to look for.
func (e *FeatureError) Error() string {
	return fmt.Sprintf("the kernel has no %s: %v; use Linux %s or later built with %s", e.Feature, e.Err, e.Kernel, e.Config)
}

// Unwrap gives the kernel's answer.
func (e *FeatureError) Unwrap() error { return e.Err }
