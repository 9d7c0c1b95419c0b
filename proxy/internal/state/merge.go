package state

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

func compareText(a, b string) int { return strings.Compare(a, b) }

// merge builds a snapshot from the inputs. Services that came out as before are shared with it; so are
// all but the touched ones, if touched is not nil.
func (s *Store) merge(before *Snapshot, touched map[string]bool) *Snapshot {
	if before != nil && touched != nil {
		return s.mergeSome(before, touched)
	}
	m := s.newMerger()
	next := &Snapshot{
		Node:      s.node,
		Timeouts:  s.timeouts,
		Endpoints: slices.Clone(s.endpoints),
		Services:  make([]*Service, 0, len(s.services)),
		Joined:    m.joined,
		Peers:     s.peersNow(),
		Nodes:     s.nodes,
		Outside:   s.outside,
		VLANs:     s.vlans,
	}
	slices.SortFunc(next.Endpoints, func(a, b registry.Endpoint) int {
		return cmp.Or(compareText(a.ContainerID, b.ContainerID), compareText(a.Ifname, b.Ifname))
	})
	old := newWalker(before)
	for i := range s.services {
		next.Services = append(next.Services, s.mergeService(m, &s.services[i], old.find(s.services[i].Spec.Name)))
	}
	s.dropEnded(next)
	return next
}

// mergeSome does so after a change that concerns a few services, and neither their definitions nor who
// is attached.
func (s *Store) mergeSome(before *Snapshot, touched map[string]bool) *Snapshot {
	m := s.newMerger()
	next := *before
	next.Services, next.Peers = slices.Clone(before.Services), s.peersNow()
	next.Nodes, next.Outside, next.VLANs = s.nodes, s.outside, s.vlans
	for i, prev := range before.Services {
		if touched[prev.Spec.Name] {
			next.Services[i] = s.mergeService(m, &s.services[i], prev)
		}
	}
	s.dropEnded(&next)
	return &next
}

// mergeService returns a service with its backends: prev, what it was before, if it still is.
func (s *Store) mergeService(m *merger, d *Definition, prev *Service) *Service {
	backends := m.backends(&d.Spec, s)
	s.date(backends, prev)
	if prev != nil && prev.File == d.File && sameSpec(&prev.Spec, &d.Spec) && slices.Equal(prev.Backends, backends) {
		return prev
	}
	return &Service{Spec: d.Spec, File: d.File, Backends: slices.Clone(backends)}
}

func (s *Store) newMerger() *merger {
	m := &merger{
		node:      s.node,
		byAddress: newestByAddress(s.endpoints),
		joined:    make(map[string][]string),
	}
	m.collectMembers(s.endpoints)
	return m
}

// date says since when backends have their states: prev is the service as it was, or nil.
func (s *Store) date(backends []Backend, prev *Service) {
	now := s.now()
	var before []Backend
	if prev != nil {
		before = prev.Backends
	}
	for i := range backends {
		b := &backends[i]
		at, known := slices.BinarySearchFunc(before, b, func(a Backend, b *Backend) int { return compareBackends(&a, b) })
		b.Since = now
		if known && before[at].State == b.State && before[at].Endpoint == b.Endpoint {
			b.Since = before[at].Since
		}
	}
}

// walker finds services of a sorted list by rising names.
type walker struct{ rest []*Service }

func newWalker(s *Snapshot) *walker {
	if s == nil {
		return &walker{}
	}
	return &walker{s.Services}
}

func (w *walker) find(name string) *Service {
	for len(w.rest) > 0 && w.rest[0].Spec.Name < name {
		w.rest = w.rest[1:]
	}
	if len(w.rest) > 0 && w.rest[0].Spec.Name == name {
		return w.rest[0]
	}
	return nil
}

// merger is one merge.
type merger struct {
	node      string
	byAddress map[netip.Addr]*registry.Endpoint // of two with one address, the newest
	named     map[string][]*registry.Endpoint   // by service: channels 1 to 3
	hinted    map[string][]*registry.Endpoint   // by name: channel 4
	joined    map[string][]string
	scratch   []Backend
}

// newestByAddress says whom an address belongs to: runtimes give it away again as soon as the
// container before is gone, and its file may still be there.
func newestByAddress(endpoints []registry.Endpoint) map[netip.Addr]*registry.Endpoint {
	out := make(map[netip.Addr]*registry.Endpoint, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		for _, a := range e.Addresses {
			a = a.Unmap()
			if o, taken := out[a]; !taken || newer(e, o) {
				out[a] = e
			}
		}
	}
	return out
}

func newer(a, b *registry.Endpoint) bool {
	if !a.Created.Equal(b.Created) {
		return a.Created.After(b.Created)
	}
	return a.ID > b.ID
}

// collectMembers sorts endpoints by the services that they want to join: the first channel that
// names any counts, whether or not its services exist.
func (m *merger) collectMembers(endpoints []registry.Endpoint) {
	m.named = make(map[string][]*registry.Endpoint)
	m.hinted = make(map[string][]*registry.Endpoint)
	for i := range endpoints {
		e := &endpoints[i]
		if len(e.Services) > 0 {
			collect(m.named, e.Services, e)
		} else {
			collect(m.hinted, e.Names, e)
		}
	}
}

