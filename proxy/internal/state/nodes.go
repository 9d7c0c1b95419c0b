package state

import (
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
)

// Node is another node of the cluster.
type Node struct {
	ID        uint16 // never 0
	Reachable bool   // its backends count as failed while it is not
}

// SetNodes replaces the other nodes, by name. The caller leaves the map alone from then on.
func (s *Store) SetNodes(nodes map[string]Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(s.nodes, nodes) {
		return
	}
	var touched map[string]bool
	if before := s.current.Load(); before != nil {
		touched = make(map[string]bool)
		for _, svc := range before.Services {
			touched[svc.Spec.Name] = slices.ContainsFunc(svc.Backends, func(b Backend) bool {
				return b.Remote && s.nodes[b.Node] != nodes[b.Node]
			})
		}
	}
	s.nodes = nodes
	s.publish(touched)
}

// Outside is what clients beyond the uplinks are told of VIPs.
type Outside struct {
	// Announcers are the nodes that answer for VIPs; none = no node does.
	Announcers []string
	// Own are the addresses of this node.
	Own []netip.Addr
}

// Equal says whether two mean the same.
func (o *Outside) Equal(with *Outside) bool {
	return slices.Equal(o.Announcers, with.Announcers) && slices.Equal(o.Own, with.Own)
}

// SetOutside replaces what clients beyond the uplinks are told. The caller leaves it alone from then on.
func (s *Store) SetOutside(o *Outside) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outside.Equal(o) {
		return
	}
	s.outside = o
	s.publish(map[string]bool{})
}

// Announcer returns the node that answers for a VIP, or "": of those that do, the one whose name and the VIP
// have the highest hash. All nodes agree on it without talking, and if one goes only its VIPs move.
func (o *Outside) Announcer(vip netip.Addr) string {
	best, most := "", uint64(0)
	for _, name := range o.Announcers {
		if rank := stableRank(vip, name); best == "" || rank > most || rank == most && name < best {
			best, most = name, rank
		}
	}
	return best
}

// stableRank is what nodes agree on. FNV alone would rank names that differ in their last letter alike for
// neighbouring VIPs: its bits are mixed once more.
func stableRank(vip netip.Addr, node string) uint64 {
	h := fnv.New64a()
	b := vip.As16()
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(node))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
