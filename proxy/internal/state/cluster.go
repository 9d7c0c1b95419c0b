package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// FileEtcd stands for the file of services that are defined in etcd.
const FileEtcd = "etcd"

// Cluster is what the other nodes say and what all nodes share. Nobody changes it, or what it points to,
// once it is handed over; what did not change keeps its pointers, so that a change costs what it changes.
type Cluster struct {
	Services  []Definition     // defined in etcd, VIPs set, by name
	Peers     map[string]*Peer // the other nodes, by name
	Overrides []Override       // drains and weights set by command on any node
	Sent      []Override       // of Unsent: those that Overrides contain by now
}

// Peer is another node.
type Peer struct {
	// Lost says that its lease has ended: its backends are out of all services, a service's last ones
	// apart.
	Lost bool
	// Members are the containers attached there.
	Members []registry.Endpoint
	// Health are the backends of that node that are not as they should be, by service.
	Health map[string][]PeerHealth
}

// PeerHealth is what a node says of a backend of its own.
type PeerHealth struct {
	Address  netip.Addr `json:"address"`
	Endpoint string     `json:"endpoint,omitempty"` // of a container that joined by itself
	Ejected  bool       `json:"ejected,omitempty"`  // by what its clients met; else it fails its checks
	Trial    bool       `json:"trial,omitempty"`    // it is back, for one flow at a time
}

// Share says that SetCluster will be called: nothing is published before. Call it before anything else.
// What commands set while the node was alone is to be told to the others.
func (s *Store) Share() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared = true
	for k, o := range s.overrides.by {
		if o.Origin == "" {
			o.Origin, o.Unsent = s.node, true
			s.overrides.by[k] = o
		}
	}
}

// SetCluster replaces what the other nodes say.
func (s *Store) SetCluster(c *Cluster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.cluster
	touched := make(map[string]bool)
	s.takeOverrides(c, touched)
	s.cluster = c
	s.indexPeers()
	if before == nil || !slices.EqualFunc(before.Services, c.Services, sameDefinition) || !touchPeers(before.Peers, c.Peers, touched) {
		s.combine()
		touched = nil
	}
	s.publish(touched)
}

func sameDefinition(a, b Definition) bool {
	return a.File == b.File && sameSpec(&a.Spec, &b.Spec) && slices.Equal(a.Spec.Backends, b.Spec.Backends)
}

// touchPeers adds the services that a change of peers concerns; false stands for all.
func touchPeers(before, after map[string]*Peer, touched map[string]bool) bool {
	for name, b := range after {
		a := before[name]
		if a == b {
			continue
		}
		if a == nil || a.Lost != b.Lost {
			return false // also backends that files list on that node
		}
		touchMembers(a.Members, b.Members, touched)
		touchHealth(a.Health, b.Health, touched)
	}
	for name := range before {
		if after[name] == nil {
			return false
		}
	}
	return true
}

func touchMembers(before, after []registry.Endpoint, touched map[string]bool) {
	known := make(map[string]*registry.Endpoint, len(before))
	for i := range before {
		known[before[i].ID] = &before[i]
	}
	touch := func(e *registry.Endpoint) {
		for _, name := range slices.Concat(e.Services, e.Names) {
			touched[name] = true
		}
	}
	for i := range after {
		e := &after[i]
		old := known[e.ID]
		delete(known, e.ID)
		if old == nil || !sameEndpoint(*old, *e) {
			touch(e)
			if old != nil {
				touch(old)
			}
		}
	}
	for _, gone := range known {
		touch(gone)
	}
}

func touchHealth(before, after map[string][]PeerHealth, touched map[string]bool) {
	for _, both := range [...][2]map[string][]PeerHealth{{before, after}, {after, before}} {
		for name, list := range both[0] {
			if !slices.Equal(list, both[1][name]) {
				touched[name] = true
			}
		}
	}
}

// peerIndex finds the containers of a peer by what they want to join.
type peerIndex struct {
	peer *Peer
	name string
	m    merger // without scratch and what was joined
}

// indexPeers sorts the containers of peers that changed. s.mu is held.
func (s *Store) indexPeers() {
	known := make(map[string]*peerIndex, len(s.peers))
	for _, p := range s.peers {
		known[p.name] = p
	}
	s.peers = s.peers[:0:0]
	for _, name := range slices.Sorted(maps.Keys(s.cluster.Peers)) {
		peer := s.cluster.Peers[name]
		if p := known[name]; p != nil && p.peer == peer {
			s.peers = append(s.peers, p)
			continue
		}
		p := &peerIndex{peer: peer, name: name, m: merger{byAddress: newestByAddress(peer.Members)}}
		p.m.collectMembers(peer.Members)
		s.peers = append(s.peers, p)
	}
	for k := range s.out {
		if p := s.cluster.Peers[k.node]; p != nil && !p.Lost {
			delete(s.out, k)
		}
	}
}