// collect adds e under each name once.
func collect(to map[string][]*registry.Endpoint, names []string, e *registry.Endpoint) {
	for i, n := range names {
		if !slices.Contains(names[:i], n) {
			to[n] = append(to[n], e)
		}
	}
}

// backends returns the backends of a service in order. They are valid until the next call.
func (m *merger) backends(spec *lb.Service, s *Store) []Backend {
	fam := familiesOf(spec.VIPs)
	m.scratch = m.scratch[:0]
	for _, b := range spec.Backends {
		if fam.has(b.Address) {
			m.scratch = append(m.scratch, m.listed(b))
		}
	}
	if spec.Members {
		for _, e := range m.named[spec.Name] {
			m.join(spec, fam, e)
		}
		for _, e := range m.hinted[spec.Name] {
			if len(spec.Networks) == 0 || slices.Contains(spec.Networks, e.Network) {
				m.join(spec, fam, e)
			}
		}
		s.joinPeers(m, spec, fam)
	}
	for i := range m.scratch {
		b := &m.scratch[i]
		if b.Remote {
			b.Zone = s.nodes[b.Node].ID
		} else if b.Tagged() {
			b.Zone, b.Away = s.vlans.wayTo(&b.Backend)
		}
		s.overrides.apply(spec.Name, b)
		if b.Weight == 0 {
			b.State = lb.Maintenance
		}
		s.judge(spec.Name, b)
	}
	m.scratch = s.dropLost(spec.Name, m.scratch)
	slices.SortFunc(m.scratch, func(a, b Backend) int { return compareBackends(&a, &b) })
	return m.scratch
}

func compareBackends(a, b *Backend) int {
	return cmp.Or(a.Address.Compare(b.Address), compareText(a.Node, b.Node),
		compareText(a.VLAN.Device, b.VLAN.Device), cmp.Compare(a.VLAN.ID, b.VLAN.ID))
}

// listed is a backend of the file. If it is a container attached here, packets go straight there.
func (m *merger) listed(b lb.Backend) Backend {
	out := Backend{Backend: b}
	if b.Node != "" && b.Node != m.node {
		out.Remote = true
		return out
	}
	if out.Tagged() {
		return out // an address of its own world
	}
	if e := m.byAddress[b.Address]; e != nil {
		out.attach(e)
	}
	return out
}

// attach makes b the container behind an endpoint. One without programs is reached through the host's stack.
func (b *Backend) attach(e *registry.Endpoint) {
	b.Endpoint = e.ID
	if e.Attach == registry.AttachNone {
		return
	}
	b.Ifindex = e.HostIfindex
	b.Owner = registry.Owner(e.ContainerID)
	if mac, err := net.ParseMAC(e.MAC); err == nil && len(mac) == len(b.MAC) {
		copy(b.MAC[:], mac)
	}
}

// join adds an endpoint's address of each family that the service has. What the file lists too is
// there already and keeps the file's settings.
func (m *merger) join(spec *lb.Service, fam families, e *registry.Endpoint) {
	addresses := m.addressesIn(fam, e)
	for _, a := range addresses {
		if !m.here(a) {
			m.scratch = append(m.scratch, m.member(a, e))
		}
	}
	if len(addresses) > 0 {
		m.joined[e.ID] = append(m.joined[e.ID], spec.Name)
	}
}

// addressesIn returns an endpoint's address of each family, as far as it still has it.
func (m *merger) addressesIn(fam families, e *registry.Endpoint) []netip.Addr {
	var has families
	var out []netip.Addr
	for _, a := range e.Addresses {
		a = a.Unmap()
		if !fam.has(a) || has.has(a) || m.byAddress[a] != e {
			continue
		}
		if a.Is4() {
			has.v4 = true
		} else {
			has.v6 = true
		}
		out = append(out, a)
	}
	return out
}

// here says whether an address of this node is in the list already.
func (m *merger) here(a netip.Addr) bool {
	return slices.ContainsFunc(m.scratch, func(b Backend) bool { return b.Address == a && !b.Remote && !b.Tagged() })
}

func (m *merger) member(a netip.Addr, e *registry.Endpoint) Backend {
	b := Backend{
		Backend: lb.Backend{Address: a, Node: m.node, Weight: weightOf(e), Port: e.Port},
		Member:  true,
	}
	b.attach(e)
	return b
}

func weightOf(e *registry.Endpoint) int {
	if e.Weight == nil {
		return lb.DefaultWeight
	}
	return min(max(*e.Weight, 0), lb.MaxWeight)
}

// sameSpec says whether two definitions mean the same, their backends apart: those are compared
// after the merge. A test fails if a field of lb.Service is forgotten here.
func sameSpec(a, b *lb.Service) bool {
	return a.Name == b.Name && slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Ports, b.Ports) &&
		a.Scheduler == b.Scheduler && a.BoundedLoad == b.BoundedLoad && a.Affinity == b.Affinity &&
		a.Members == b.Members && slices.Equal(a.Networks, b.Networks) && a.HealthCheck == b.HealthCheck &&
		a.Outlier == b.Outlier && a.Timeouts == b.Timeouts && a.DSR == b.DSR && a.Accelerate == b.Accelerate &&
		slices.Equal(a.Allow, b.Allow)
}
