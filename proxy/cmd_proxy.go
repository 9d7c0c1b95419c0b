package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/daemon"
	"github.com/tc-loadbalancer/tclb/proxy/internal/metrics"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

func newProxy(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Run the proxy of this node",
		Long: `Run the proxy of this node in the foreground: it keeps the datapath equal to the services files
and the attached containers, and answers the other commands.

SIGHUP reads tclb.yaml and the services files again. SIGTERM and SIGINT stop the proxy and leave
the datapath running: connections go on, and new ones are balanced as before.

In userspace mode (datapath.mode) the proxy carries connections itself: told to stop it accepts no
more, gives those that are there 10 seconds to end, and ends. A second signal ends them at once.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := a.logger()
			if err != nil {
				return err
			}
			ctx, hurry, stop := untilSignals(cmd.Context())
			defer stop()
			err = daemon.Run(ctx, daemon.Options{
				ConfigPath: a.config, ConfigExplicit: a.configExplicit,
				BPFFS: a.bpffs, RunDir: a.runDir, StateDir: a.stateDir,
				Log: log, Version: version,
				Serve: []daemon.Hook{serve(a.socket(), log)}, Hurry: hurry,
			})
			if errors.Is(err, registry.ErrLocked) {
				return fmt.Errorf("a proxy runs on %s already: stop it, or give this one another --run-dir", a.runDir)
			}
			return err
		},
	}
}

// untilSignals returns a context that ends with the first signal to stop, and a channel that is closed with the
// second. A third one need not wait for anything.
func untilSignals(parent context.Context) (ctx context.Context, hurry <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	signals, again, done := make(chan os.Signal, 2), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for _, then := range []func(){cancel, func() { close(again); signal.Stop(signals) }} {
			select {
			case <-signals:
				then()
			case <-done:
				return
			}
		}
	}()
	return ctx, again, func() { signal.Stop(signals); cancel(); close(done) }
}

// serve returns the hook that answers on the socket and on the address of the key `listen`. An
// address in use fails the start: a node that cannot be watched should not look well.
func serve(socket string, log *slog.Logger) daemon.Hook {
	return func(ctx context.Context, v view.View, d daemon.Datapath) error {
		unix, err := api.ListenUnix(socket)
		if err != nil {
			return err
		}
		var tcp net.Listener
		if address := v.Config().Listen; address != "" {
			if tcp, err = api.ListenTCP(address); err != nil {
				return errors.Join(err, unix.Close())
			}
		}
		server := api.New(api.Options{View: v, Datapath: d, Metrics: metrics.New(v, d, version, log), Version: version, Log: log})
		return server.Serve(ctx, unix, tcp)
	}
}
