// Package redirect captures what leaves one network namespace.
package redirect
