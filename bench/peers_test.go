package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A program that is measured beside. In its texts BINARY is where it is, DIR a
// directory of its own, PORT the port that it listens at and NEXT and LAST the
// two after that, SERVER the address of its server, AUTHORITY a file with what it
// makes certificates with, ROOTS one with the authority that it trusts.
type program struct {
	name     string
	binary   string // in PATH; "": its name
	does     ability
	redirect string    // where connections are redirected to, for nftables; "": PORT
	config   string    // the text of DIR/config
	run      string    // for a shell, which becomes the program
	behind   []program // at LAST: the first that this machine has is started too, and counts with it
}

var programs = []program{
	{name: "haproxy", does: relays, run: "exec BINARY -db -f DIR/config",
		config: "global\n maxconn 9000\ndefaults\n mode tcp\n timeout client 1h\n timeout server 1h\n timeout connect 5s\n" +
			"frontend in\n bind :PORT\n default_backend out\nbackend out\n option transparent\n"},
	{name: "sing-box", does: relays, run: "exec BINARY run -c DIR/config",
		config: `{"log":{"level":"error"},"inbounds":[{"type":"redirect","listen":"0.0.0.0","listen_port":PORT}],"outbounds":[{"type":"direct"}]}`},
	{name: "redsocks", does: relays, run: "exec BINARY -c DIR/config",
		config: "base { log_info = off; log = stderr; daemon = off; redirector = iptables; redsocks_conn_max = 9000; rlimit_nofile = 20000; }\n" +
			"redsocks { local_ip = 0.0.0.0; local_port = PORT; listenq = 1024; ip = 127.0.0.1; port = LAST; type = socks5; }\n",
		behind: []program{
			{name: "sing-box", run: "exec BINARY run -c DIR/config",
				config: `{"log":{"level":"error"},"inbounds":[{"type":"socks","listen":"127.0.0.1","listen_port":PORT}],"outbounds":[{"type":"direct"}]}`},
			{name: "microsocks", run: "exec BINARY -i 127.0.0.1 -p PORT"}}},
	// It does not run as root, and its shared memory has a fixed name.
	{name: "squid", does: requests | inspects, redirect: "tcp dport map { 443 : NEXT, 7000 : PORT }",
		run: `/usr/lib/squid/security_file_certgen -c -s DIR/certificates -M 4MB
cp AUTHORITY DIR/authority
cp ROOTS DIR/roots
echo SERVER www.example.com >DIR/hosts
chown -R proxy: DIR
exec unshare --mount sh -ec 'mount -t tmpfs none /dev/shm
exec setpriv --reuid proxy --regid proxy --clear-groups --pdeathsig KILL BINARY -N -d 1 -f DIR/config'`,
		config: `http_port PORT intercept
https_port NEXT intercept ssl-bump cert=DIR/authority generate-host-certificates=on
http_port 127.0.0.1:LAST
sslcrtd_program /usr/lib/squid/security_file_certgen -s DIR/certificates -M 4MB
tls_outgoing_options cafile=DIR/roots
acl hello at_step SslBump1
ssl_bump peek hello
ssl_bump bump all
acl begins method CONNECT
acl host dstdomain www.example.com
acl reads method GET
acl path urlpath_regex ^/ok/ ^/x
http_access allow begins
http_access allow host reads path
http_access deny all
cache deny all
access_log none
cache_log /dev/null
netdb_filename none
pid_filename none
pinger_enable off
hosts_file DIR/hosts
`},
	{name: "mitmproxy", binary: "mitmdump", does: inspects,
		run: `cp AUTHORITY DIR/mitmproxy-ca.pem
exec BINARY --quiet --mode transparent --listen-port PORT --set confdir=DIR --set ssl_verify_upstream_trusted_ca=ROOTS --scripts DIR/config`,
		config: `from mitmproxy import http

def request(flow):
    r = flow.request
    if r.method != "GET" or r.pretty_host != "www.example.com" or not r.path.startswith("/ok/"):
        flow.response = http.Response.make(403)
`},
}

// startPeers starts what this machine has of others.
func (l *lab) startPeers(b *testing.B) {
	b.Helper()
	for i, p := range programs {
		server := fmt.Sprintf("198.51.100.%d", 100+i)
		started, to := l.startPeer(b, p, 7100+10*i, server)
		if started == nil {
			continue
		}
		l.namespace(b, p.name, fmt.Sprintf("10.11.%d", i))
		l.sh(b, "", fmt.Sprintf(`nft "add table ip peer%[1]d; add chain ip peer%[1]d pre { type nat hook prerouting priority dstnat; }; add rule ip peer%[1]d pre iifname v-%[2]s ip protocol tcp redirect to :%[3]s"`,
			i, p.name, to))
		l.ways = append(l.ways, way{p.name, p.name, server, p.does, started, filepath.Join(l.dir, "authority.pem")})
	}
}

// startPeer starts a program, and first what has to be behind it, if they are
// there. It returns their processes and where connections are redirected to.
func (l *lab) startPeer(b *testing.B, p program, port int, server string) (started []*exec.Cmd, redirect string) {
	b.Helper()
	binary := peer(p)
	if binary == "" {
		return nil, ""
	}
	for _, behind := range p.behind {
		if started, _ = l.startPeer(b, behind, port+2, server); started != nil {
			break
		}
	}
	if p.behind != nil && started == nil {
		return nil, ""
	}
	dir, err := os.MkdirTemp(l.dir, p.name)
	if err != nil {
		b.Fatal(err)
	}
	fill := strings.NewReplacer("BINARY", binary, "DIR", dir, "PORT", strconv.Itoa(port), "NEXT", strconv.Itoa(port+1), "LAST", strconv.Itoa(port+2), "SERVER", server,
		"AUTHORITY", filepath.Join(l.dir, "authority.pem"), "ROOTS", filepath.Join(l.dir, "outside.pem")).Replace
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(fill(p.config)), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("sh", "-ec", fill(p.run))
	l.log(b, cmd, p.name)
	l.start(b, cmd)
	l.wait(b, p.name, func() bool {
		out, _ := exec.Command("ss", "-Hltn", "sport", "=", ":"+strconv.Itoa(port)).Output()
		return len(out) > 0
	})
	redirect = "PORT"
	if p.redirect != "" {
		redirect = p.redirect
	}
	return append(started, cmd), fill(redirect)
}

// peer is where another program is, or "".
func peer(p program) string {
	if path, set := os.LookupEnv("WEIR_BENCH_" + variable(p.name)); set {
		return path // "": not to be measured
	}
	if p.binary == "" {
		p.binary = p.name
	}
	path, _ := exec.LookPath(p.binary)
	return path
}

// variable is how a program is written in the name of a variable.
func variable(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }
