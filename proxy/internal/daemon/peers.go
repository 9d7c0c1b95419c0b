package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/overlay"
	"github.com/tc-loadbalancer/tclb/proxy/internal/config"
	"github.com/tc-loadbalancer/tclb/proxy/internal/host"
	"github.com/tc-loadbalancer/tclb/proxy/internal/nodes"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// Times of the way to other nodes.
const (
	// peersEvery is how soon a smaller link on the way, or a device that came or went, is noticed.
	peersEvery = time.Second
	// attachEvery repairs what was taken away without the device.
	attachEvery = 30 * time.Second
	// pruneAfter bounds how long a node that is listed no more waits for the backends to follow.
	pruneAfter = 2 * time.Second
)

// defaultMTU is what the underlay is believed to let through as long as nothing says so.
const defaultMTU = 1500

// peers is what the proxy knows of other nodes.
type peers struct {
	table  *nodes.Table
	tunnel atomic.Pointer[datapath.TunnelSettings] // never nil
	own    atomic.Pointer[[2]netip.Addr]           // this node's addresses; never nil
	local  atomic.Pointer[[]netip.Addr]            // all addresses of this node; never nil

	mu       sync.Mutex // guards all below
	listed   []nodes.Peer
	ids      map[string]uint16 // of them, by name
	lost     map[string]bool   // who cannot be reached, by name
	problems []string          // what is wrong, a line each

	// Of the goroutine that follows the nodes alone.
	attached   uint32 // device that from_overlay is on
	attachedAt time.Time
	cleared    bool // there is no tunnel, and nothing is left of one
}

func newPeers(d nodes.Maps) *peers {
	n := &peers{table: nodes.New(d), lost: make(map[string]bool)}
	n.tunnel.Store(&datapath.TunnelSettings{})
	n.own.Store(&[2]netip.Addr{})
	n.local.Store(&[]netip.Addr{})
	return n
}

// ownAddress returns this node's underlay address: as configured, as the list of nodes has it, or of the
// default route.
func ownAddress(cfg *config.Config, found [2]netip.Addr) netip.Addr {
	if cfg.Node.Address.IsValid() {
		return cfg.Node.Address
	}
	for _, n := range cfg.Nodes {
		if n.Name == cfg.Node.Name {
			return n.Address
		}
	}
	if found[0].IsValid() {
		return found[0]
	}
	return found[1]
}

// ownAddresses returns this node's address of each family, its underlay address among them.
func ownAddresses(cfg *config.Config, found [2]netip.Addr) [2]netip.Addr {
	switch a := ownAddress(cfg, found); {
	case a.Is4():
		found[0] = a
	case a.IsValid():
		found[1] = a
	}
	return found
}

// knownNodes returns the nodes that somebody speaks of, this one perhaps among them: those of the configuration
// and, of names and addresses that it has not, those of etcd.
func (p *proxy) knownNodes(cfg *config.Config) []config.Peer {
	list := slices.Clone(cfg.Nodes)
	for _, n := range p.clusterNodes() {
		known := slices.ContainsFunc(list, func(o config.Peer) bool { return o.Name == n.Name || o.Address == n.Address })
		if n.Address.IsValid() && !known {
			list = append(list, config.Peer{Name: n.Name, Address: n.Address, Subnets: n.Subnets, MAC: n.MAC})
		}
	}
	return list
}

