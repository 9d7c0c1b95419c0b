package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/attach"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Times of the host path.
const (
	// hostPause lets a burst of changes, as when a container starts, become one.
	hostPause = 100 * time.Millisecond
	// hostEvery repairs what was changed without an event.
	hostEvery = 30 * time.Second
)

func (p *kernelMode) attachHost(ifindex int) error {
	pin := filepath.Join(datapath.LinkDir(p.BPFFS), "host")
	_, err := attach.Attach(p.datapath.Program("from_host"), ifindex, attach.Egress, pin)
	return err
}

// kickHost asks for the host path to be looked at.
func (p *proxy) kickHost() {
	select {
	case p.hostKick <- struct{}{}:
	default:
	}
}

// kickPeers asks for the way to other nodes to be looked at.
func (p *proxy) kickPeers() {
	select {
	case p.peersKick <- struct{}{}:
	default:
	}
}

// followHost keeps devices, routes and settings right until ctx ends. A host path that cannot be made
// costs the host its VIPs, not the containers theirs, so it is an error in the log.
func (p *proxy) followHost(ctx context.Context) error {
	go func() {
		for ctx.Err() == nil {
			if err := host.Watch(ctx, p.kickHost); err != nil && ctx.Err() == nil {
				p.Log.Debug("events of the network were lost, looking again", "err", err)
				pause(ctx, time.Second)
				p.kickHost()
			}
		}
	}()
	ticker := time.NewTicker(hostEvery)
	defer ticker.Stop()
	said := ""
	for {
		text := ""
		err := p.syncHost()
		if err != nil { // perhaps an address or a device that went away under our hands
			pause(ctx, hostPause)
			err = p.syncHost()
		}
		if err != nil && ctx.Err() == nil {
			if text = err.Error(); text != said {
				p.Log.Error("the host itself may not reach VIPs", "err", err)
			}
		}
		said = text
		pause(ctx, hostPause)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-p.hostKick:
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// syncHost makes the host path once, and notes what else follows from the network.
func (p *proxy) syncHost() error {
	cfg := p.config.Load()
	address, err := host.Addresses()
	if err != nil {
		return err
	}
	p.noteOwn(cfg, address)
	if local, err := localAddresses(); err == nil && !slices.Equal(*p.peers.local.Swap(&local), local) {
		p.kickPeers()
	}
	var vips []netip.Addr
	if s := p.store.Snapshot(); s != nil {
		for _, svc := range s.Services {
			vips = append(vips, svc.Spec.VIPs...)
		}
		p.noteBridges(s.Endpoints)
		p.services.SetSurroundings(p.surroundings(cfg))
	}
	return p.mode.network(vips, address)
}

// sourceAddresses returns with which addresses the host asks VIPs: those that others know it by, or those that
// were found where one of them is not this node's. That is a mistake that costs the host its peers, not its VIPs.
func sourceAddresses(own, found [2]netip.Addr, local []netip.Addr) [2]netip.Addr {
	for family, a := range own {
		if a.IsValid() && !slices.Contains(local, a) {
			own[family] = found[family]
		}
	}
	return own
}

// noteOwn notes this node's addresses, of those that were found and are configured.
func (p *proxy) noteOwn(cfg *config.Config, found [2]netip.Addr) {
	node := view.Node{Name: p.node.Load().Name, Address: ownAddress(cfg, found), Reachable: true}
	if before := p.node.Swap(&node); before.Address != node.Address {
		p.passed.tell() // the other nodes are to know it
	}
	own := ownAddresses(cfg, found)
	if *p.peers.own.Swap(&own) != own {
		p.kickPeers()
	}
}

// localAddresses returns all addresses of this node, sorted: at a VIP among them its own processes come
// first.
func localAddresses() ([]netip.Addr, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(addresses))
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, prefix.Addr().Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// putSettings writes what programs have to know, if it differs.
func (p *kernelMode) putSettings(st host.State) error {
	cfg := p.config.Load()
	want := datapath.Settings{
		HostStack:   cfg.Datapath.HostStack,
		AntiSpoof:   cfg.Datapath.AntiSpoof,
		HostIfindex: st.Ifindex,
		HostMAC:     st.MAC,
		Tunnel:      *p.peers.tunnel.Load(),
	}
	for _, a := range cfg.Datapath.HairpinAddress {
		if a.Is4() {
			want.Hairpin4 = a
		} else {
			want.Hairpin6 = a
		}
	}
	if have, err := p.datapath.Settings(); err == nil && have == want {
		return nil
	}
	return p.datapath.PutSettings(want)
}
