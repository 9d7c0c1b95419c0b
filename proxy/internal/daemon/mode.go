package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Datapath is what the reconciler writes and others read, in whatever mode: maps of the kernel, or memory.
type Datapath interface {
	reconcile.Maps
	sweep.Table
	BackendStat(id uint32) datapath.BackendStat
	Drops() (map[datapath.DropReason]uint64, error)
	Pairs(yield func(datapath.Pair) bool) error
	Recount() (datapath.Drift, error)
	FlushAffinity(service uint32) (int, error)
	FlushFragments() error
	// Quiesce returns when nobody reads what was replaced before.
	Quiesce() error
}

// mode is who carries packets: programs in the kernel, or this process. Everything else is the same.
type mode interface {
	// describe says which one it is, and why where it was not asked for.
	describe() view.Mode
	tables() Datapath
	// newReaper returns what removes attachments that are dead.
	newReaper() (*sweep.Reaper, error)
	// prepare makes the mode's own parts, and known what has to be before services are read.
	prepare(cfg *config.Config) error
	// run starts what runs until ctx ends.
	run(ctx context.Context, g *errgroup.Group)
	// follow is called after each pass of the reconciler: whoever has to be as the tables say is made so.
	follow()
	// network follows a change of VIPs, addresses or routes; own are this node's addresses.
	network(vips []netip.Addr, own [2]netip.Addr) error
	// unserved says why services are not served although the tables are right, by name, and how often that came about.
	unserved() (now map[string]view.ServiceError, ever uint64)

	others() []view.Node
	tunnel() view.Tunnel
	ping(ctx context.Context, node string) (view.Pong, error)
	// ways says what is wrong with the ways to other nodes and to clients outside, a line each.
	ways() []string
	// apart is the part of them that is about backends which get no connections, for the log.
	apart() []string
	close() error
	// farewell is what the log says at the end.
	farewell() string
}

// choose loads the datapath that the configuration asks for. Where it leaves the choice and BPF is not permitted
// here, this process carries connections itself; any other error is one.
func (p *proxy) choose(cfg *config.Config) error {
	if cfg.Datapath.Mode != config.ModeUserspace {
		err := p.loadKernel(cfg)
		if err == nil || cfg.Datapath.Mode == config.ModeEBPF || !datapath.NotPermitted(err) {
			return err
		}
		p.Log.Warn("BPF is not permitted here, so this process carries connections itself (userspace mode): backends see this node's address, and nothing goes on while it is stopped",
			"reason", err)
		return p.loadUserspace(fmt.Sprintf("BPF is not permitted: %v", err))
	}
	return p.loadUserspace("")
}

// inTheWay says whether programs of an eBPF datapath run that know VIPs. Those of containers that came before any proxy know none:
// they pass all packets on.
func inTheWay(bpffs string) bool {
	if !datapath.Attached(bpffs) {
		return false
	}
	d, err := datapath.Open(bpffs)
	if err != nil {
		return true // of another layout, or not for us to look at
	}
	defer func() { _ = d.Close() }()
	vips, err := d.Frontends()
	return err != nil || len(vips) > 0
}

// surroundings are what services files must fit beside, in the mode that was chosen.
func (p *proxy) surroundings(cfg *config.Config) config.Surroundings {
	env := cfg.Surroundings(p.subnets())
	env.Loopback = p.Mode().Name == config.ModeUserspace && p.cluster == nil
	return env
}

// errPinned is the end of a userspace mode that would run beside programs which take its packets away.
var errPinned = errors.New("programs of an eBPF datapath are still attached and would take packets to VIPs: run tclb uninstall first, or set datapath.mode to ebpf")