// listPeers returns those of known nodes that are not this one, with what fits on the way to them. The error
// says to which of them there is none.
func listPeers(cfg *config.Config, known []config.Peer, own [2]netip.Addr) (out []nodes.Peer, err error) {
	var errs []error
	for _, n := range known {
		if n.Name == cfg.Node.Name || n.Address == own[0] || n.Address == own[1] {
			continue
		}
		p := nodes.Peer{Name: n.Name, Subnets: n.Subnets, Plain: n.MAC != ""}
		p.VTEP, p.MAC, p.DSR = n.Address, overlay.MAC(n.Address), !p.Plain
		if mac, err := net.ParseMAC(n.MAC); err == nil && len(mac) == len(p.MAC) {
			p.MAC = [6]byte(mac)
		}
		p.SNAT = snatMode(cfg.Tunnel.SNAT, n.Subnets)
		mtu, err := peerMTU(cfg.Tunnel.MTU, own[familyOf(n.Address)], n.Address)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
		}
		p.MTU = mtu
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// snatMode says which clients' addresses a peer must not see. Where nobody says which addresses its containers have, they may
// have those of containers here, as runtimes give every node the same subnet. Clients outside are hardly in it.
func snatMode(word string, subnets []netip.Prefix) datapath.SNATMode {
	switch {
	case word == "never":
		return datapath.SNATNever
	case word == "always":
		return datapath.SNATAlways
	case len(subnets) == 0:
		return datapath.SNATInside
	}
	return datapath.SNATCheck
}

// peerMTU returns the largest packet that fits to a peer, or 0 and an error if there is no way to it.
func peerMTU(configured int, own, peer netip.Addr) (uint32, error) {
	if !own.IsValid() {
		return 0, fmt.Errorf("this node has no address of the family of %s: set node.address", peer)
	}
	path, err := overlay.PathTo(own, peer)
	switch {
	case err != nil:
		return 0, err
	case configured != 0:
		return uint32(configured), nil
	}
	return uint32(max(path.MTU-overlay.Overhead(peer), 1)), nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// putPeers makes the listed nodes known to programs and to the state. Nodes come before the backends on
// them and go after.
func (p *kernelMode) putPeers(cfg *config.Config) error {
	n := p.peers
	list, way := listPeers(cfg, p.knownNodes(cfg), *n.own.Load())
	known := n.table.Nodes()
	for i := range list {
		if list[i].MTU == 0 && known[list[i].Name].MTU == 0 {
			list[i].MTU = uint32(defaultMTU - overlay.Overhead(list[i].VTEP))
		}
	}
	ids, err := n.table.Put(list)
	err = errors.Join(way, err)
	if ids == nil {
		return err
	}
	n.mu.Lock()
	n.listed, n.ids = list, ids
	n.publish(p.store)
	n.mu.Unlock()
	p.watch(list, ids)
	return err
}

// setLost says which nodes cannot be reached, by name. All others can.
func (p *kernelMode) setLost(lost map[string]bool) {
	n := p.peers
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost = lost
	n.publish(p.store)
}

// publish tells the store which nodes there are. n.mu is held.
func (n *peers) publish(store *state.Store) {
	out := make(map[string]state.Node, len(n.ids))
	for i := range n.listed {
		name := n.listed[i].Name
		if id, ok := n.ids[name]; ok {
			out[name] = state.Node{ID: id, Reachable: !n.lost[name] && n.speaks(n.listed[i].VTEP)}
		}
	}
	store.SetNodes(out)
}

// speaks says whether this node has an address of the family of a node's. There is no way to it without, and
// no probe to find that out by.
func (n *peers) speaks(address netip.Addr) bool { return n.own.Load()[familyOf(address)].IsValid() }

// findPeers makes the nodes of the start known, before anything says what is on them or is written. A tunnel of before
// goes on as it was until it is looked at.
func (p *kernelMode) findPeers(cfg *config.Config) error {
	if before, err := p.datapath.Settings(); err == nil {
		p.peers.tunnel.Store(&before.Tunnel)
	}
	found, err := host.Addresses()
	if err != nil {
		return err
	}
	p.noteOwn(cfg, found)
	if err := p.putPeers(cfg); err != nil {
		// Followed up, and logged, from now on.
		p.Log.Debug("other nodes", "err", err)
	}
	local, err := localAddresses()
	if err != nil {
		return err
	}
	p.peers.local.Store(&local)
	p.noteOutside(cfg)
	return nil
}

// followPeers keeps nodes, the tunnel and the uplinks right until ctx ends.
func (p *kernelMode) followPeers(ctx context.Context) error {
	ticker := time.NewTicker(peersEvery)
	defer ticker.Stop()
	defer p.uplinks.announcer.Close()
	for {
		err := p.syncPeers(ctx)
		if ctx.Err() == nil {
			p.notePeerProblems(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-p.peersKick:
		case <-p.nodesChanged():
		}
	}
}

// syncPeers looks at everything once.
func (p *kernelMode) syncPeers(ctx context.Context) error {
	cfg := p.config.Load()
	errs := []error{p.putPeers(cfg)}
	tunnel, err := p.syncTunnel(cfg)
	errs = append(errs, err)
	// A port that is somebody else's leaves no device; after another error there may be the one of before.
	if (err == nil || errors.Is(err, overlay.ErrPortInUse)) && *p.peers.tunnel.Swap(&tunnel) != tunnel {
		p.kickHost()
	}
	p.noteOutside(cfg)
	errs = append(errs, p.syncUplinks(cfg), p.announceVIPs())
	p.peers.mu.Lock()
	list := p.peers.listed
	p.peers.mu.Unlock()
	if p.peers.table.Surplus(list) {
		wait, cancel := context.WithTimeout(ctx, pruneAfter)
		_ = p.waitApplied(wait) // backends of nodes that go first, if they can
		cancel()
		errs = append(errs, p.peers.table.Prune(list))
	}
	return errors.Join(errs...)
}
