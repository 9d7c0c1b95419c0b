package daemon

import (
	"context"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	notify "github.com/coreos/go-systemd/v22/daemon"

	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
)

// resyncEvery is how often the maps are read back.
const resyncEvery = time.Minute

// loop makes the maps follow the snapshots. It alone calls the reconciler, and alone reloads.
func (p *proxy) loop(ctx context.Context, hup <-chan os.Signal) error {
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	ready := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.store.Changed():
			p.reconcile.Apply(p.store.Snapshot())
			p.kickHost()
		case <-p.tablesChanged():
			p.reconcile.Refresh(p.cluster.TakeTables())
		case <-retry.C:
			p.reconcile.Retry()
		case <-resync.C:
			p.reconcile.Resync()
		case <-hup:
			p.reloadAll()
			continue
		}
		p.mode.follow()
		p.passed.tell()
		p.kickSave()
		if !ready && p.reconcile.Ready() {
			ready = true
			p.Log.Info("ready", "took", time.Since(p.started).Round(time.Millisecond))
			_, _ = notify.SdNotify(false, notify.SdNotifyReady)
		}
		if at, ok := p.reconcile.NextRetry(); ok {
			retry.Reset(max(time.Until(at), 10*time.Millisecond))
		}
	}
}

// kickSave asks for what passes changed to be saved.
func (p *proxy) kickSave() {
	select {
	case p.saveKick <- struct{}{}:
	default:
	}
}

// muchWork is how many tables a pass must have made to leave memory behind that is worth returning.
const muchWork = 1000

// saveTables saves base tables after passes until ctx ends, and once more then.
func (p *proxy) saveTables(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			p.reconcile.Save()
			return nil
		case <-p.saveKick:
			if p.reconcile.Save() >= muchWork {
				// What was read and planned was many times larger than what is kept of it.
				debug.FreeOSMemory()
			}
		}
	}
}

// reloadAll reads tclb.yaml and everything else again. A bad tclb.yaml changes nothing.
func (p *proxy) reloadAll() {
	_, _ = notify.SdNotify(false, notify.SdNotifyReloading)
	defer func() { _, _ = notify.SdNotify(false, notify.SdNotifyReady) }()
	old := p.config.Load()
	cfg, findings, err := config.Load(p.ConfigPath, p.ConfigExplicit)
	if err == nil && len(findings) == 0 {
		findings = cfg.CheckSubnets(p.subnets())
	}
	p.reload.Store(&findings)
	switch {
	case err != nil:
		p.Log.Error("settings stay as they are", "err", err)
	case len(findings) > 0:
		for _, f := range findings {
			p.Log.Error(f.String())
		}
		p.Log.Error("settings stay as they are", "findings", len(findings))
	default:
		for _, key := range cfg.RestartKeys(old) {
			p.Log.Warn("this key takes effect at the next start of the proxy", "key", key)
		}
		cfg.KeepRestartKeys(old)
		p.config.Store(cfg)
		p.store.SetTimeouts(cfg.Conntrack.Timeouts)
		p.services.SetSurroundings(p.surroundings(cfg))
		p.Log.Info("settings reloaded")
	}
	p.services.Reread()
	p.endpoints.Reread()
	p.kickHost()
	p.kickPeers()
}

// bridges are the subnets of containers' networks, by bridge.
type bridges map[uint32][]netip.Prefix

// noteBridges looks up the subnets of containers.
func (p *proxy) noteBridges(endpoints []registry.Endpoint) {
	b := bridges(sweep.Bridges(endpoints))
	p.bridges.Store(&b)
}

// subnets returns all container subnets that are known, peers' included.
func (p *proxy) subnets() []netip.Prefix {
	out := p.clusterSubnets()
	for _, n := range p.config.Load().Nodes {
		out = append(out, n.Subnets...)
	}
	if b := p.bridges.Load(); b != nil {
		out = append(out, sweep.Subnets(*b)...)
	}
	return slices.Clip(out)
}

// signalAll wakes everybody who waits for something to happen once more.
type signalAll struct {
	mu sync.Mutex
	ch chan struct{}
}

func newSignal() *signalAll { return &signalAll{ch: make(chan struct{})} }

// next returns a channel that is closed with the next tell.
func (s *signalAll) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signalAll) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}

// waitApplied waits until the maps are equal to what the sources have said up to now.
func (p *proxy) waitApplied(ctx context.Context) error {
	for {
		next := p.passed.next()
		s := p.store.Snapshot()
		if s != nil && p.reconcile.Stats().Applied >= s.Revision {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}
