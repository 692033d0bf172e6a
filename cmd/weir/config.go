package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"weir/dnsmap"
	"weir/proxy"
	"weir/store"
)

// defaultConfig is read when it is there; everything in it has a default.
const defaultConfig = "/etc/weir/config.yaml"

// config is the daemon's configuration file. docs/reference/configuration.md
// describes each key.
type config struct {
	DNS struct {
		// Upstreams are resolvers, ADDRESS or ADDRESS:PORT; the host's own when absent.
		Upstreams []string `yaml:"upstreams"`
	} `yaml:"dns"`
	// Runtimes are the sockets of container runtimes; Docker's and Podman's when absent.
	Runtimes []string `yaml:"runtimes"`
	// TLS is about servers behind inspected endpoints.
	TLS struct {
		// ExtraRoots are PEM files of authorities that count beside the system's.
		ExtraRoots []string `yaml:"extra_roots"`
		// CRLs are files of revocation lists, PEM or DER.
		CRLs []string `yaml:"crls"`
	} `yaml:"tls"`
	Events struct {
		MaxAge  period `yaml:"max_age"`
		MaxRows count  `yaml:"max_rows"`
		MaxMB   count  `yaml:"max_mb"`
		// File is where events are written as well, a line each; "-" is
		// standard output, nothing means nowhere. Format is json or ocsf. A
		// file is rotated at FileMB; FileKeep old ones are kept.
		File     string `yaml:"file"`
		Format   string `yaml:"format"`
		FileMB   count  `yaml:"file_mb"`
		FileKeep count  `yaml:"file_keep"`
	} `yaml:"events"`
	// Limits hold for each container.
	Limits struct {
		Connections          count  `yaml:"connections"`
		ConnectionsPerSecond count  `yaml:"connections_per_second"`
		Dialing              count  `yaml:"dialing"`
		Idle                 period `yaml:"idle"`
		BufferedMB           count  `yaml:"buffered_mb"`
		UDPAssociations      count  `yaml:"udp_associations"`
		UDPIdle              period `yaml:"udp_idle"`
		DNSQueriesPerSecond  count  `yaml:"dns_queries_per_second"`
		DNSNewNames          count  `yaml:"dns_new_names"`
	} `yaml:"limits"`

	upstreams []netip.AddrPort
}

// loadConfig reads a configuration file; "" is the default one, which need not
// be there.
func loadConfig(path string) (*config, error) {
	c := &config{}
	file := path
	if file == "" {
		file = defaultConfig
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && path == "" {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := yaml.UnmarshalWithOptions(text, c, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, true))
	}
	for _, s := range c.DNS.Upstreams {
		server, err := parseUpstream(s)
		if err != nil {
			return nil, fmt.Errorf("%s: dns.upstreams: %w", file, err)
		}
		c.upstreams = append(c.upstreams, server)
	}
	if f := c.Events.Format; f != "" && f != "json" && f != "ocsf" {
		return nil, fmt.Errorf("%s: events.format: %q: want json or ocsf", file, f)
	}
	return c, nil
}

// A count is a number of the configuration, a period a time. Zero means that
// the key is not there, or has no value, and so the default; it cannot be
// written, because it could be meant as "nothing" or as "no bound".
type (
	count  int64
	period time.Duration
)

// most is the largest count: more than any machine has, and so little that
// nothing overflows.
const most = 1_000_000_000

// UnmarshalYAML reads a number.
func (n *count) UnmarshalYAML(node ast.Node) error {
	if node.Type() == ast.NullType {
		return nil
	}
	i, err := strconv.ParseInt(node.String(), 10, 64)
	if err != nil || i < 1 || i > most {
		return unfit(node, "a number from 1 to %d", most)
	}
	*n = count(i)
	return nil
}

// UnmarshalYAML reads a duration.
func (p *period) UnmarshalYAML(node ast.Node) error {
	if node.Type() == ast.NullType {
		return nil
	}
	text, err := strconv.Unquote(node.String())
	if err != nil {
		text = node.String()
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		return unfit(node, "a second or more with its unit, such as 90s, 5m or 720h")
	}
	*p = period(d)
	return nil
}

func unfit(node ast.Node, want string, args ...any) error {
	return &yaml.SyntaxError{
		Message: fmt.Sprintf("%s: want "+want+"; leave the key out for its default", append([]any{node}, args...)...),
		Token:   node.GetToken(),
	}
}

func parseUpstream(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, 53), nil
	}
	server, err := netip.ParseAddrPort(s)
	if err != nil || server.Port() == 0 {
		return server, fmt.Errorf("%q: want an address such as 9.9.9.9, 9.9.9.9:53 or [2620:fe::fe]:53", s)
	}
	return server, nil
}

func (c *config) retention() store.Retention {
	return store.Retention{
		MaxAge:  time.Duration(cmp.Or(c.Events.MaxAge, period(30*24*time.Hour))),
		MaxRows: int64(c.Events.MaxRows), MaxBytes: int64(cmp.Or(c.Events.MaxMB, 1024)) << 20,
	}
}

// proxyLimits are those of a daemon that may have so many files open. Where the
// defaults would let one container take more than half of them they are less: a
// connection takes two, an association one, a pipe two.
func (c *config) proxyLimits(files int) proxy.Limits {
	return proxy.Limits{
		Connections: int(cmp.Or(c.Limits.Connections, count(min(8192, files/6)))), PerSecond: int(c.Limits.ConnectionsPerSecond),
		Dialing: int(c.Limits.Dialing), Idle: time.Duration(c.Limits.Idle),
		Associations: int(cmp.Or(c.Limits.UDPAssociations, count(min(4096, files/12)))), UDPIdle: time.Duration(c.Limits.UDPIdle),
		Pipes: min(128, files/24),
	}
}

func (c *config) relayLimits() proxy.RelayLimits {
	return proxy.RelayLimits{Buffered: int64(c.Limits.BufferedMB) << 20}
}

func (c *config) dnsLimits() dnsmap.Limits {
	return dnsmap.Limits{QueriesPerSecond: int(c.Limits.DNSQueriesPerSecond), NewNames: int(c.Limits.DNSNewNames)}
}
