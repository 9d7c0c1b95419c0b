// Package daemon is the running proxy: it puts the parts together, starts them in order, and stops
// them.
//
// Stopping leaves the kernel's datapath as it is: packets flow on, and the next proxy finds everything
// where it was. In userspace mode connections may end first, and nothing is left.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"time"

	notify "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/cluster"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/health"
	"github.com/tc-loadbalancer/tclb/proxy/internal/outlier"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/runtimes"
	"github.com/tc-loadbalancer/tclb/proxy/internal/source"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Hook serves a view to others until ctx ends. It starts before the first reconcile. An error that it
// returns earlier stops the proxy.
type Hook func(ctx context.Context, v view.View, d Datapath) error

// Options say where the proxy finds and keeps things.
type Options struct {
	ConfigPath     string
	ConfigExplicit bool // the user named ConfigPath, so it must exist
	BPFFS          string
	RunDir         string
	StateDir       string
	Log            *slog.Logger
	Version        string
	Serve          []Hook

	// Hurry is closed when whoever stops the proxy does not want to wait for connections to end. nil = never.
	Hurry <-chan struct{}
}

// Run is the proxy. It returns nil after ctx ended, or why it cannot run.
func Run(ctx context.Context, o Options) error {
	p := &proxy{Options: o, started: time.Now(), passed: newSignal()}
	p.hostKick, p.peersKick, p.saveKick = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	cfg, err := p.loadConfig()
	if err != nil {
		return err
	}
	p.config.Store(cfg)
	if p.dir, err = registry.Open(o.RunDir); err != nil {
		return err
	}
	unlock, err := p.dir.LockProxy()
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.choose(cfg); err != nil {
		return err
	}
	defer func() { _ = p.mode.close() }()
	if err := p.dir.PutMode(p.mode.describe().Name); err != nil {
		return err
	}
	if err := p.assemble(cfg); err != nil {
		return err
	}
	return p.run(ctx)
}

// proxy is what runs.
type proxy struct {
	Options
	started time.Time

	// servicesDir is that of the start: a change of the key needs a restart.
	servicesDir string

	config  atomic.Pointer[config.Config]
	reload  atomic.Pointer[[]config.Finding] // of the last reload of tclb.yaml
	node    atomic.Pointer[view.Node]
	bridges atomic.Pointer[bridges]

	dir       *registry.Dir
	mode      mode
	store     *state.Store
	services  *source.Services
	endpoints *source.Endpoints
	reconcile *reconcile.Reconciler
	reaper    *sweep.Reaper
	recounter *sweep.Recounter
	learner   *runtimes.Learner // labels of containers
	finder    *runtimes.Finder  // containers that were there first
	cluster   *cluster.Source   // the other nodes; nil without etcd
	checks    *checks           // of backends' health
	ejections *ejections        // of those who fail their clients
	peers     *peers            // other nodes
	hostKick  chan struct{}     // the host path may be out of date
	peersKick chan struct{}     // the way to other nodes may be
	saveKick  chan struct{}     // tables are to be saved
	passed    *signalAll        // a pass of the reconciler ended
}

// loadConfig reads tclb.yaml. Findings go to the log one by one, as everywhere.
func (p *proxy) loadConfig() (*config.Config, error) {
	cfg, findings, err := config.Load(p.ConfigPath, p.ConfigExplicit)
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		p.Log.Error(f.String())
	}
	if len(findings) > 0 {
		return nil, fmt.Errorf("%s is not valid, findings: %d: correct it, or check it with tclb validate", p.ConfigPath, len(findings))
	}
	return cfg, nil
}

