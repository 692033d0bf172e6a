package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/goccy/go-yaml"

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
		MaxAge  time.Duration `yaml:"max_age"`
		MaxRows int64         `yaml:"max_rows"`
		MaxMB   int64         `yaml:"max_mb"`
		// File is where events are written as well, a line each; "-" is
		// standard output, nothing means nowhere. Format is json or ocsf. A
		// file is rotated at FileMB; FileKeep old ones are kept.
		File     string `yaml:"file"`
		Format   string `yaml:"format"`
		FileMB   int    `yaml:"file_mb"`
		FileKeep int    `yaml:"file_keep"`
	} `yaml:"events"`
	// Limits hold for each container.
	Limits struct {
		Connections          int           `yaml:"connections"`
		ConnectionsPerSecond int           `yaml:"connections_per_second"`
		Dialing              int           `yaml:"dialing"`
		Idle                 time.Duration `yaml:"idle"`
		UDPAssociations      int           `yaml:"udp_associations"`
		UDPIdle              time.Duration `yaml:"udp_idle"`
		DNSQueriesPerSecond  int           `yaml:"dns_queries_per_second"`
		DNSNewNames          int           `yaml:"dns_new_names"`
	} `yaml:"limits"`

	upstreams []netip.AddrPort
}

// loadConfig reads a configuration file; "" is the default one, which need not
// be there.
func loadConfig(path string) (*config, error) {
	c := &config{}
	defer func() {
		// After reading: a key without a value, and an empty file, mean the default.
		c.Events.MaxAge = cmp.Or(c.Events.MaxAge, 30*24*time.Hour)
		c.Events.MaxMB = cmp.Or(c.Events.MaxMB, 1024)
		c.Events.Format = cmp.Or(c.Events.Format, "json")
		c.Events.FileMB = cmp.Or(c.Events.FileMB, 100)
		c.Events.FileKeep = cmp.Or(c.Events.FileKeep, 5)
	}()
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
	for key, n := range map[string]int64{
		"events.file_mb": int64(c.Events.FileMB), "events.file_keep": int64(c.Events.FileKeep),
		"events.max_age": int64(c.Events.MaxAge), "events.max_rows": c.Events.MaxRows, "events.max_mb": c.Events.MaxMB,
		"limits.connections": int64(c.Limits.Connections), "limits.connections_per_second": int64(c.Limits.ConnectionsPerSecond),
		"limits.dialing": int64(c.Limits.Dialing), "limits.idle": int64(c.Limits.Idle),
		"limits.udp_associations": int64(c.Limits.UDPAssociations), "limits.udp_idle": int64(c.Limits.UDPIdle),
		"limits.dns_queries_per_second": int64(c.Limits.DNSQueriesPerSecond), "limits.dns_new_names": int64(c.Limits.DNSNewNames),
	} {
		if n < 0 {
			return nil, fmt.Errorf("%s: %s: want no negative value; leave it out for the default", file, key)
		}
	}
	for key, d := range map[string]time.Duration{"events.max_age": c.Events.MaxAge, "limits.idle": c.Limits.Idle} {
		if d > 0 && d < time.Second {
			return nil, fmt.Errorf("%s: %s: %s is too short; want a duration with a unit, such as 720h or 5m", file, key, d)
		}
	}
	return c, nil
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
	return store.Retention{MaxAge: c.Events.MaxAge, MaxRows: c.Events.MaxRows, MaxBytes: c.Events.MaxMB << 20}
}

func (c *config) proxyLimits() proxy.Limits {
	return proxy.Limits{
		Connections: c.Limits.Connections, PerSecond: c.Limits.ConnectionsPerSecond,
		Dialing: c.Limits.Dialing, Idle: c.Limits.Idle,
		Associations: c.Limits.UDPAssociations, UDPIdle: c.Limits.UDPIdle,
	}
}

func (c *config) dnsLimits() dnsmap.Limits {
	return dnsmap.Limits{QueriesPerSecond: c.Limits.DNSQueriesPerSecond, NewNames: c.Limits.DNSNewNames}
}
