// Package nodes gives the other nodes of the cluster their ids, and keeps what programs know of them.
//
// A node's id is the zone of its flows and part of its backends, so it must not change while the node is
// known, across restarts of the proxy too: ids are found again in the maps by address. An id that was
// another node's may still stand in flows. So it rests until nothing else is left, and where a node's id
// is looked for first depends on its address: two nodes rarely look at the same place.
package nodes

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"sync"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
)

// Maps is what the table needs of the datapath.
type Maps interface {
	Nodes() (map[uint16]datapath.Node, error)
	PutNode(id uint16, n datapath.Node) error
	DeleteNode(id uint16) error
	Subnets() (map[datapath.SubnetKey]struct{}, error)
	PutSubnet(datapath.SubnetKey) error
	DeleteSubnet(datapath.SubnetKey) error
}

// Peer is another node as its owner describes it.
type Peer struct {
	Name string
	datapath.Node
	Subnets []netip.Prefix // of its containers
	Plain   bool           // a VXLAN device without tclb
}

// Table holds the other nodes. Safe for concurrent use.
type Table struct {
	maps Maps

	mu      sync.Mutex // guards all below
	read    bool       // the maps were
	names   map[string]uint16
	nodes   map[uint16]datapath.Node // as in the maps
	subnets map[datapath.SubnetKey]struct{}
	resting map[uint16]int // ids that were given back, by when
	returns int            // of ids, ever
}

// New returns a table that has not looked at the maps yet.
func New(m Maps) *Table {
	return &Table{maps: m, names: make(map[string]uint16), resting: make(map[uint16]int)}
}

// Put makes peers known and returns their ids by name. Whoever is not among them stays known until
// Prune: flows go there as long as backends do. A peer without an MTU keeps the one that it has; one
// that has none yet cannot be sent anything. What fails does not keep the others back.
func (t *Table) Put(peers []Peer) (map[string]uint16, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.recover(); err != nil {
		return nil, err
	}
	ids := make(map[string]uint16, len(peers))
	var errs []error
	for i := range peers {
		id, err := t.number(&peers[i])
		if err == nil {
			ids[peers[i].Name] = id
			err = t.put(id, &peers[i])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("make node %s known: %w", peers[i].Name, err))
		}
	}
	return ids, errors.Join(errs...)
}

// Surplus says whether there is anybody for Prune to forget.
func (t *Table) Surplus(peers []Peer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.kept(peers)
	for id := range t.nodes {
		if !kept[id] {
			return true
		}
	}
	for k := range t.subnets {
		if !kept[k.Node] {
			return true
		}
	}
	return false
}

// kept returns the ids of peers. t.mu is held.
func (t *Table) kept(peers []Peer) map[uint16]bool {
	out := make(map[uint16]bool, len(peers))
	for i := range peers {
		if id, ok := t.names[peers[i].Name]; ok {
			out[id] = true
		}
	}
	return out
}

// Prune forgets whoever is not among the peers.
func (t *Table) Prune(peers []Peer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := t.kept(peers)
	var errs []error
	for id := range t.nodes {
		if !kept[id] {
			errs = append(errs, t.forget(id))
		}
	}
	for k := range t.subnets {
		if !kept[k.Node] {
			errs = append(errs, t.putSubnets(k.Node, nil))
		}
	}
	return errors.Join(errs...)
}

// Nodes returns what the maps hold, by name.
func (t *Table) Nodes() map[string]datapath.Node {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string]datapath.Node, len(t.names))
	for name, id := range t.names {
		out[name] = t.nodes[id]
	}
	return out
}

// recover reads the maps, once.
func (t *Table) recover() (err error) {
	if t.read {
		return nil
	}
	if t.nodes, err = t.maps.Nodes(); err != nil {
		return fmt.Errorf("read nodes: %w", err)
	}
	if t.subnets, err = t.maps.Subnets(); err != nil {
		return fmt.Errorf("read subnets of nodes: %w", err)
	}
	t.read = true
	return nil
}

// number returns a peer's id: the one that it has by name, the one that its address has in the maps, or
// a new one.
func (t *Table) number(p *Peer) (uint16, error) {
	if id, ok := t.names[p.Name]; ok {
		return id, nil
	}
	for id, n := range t.nodes {
		if n.VTEP == p.VTEP && !t.named(id) {
			t.names[p.Name] = id
			return id, nil
		}
	}
	id, ok := t.free(p.VTEP)
	if !ok {
		return 0, fmt.Errorf("all %d ids are in use: %w", datapath.MaxNodes-1, datapath.ErrFull)
	}
	delete(t.resting, id)
	t.names[p.Name] = id
	return id, nil
}

func (t *Table) named(id uint16) bool {
	for _, named := range t.names {
		if named == id {
			return true
		}
	}
	return false
}

// free returns an id that nobody has, if possible one that nobody had, else the one that rests longest.
func (t *Table) free(address netip.Addr) (uint16, bool) {
	const ids = datapath.MaxNodes - 1 // from 1 on
	start := stableStart(address) % ids
	var longest uint16
	for i := range uint32(ids) {
		id := uint16((start+i)%ids + 1)
		if _, used := t.nodes[id]; used || t.named(id) {
			continue
		}
		since, rests := t.resting[id]
		if !rests {
			return id, true
		}
		if longest == 0 || since < t.resting[longest] {
			longest = id
		}
	}
	return longest, longest != 0
}

// stableStart is where the search for a node's id begins.
func stableStart(address netip.Addr) uint32 {
	h := fnv.New32a()
	b := address.As16()
	_, _ = h.Write(b[:])
	return h.Sum32()
}

// put writes what differs: subnets before the node whose packets they decide about.
func (t *Table) put(id uint16, p *Peer) error {
	want := p.Node
	have, known := t.nodes[id]
	if want.MTU == 0 {
		want.MTU = have.MTU
	}
	if err := t.putSubnets(id, p.Subnets); err != nil {
		return err
	}
	if known && have == want {
		return nil
	}
	if err := t.maps.PutNode(id, want); err != nil {
		return err
	}
	t.nodes[id] = want
	return nil
}

func (t *Table) putSubnets(id uint16, prefixes []netip.Prefix) error {
	wanted := make(map[datapath.SubnetKey]bool, len(prefixes))
	for _, p := range prefixes {
		k := datapath.SubnetKey{Node: id, Prefix: p.Masked()}
		wanted[k] = true
		if _, ok := t.subnets[k]; ok {
			continue
		}
		if err := t.maps.PutSubnet(k); err != nil {
			return err
		}
		t.subnets[k] = struct{}{}
	}
	for k := range t.subnets {
		if k.Node != id || wanted[k] {
			continue
		}
		if err := t.maps.DeleteSubnet(k); err != nil {
			return err
		}
		delete(t.subnets, k)
	}
	return nil
}

func (t *Table) forget(id uint16) error {
	if err := t.maps.DeleteNode(id); err != nil {
		return fmt.Errorf("forget node %d: %w", id, err)
	}
	delete(t.nodes, id)
	t.returns++
	t.resting[id] = t.returns
	maps.DeleteFunc(t.names, func(_ string, named uint16) bool { return named == id })
	return nil
}
