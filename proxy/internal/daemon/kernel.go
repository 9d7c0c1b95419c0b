package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reach"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// kernelMode is the mode in which programs in the kernel carry packets: they go on when the proxy stops.
type kernelMode struct {
	*proxy
	datapath *datapath.Datapath
	host     *host.Host
	reach    *reach.Prober // of other nodes
	uplinks  *uplinks      // where clients outside are
	trunks   *trunks       // what carries VLANs
}

var _ mode = (*kernelMode)(nil)

// sizesFile tells a plugin that comes first after a boot how large the maps are to be.
const sizesFile = "sizes.json"

// loadKernel opens or makes maps and programs, and lets every link run this binary's programs.
func (p *proxy) loadKernel(cfg *config.Config) error {
	sizes := sizesOf(cfg)
	if err := p.writeSizes(sizes); err != nil {
		return err
	}
	d, err := datapath.Load(datapath.Options{BPFFS: p.BPFFS, Sizes: sizes, Log: p.Log})
	if err != nil {
		return err
	}
	k := &kernelMode{proxy: p, datapath: d}
	if have := d.Sizes().WithDefaults(); have != sizes.WithDefaults() {
		p.Log.Warn("the maps that are there have other sizes than tclb.yaml says, and are kept: they change after tclb uninstall",
			"have", fmt.Sprintf("%+v", have), "want", fmt.Sprintf("%+v", sizes.WithDefaults()))
	}
	changed, err := d.Upgrade()
	if err != nil {
		return errors.Join(err, d.Close())
	}
	if len(changed) > 0 {
		p.Log.Info("replaced programs", "programs", strings.Join(changed, " "))
	}
	k.updateLinks()
	p.mode = k
	return nil
}

func sizesOf(cfg *config.Config) datapath.Sizes {
	return datapath.Sizes{
		MaxServices:  uint32(cfg.Datapath.MaxServices),
		MaxBackends:  uint32(cfg.Datapath.MaxBackends),
		TableSlots:   uint32(cfg.Datapath.TableSlots),
		MaxConntrack: uint32(cfg.Conntrack.MaxEntries),
	}
}

// writeSizes leaves the sizes for the plugin, in one step.
func (p *proxy) writeSizes(sizes datapath.Sizes) error {
	data, err := json.Marshal(sizes)
	if err != nil {
		return fmt.Errorf("write %s: %w", sizesFile, err)
	}
	tmp := filepath.Join(p.RunDir, "."+sizesFile)
	err = os.WriteFile(tmp, append(data, '\n'), 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(p.RunDir, sizesFile))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", sizesFile, err)
	}
	return nil
}

// programOf says which program a link pin is for, by the end of its name.
func programOf(pin string) string {
	switch {
	case pin == overlayPin:
		return datapath.FromOverlay
	case strings.HasSuffix(pin, uplinkIn):
		return datapath.FromUplink
	case strings.HasSuffix(pin, uplinkOut):
		return datapath.ToUplink
	case strings.HasSuffix(pin, trunkIn):
		return datapath.FromTrunk
	case strings.HasSuffix(pin, "-in"):
		return datapath.FromContainer
	case strings.HasSuffix(pin, "-out"):
		return datapath.ToContainer
	}
	return "" // tclb0's is attached with its device
}

// updateLinks lets containers and devices that are attached already run the programs of this binary. Also after a
// proxy that was killed between replacing the programs and the links.
func (p *kernelMode) updateLinks() {
	entries, err := os.ReadDir(datapath.LinkDir(p.BPFFS))
	if err != nil {
		return // none yet
	}
	for _, e := range entries {
		prog := programOf(e.Name())
		if prog == "" {
			continue
		}
		err := attach.Update(filepath.Join(datapath.LinkDir(p.BPFFS), e.Name()), p.datapath.Program(prog))
		if err != nil && !errors.Is(err, attach.ErrDead) && !errors.Is(err, attach.ErrNotFound) {
			p.Log.Error("the program of before runs on", "pin", e.Name(), "err", err)
		}
	}
}

func (p *kernelMode) describe() view.Mode { return view.Mode{Name: config.ModeEBPF} }

func (p *kernelMode) tables() Datapath { return p.datapath }

func (p *kernelMode) close() error { return p.datapath.Close() }

func (p *kernelMode) newReaper() (*sweep.Reaper, error) {
	return sweep.NewReaper(p.datapath, p.dir, datapath.LinkDir(p.BPFFS), p.Log)
}

// prepare implements mode: what is attached and on the way to other nodes is found before the first pass.
func (p *kernelMode) prepare(cfg *config.Config) error {
	if _, err := host.RemoveLocal(); err != nil { // of a proxy in userspace mode that was killed
		p.Log.Warn("VIPs may lead nowhere", "err", err)
	}
	p.host = host.New(p.attachHost, p.Log)
	p.reach = p.newProber(p.noteReach)
	p.peers, p.uplinks, p.trunks = newPeers(p.datapath), newUplinks(p.datapath), newTrunks(p.datapath)
	return errors.Join(p.findPeers(cfg), p.findVLANs())
}

func (p *kernelMode) run(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return p.followPeers(ctx) })
	g.Go(func() error { return p.followTrunks(ctx) })
	g.Go(func() error { return p.reach.Run(ctx) })
}

// follow implements mode: packets follow the maps by themselves.
func (p *kernelMode) follow() {}

func (p *kernelMode) unserved() (now map[string]view.ServiceError, ever uint64) { return nil, 0 }

func (p *kernelMode) farewell() string { return "tclb proxy stopped, the datapath runs on" }

// network implements mode: the host path leads to the VIPs, and to the hairpin addresses as well: what came by tunnel
// for a process of the host has them as source.
func (p *kernelMode) network(vips []netip.Addr, own [2]netip.Addr) error {
	cfg := p.config.Load()
	own = sourceAddresses(*p.peers.own.Load(), own, *p.peers.local.Load())
	vips = append(vips, cfg.Datapath.HairpinAddress...)
	st, err := p.host.Sync(host.Prefixes(cfg.VIPPool, vips), own)
	return errors.Join(err, p.putSettings(st))
}