// assemble makes the parts. None runs yet.
func (p *proxy) assemble(cfg *config.Config) error {
	var err error
	if p.reaper, err = p.mode.newReaper(); err != nil {
		return err
	}
	tables := p.mode.tables()
	p.recounter = sweep.NewRecounter(tables.Recount, p.Log)
	p.store = state.New(cfg.Node.Name, p.StateDir, cfg.Conntrack.Timeouts, p.Log)
	p.joinCluster(cfg)
	p.checks = newChecks(p.store, health.New(health.Options{Limit: probeLimit(), Log: p.Log}), p.RunDir, p.Log)
	arena := datapath.NewArena(tables.Sizes().TableSlots, reconcile.Grace, time.Now)
	arena.Quiesce = tables.Quiesce
	p.reconcile = reconcile.New(reconcile.Options{
		Maps:     tables,
		Arena:    arena,
		TableDir: filepath.Join(p.StateDir, "tables"),
		Shared:   p.sharedTables(),
		Now:      time.Now,
		Log:      p.Log,
	})
	p.ejections = newEjections(p.store, outlier.New(countsOf(tables), p.Log), p.reconcile.Service)
	p.node.Store(&view.Node{Name: cfg.Node.Name, Reachable: true})
	if err := p.mode.prepare(cfg); err != nil {
		return err
	}
	p.learner = runtimes.NewLearner(runtimes.Options{
		Podman: cfg.Runtimes.Podman, Containerd: cfg.Runtimes.Containerd,
		StateDir: p.StateDir, Log: p.Log, Publish: p.store.SetEndpoints,
	})
	p.finder = runtimes.NewFinder(cfg.Runtimes.CNIConfig, cfg.Runtimes.CNICache, p.RunDir)
	p.endpoints = source.NewEndpoints(p.dir, p.reaper.Alive, p.learner.SetEndpoints, p.Log)
	p.services = source.NewServices(cfg.ServicesDir, p.StateDir, p.store.SetServices, p.Log)
	p.services.Elsewhere = p.clusterVIPs
	p.servicesDir = cfg.ServicesDir
	attached, _ := p.dir.List()
	p.noteBridges(attached)
	if err := p.checkPool(cfg); err != nil {
		return err
	}
	p.services.Start(p.surroundings(cfg))
	return nil
}

// checkPool refuses a pool that overlaps a container subnet.
func (p *proxy) checkPool(cfg *config.Config) error {
	findings := cfg.CheckSubnets(p.subnets())
	for _, f := range findings {
		p.Log.Error(f.String())
	}
	if len(findings) > 0 {
		return fmt.Errorf("%s: %s", p.ConfigPath, findings[0].Reason)
	}
	return nil
}

// run starts everything and waits for the end.
func (p *proxy) run(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	defer signal.Stop(hup)
	g, ctx := errgroup.WithContext(ctx)
	for _, hook := range p.Serve {
		g.Go(func() error { return hook(ctx, p, p.mode.tables()) })
	}
	g.Go(func() error { return p.followHost(ctx) })
	g.Go(func() error { return p.reaper.Run(ctx) })
	g.Go(func() error { return p.endpoints.Run(ctx) })
	g.Go(func() error { return p.learner.Run(ctx) })
	g.Go(func() error { return p.sayNotes(ctx) })
	g.Go(func() error { return p.services.Run(ctx) })
	g.Go(func() error { return sweep.Flows(ctx, p.mode.tables(), p.Log) })
	g.Go(func() error { return p.recounter.Run(ctx) })
	g.Go(func() error { return p.saveTables(ctx) })
	g.Go(func() error { return p.checks.checker.Run(ctx) })
	g.Go(func() error { return p.checks.follow(ctx, p.passed.next) })
	g.Go(func() error { return p.ejections.judge.Run(ctx) })
	g.Go(func() error { return p.ejections.follow(ctx, p.passed.next) })
	g.Go(func() error { return p.loop(ctx, hup) })
	if p.cluster != nil {
		g.Go(func() error { return p.cluster.Run(ctx) })
	}
	p.mode.run(ctx, g)
	p.Log.Info("tclb proxy started", "version", p.Version, "node", p.Node().Name, "mode", p.Mode().Name)
	err := g.Wait()
	p.services.Save()
	_, _ = notify.SdNotify(false, notify.SdNotifyStopping)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	p.Log.Info(p.mode.farewell())
	return err
}
