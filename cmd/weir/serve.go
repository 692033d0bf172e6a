package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weir/api"
	"weir/audit"
	"weir/container"
	"weir/dnsmap"
	"weir/proxy"
	"weir/session"
	"weir/store"
	"weir/web"
)

// serveOptions are the flags of weir serve.
type serveOptions struct {
	dataDir string
	socket  string
	http    string
	config  string
}

func newServe(c *common) *cobra.Command {
	o := &serveOptions{}
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the daemon", Args: cobra.NoArgs,
		Long: `Run the daemon. It needs root: it works in the network namespaces of other
processes. Stopping it leaves attached containers locked in, without egress;
starting it again brings them back. 'weir detach' sets them free.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.socket = c.socket
			return serve(cmd.Context(), o, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dataDir, "data-dir", "/var/lib/weir", "where the database and the token are kept")
	flags.StringVar(&o.http, "http", "127.0.0.1:7654", "address of dashboard and API over TCP, or 'off'")
	flags.StringVar(&o.config, "config", "", "configuration `FILE` (default "+defaultConfig+", if there is one)")
	return cmd
}

// serve is the daemon from start to end.
func serve(ctx context.Context, o *serveOptions, logger *slog.Logger) error {
	if os.Geteuid() != 0 {
		return errors.New("the daemon needs root: sudo weir serve")
	}
	config, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	keeper := newKeeper(logger)
	alive, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	pulse, err := startPulse(alive, keeper, phase{well: within(openingLimit, "opening the database"), brief: true})
	if err != nil {
		return fmt.Errorf("what systemd wants to hear: %w", err)
	}
	limits := config.proxyLimits(raiseFileLimit(logger))
	if err := os.MkdirAll(o.dataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	st, err := store.Open(ctx, filepath.Join(o.dataDir, "weir.db"))
	if err != nil {
		return err
	}
	defer st.Close()
	socket, err := api.ListenSocket(o.socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	token, err := api.LoadToken(filepath.Join(o.dataDir, "token"))
	if err != nil {
		return err
	}
	tcp, ports, err := listenHTTP(o.http)
	if err != nil {
		return err
	}

	last, err := st.LastEventID(ctx)
	if err != nil {
		return err
	}
	metrics, activity := api.NewMetrics(version), &web.Activity{}
	trail := audit.NewLog(audit.Config{
		Append: func(ctx context.Context, batch []audit.Event) error {
			began := time.Now()
			err := st.AppendEvents(ctx, batch)
			metrics.Appended(time.Since(began), err)
			if err != nil {
				return err
			}
			metrics.Count(batch)
			activity.Count(batch)
			return nil
		},
		Events: st.Events, Last: last,
		Failed: func(err error) { logger.Error("storing events; flows wait", "error", err) },
	})
	stored := make(chan error, 1)
	go func() { stored <- trail.Serve() }()
	exported := config.export(context.WithoutCancel(ctx), o.dataDir, trail, logger)

	upstream := &dnsmap.Upstream{Servers: config.upstreams, Asked: metrics.Asked}
	defer upstream.Close()
	installation, err := st.InstallationID(ctx)
	if err != nil {
		return err
	}
	authority, err := proxy.OpenCA(o.dataDir, installation, nil)
	if err != nil {
		return err
	}
	roots, err := proxy.LoadRoots(config.TLS.ExtraRoots...)
	if err != nil {
		return err
	}
	crls, err := proxy.LoadCRLs(config.TLS.CRLs...)
	if err != nil {
		return err
	}
	conductor, err := session.New(ctx, session.Config{
		Store: st, Log: trail, Runtimes: container.Connect(config.Runtimes...), Upstream: upstream, Logger: logger,
		Inherited: inheritedSockets(logger), Keep: keeper.keep, Forget: keeper.forget, Drain: drainTime,
		Authority: authority, Roots: roots, CRLs: crls, Meter: metrics,
		ControlPorts: ports, ProxyLimits: limits, RelayLimits: config.relayLimits(), DNSLimits: config.dnsLimits(), Retention: config.retention(),
	})
	if err != nil {
		return err
	}
	pulse.enter(phase{well: conductor.Healthy, brief: true})
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	upgrade := func(ctx context.Context) error {
		if err := successor(ctx, o.config); err != nil {
			return fmt.Errorf("not upgraded, the daemon goes on as it is: %w", err)
		}
		conductor.Handover()
		stop()
		return nil
	}
	server := &api.Server{Upgrade: upgrade, Conductor: conductor, Log: trail, Events: st.Events, Version: version, Metrics: metrics, Token: token, Logger: logger}
	server.Dashboard = &web.Server{API: server.Client(), Log: trail, Events: st.Events, Token: token, Activity: activity, Version: version, Logger: logger}

	ending := sync.OnceFunc(func() {
		pulse.enter(phase{well: both(conductor.Healthy, within(endingLimit, "ending")), brief: true})
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return conductor.Run(ctx, func() {
			logger.Info("ready", "version", version, "socket", o.socket, "http", o.http, "attached", len(conductor.Attachments()))
			keeper.send(daemon.SdNotifyReady, nil)
			pulse.enter(phase{well: conductor.Healthy})
			context.AfterFunc(ctx, ending)
			group.Go(func() error { return server.Serve(ctx, socket, tcp) })
		})
	})
	err = group.Wait()
	ending()
	// The last flows have ended; what they said is still to be stored.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = errors.Join(err, trail.Shutdown(drain), <-stored)
	<-exported
	if sockets := conductor.Sockets(); sockets != nil && err == nil {
		logger.Info("starting the new version", "listeners", len(sockets))
		// Nothing deferred runs any more.
		err = errors.Join(socket.Close(), upstream.Close(), st.Close(), become(sockets))
	}
	return err
}

// listenHTTP opens the API's TCP listener; nil for "off".
func listenHTTP(address string) (net.Listener, []uint16, error) {
	if address == "off" {
		return nil, nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("API over TCP: %w; choose another address with --http, or --http off", err)
	}
	own, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	return l, []uint16{own.Port()}, nil
}

// raiseFileLimit takes all the file descriptors that may be had, and returns how
// many: each connection needs two.
func raiseFileLimit(logger *slog.Logger) int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		logger.Warn("asking for the limit of open files", "error", err)
		return 1024 // what a process has by default
	}
	want := limit
	want.Max = max(want.Max, 1<<20)
	want.Cur = want.Max
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return int(want.Cur)
	}
	had := limit.Cur
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		logger.Warn("raising the limit of open files", "error", err)
		return int(had)
	}
	return int(limit.Cur)
}