// peersNow returns the other nodes; none without etcd.
func (s *Store) peersNow() map[string]*Peer {
	if s.cluster == nil {
		return nil
	}
	return s.cluster.Peers
}

// joinPeers adds the containers of other nodes that join a service, by the rules for those of this one.
func (s *Store) joinPeers(m *merger, spec *lb.Service, fam families) {
	for _, p := range s.peers {
		for _, e := range p.m.named[spec.Name] {
			p.join(m, fam, e)
		}
		for _, e := range p.m.hinted[spec.Name] {
			if len(spec.Networks) == 0 || slices.Contains(spec.Networks, e.Network) {
				p.join(m, fam, e)
			}
		}
	}
}

// join adds an endpoint's address of each family, as far as no file lists it.
func (p *peerIndex) join(m *merger, fam families, e *registry.Endpoint) {
	for _, a := range p.m.addressesIn(fam, e) {
		listed := slices.ContainsFunc(m.scratch, func(b Backend) bool { return b.Address == a && b.Node == p.name })
		if listed {
			continue
		}
		b := Backend{
			Backend: lb.Backend{Address: a, Node: p.name, Weight: weightOf(e), Port: e.Port, Endpoint: e.ID},
			Member:  true, Remote: true,
		}
		m.scratch = append(m.scratch, b)
	}
}

// judgeRemote puts what a backend's own node says of its health beside what was asked for.
func (s *Store) judgeRemote(service string, b *Backend) {
	if s.cluster == nil || s.cluster.Peers[b.Node] == nil {
		return
	}
	for _, h := range s.cluster.Peers[b.Node].Health[service] {
		if h.Address != b.Address || h.Endpoint != b.member() {
			continue
		}
		if h.Trial {
			b.Trial = b.Serves()
			continue
		}
		b.Failed, b.Ejected = true, h.Ejected
		if b.State == lb.Active {
			b.State = lb.Unhealthy
		}
	}
}

// dropLost takes the backends of nodes whose lease has ended out of a service, unless they are its last
// ones: better a backend that may be there than none. Who is out stays out until its node returns.
func (s *Store) dropLost(service string, list []Backend) []Backend {
	if s.cluster == nil {
		return list
	}
	var others families
	lost := false
	for i := range list {
		b := &list[i]
		p := s.cluster.Peers[b.Node]
		b.Lost = b.Remote && p != nil && p.Lost
		lost = lost || b.Lost
		if b.Lost || b.Weight == 0 || b.State == lb.Maintenance {
			continue
		}
		others.v4 = others.v4 || b.Address.Is4()
		others.v6 = others.v6 || !b.Address.Is4()
	}
	if !lost {
		return list
	}
	return slices.DeleteFunc(list, func(b Backend) bool {
		k := overrideKey{service, b.Node, b.Address}
		if b.Lost && others.has(b.Address) {
			s.out[k] = struct{}{}
		}
		_, out := s.out[k]
		return b.Lost && out
	})
}

// combine puts the services of this node's files and those of etcd into one list. Where they clash, the
// file wins: whoever looks at the node finds it. s.mu is held.
func (s *Store) combine() {
	s.services = slices.Clone(s.local)
	clashes := make(map[string]bool)
	names := make(map[string]string, len(s.local))
	vips := make(map[netip.Addr]*Definition)
	for i := range s.local {
		d := &s.local[i]
		names[d.Spec.Name] = d.File
		for _, v := range d.Spec.VIPs {
			vips[v] = d
		}
	}
	clash := func(text string) {
		if clashes[text] = true; !s.clashes[text] {
			s.log.Warn(text)
		}
	}
	if s.cluster != nil {
	next:
		for _, d := range s.cluster.Services {
			if file, ok := names[d.Spec.Name]; ok {
				clash(fmt.Sprintf("service %s is in etcd and in %s: the file wins on this node", d.Spec.Name, file))
				continue
			}
			for _, v := range d.Spec.VIPs {
				if o := vips[v]; o != nil {
					clash(fmt.Sprintf("service %s of etcd is not on this node: its VIP %s is that of service %s in %s", d.Spec.Name, v, o.Spec.Name, o.File))
					continue next
				}
			}
			s.services = append(s.services, d)
		}
	}
	s.clashes = clashes
	slices.SortFunc(s.services, func(a, b Definition) int { return compareText(a.Spec.Name, b.Spec.Name) })
}

// Clashes returns what of etcd is not in force on this node since a file wins, a line each, sorted.
func (s *Store) Clashes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.clashes))
}
