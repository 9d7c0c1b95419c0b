package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
	"github.com/tc-loadbalancer/tclb/proxy/internal/nodes"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reach"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// newProber returns what watches other nodes; publish is told of their verdicts.
func (p *kernelMode) newProber(publish func(map[string]reach.State)) *reach.Prober {
	return reach.New(reach.Options{
		Transport:       reach.NewSockets(host.Device, p.hairpin),
		Publish:         publish,
		DisableOffloads: p.disableOffloads,
		Log:             p.Log,
	})
}

// hairpin returns the hairpin address of each family, as it is configured now.
func (p *kernelMode) hairpin() (out [2]netip.Addr) {
	for _, a := range p.config.Load().Datapath.HairpinAddress {
		out[familyOf(a)] = a
	}
	return out
}

// tunnelDevice returns the device that programs send to other nodes by, or nil without one.
func (p *kernelMode) tunnelDevice() (netlink.Link, error) {
	s, err := p.datapath.Settings()
	if err != nil || s.Tunnel.Ifindex == 0 {
		return nil, err
	}
	dev, err := netlink.LinkByIndex(int(s.Tunnel.Ifindex))
	if err != nil {
		return nil, fmt.Errorf("look up tunnel device: %w", err)
	}
	return dev, nil
}

func (p *kernelMode) disableOffloads() error {
	dev, err := p.tunnelDevice()
	if err != nil || dev == nil {
		return err
	}
	return overlay.DisableOffloads(uint32(dev.Attrs().Index))
}

// watch lets the prober watch the nodes.
func (p *kernelMode) watch(list []nodes.Peer, ids map[string]uint16) {
	known := p.peers.table.Nodes()
	targets := make([]reach.Target, 0, len(list))
	for i := range list {
		n := &list[i]
		targets = append(targets, reach.Target{
			ID: ids[n.Name], Name: n.Name, Address: n.VTEP, Plain: n.Plain, MTU: int(known[n.Name].MTU),
		})
	}
	p.reach.SetTargets(targets)
}

// noteReach takes the backends of nodes that cannot be reached out of their services, and back in.
func (p *kernelMode) noteReach(states map[string]reach.State) {
	lost := make(map[string]bool)
	for name, s := range states {
		if !s.Reachable {
			lost[name] = true
		}
	}
	p.setLost(lost)
}

// Nodes implements view.View.
func (p *proxy) Nodes() []view.Node {
	self := p.Node()
	self.Self, self.Version = true, p.Version
	out := append([]view.Node{self}, p.mode.others()...)
	slices.SortFunc(out, func(a, b view.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// others implements mode.
func (p *kernelMode) others() []view.Node {
	var out []view.Node
	versions := make(map[string]string)
	for _, n := range p.clusterNodes() {
		versions[n.Name] = n.Version
	}
	for _, s := range p.reach.States() {
		out = append(out, view.Node{
			Name: s.Name, ID: s.ID, Version: versions[s.Name], Address: s.Address,
			Reachable: s.Reachable && p.peers.speaks(s.Address), Plain: s.Plain,
			Latency: s.Latency, LossRatio: s.LossRatio, MTU: s.MTU, MTUBlackHole: s.BlackHole,
			OffloadsBroken: s.Offload == reach.OffloadBroken, Since: s.Since, LastSeen: s.LastSeen,
			Probes: view.NodeProbes{Answered: s.Counts.Answered, Lost: s.Counts.Lost, Late: s.Counts.Late},
		})
	}
	return out
}

// tunnel implements mode. Without a device nothing went through it.
func (p *kernelMode) tunnel() view.Tunnel {
	dev, err := p.tunnelDevice()
	if err != nil {
		p.Log.Debug("the tunnel's counters could not be read", "err", err)
	}
	if dev == nil || dev.Attrs().Statistics == nil {
		return view.Tunnel{}
	}
	s := dev.Attrs().Statistics
	return view.Tunnel{PacketsIn: s.RxPackets, PacketsOut: s.TxPackets, BytesIn: s.RxBytes, BytesOut: s.TxBytes}
}

// PingNode implements view.View.
func (p *proxy) PingNode(ctx context.Context, name string) (view.Pong, error) {
	if name == p.Node().Name {
		return view.Pong{}, fmt.Errorf("node %q %w: it is this node", name, view.ErrNoPing)
	}
	return p.mode.ping(ctx, name)
}

// ping implements mode.
func (p *kernelMode) ping(ctx context.Context, name string) (view.Pong, error) {
	pong, err := p.reach.Ping(ctx, name)
	switch {
	case errors.Is(err, reach.ErrUnknown):
		err = fmt.Errorf("node %q: %w: tclb node list shows them", name, view.ErrNoNode)
	case errors.Is(err, reach.ErrPlain):
		err = fmt.Errorf("node %q %w: it is %w", name, view.ErrNoPing, reach.ErrPlain)
	}
	return view.Pong(pong), err
}
