package api

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/view"
)

// Listings show what packets meet. What is wanted but not in the maps has no id there and no row
// here; `tclb status` says why it is missing.

// services returns the rows of the service listing, by name.
func (s *Server) serviceRows() []Service {
	backends := make(map[string][]Backend)
	for _, b := range s.backendRows("") {
		backends[b.Service] = append(backends[b.Service], b)
	}
	out := []Service{}
	for _, svc := range s.view.Services() {
		if svc.ID != 0 {
			out = append(out, serviceRow(svc, backends[svc.Name]))
		}
	}
	slices.SortFunc(out, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func serviceRow(svc view.Service, backends []Backend) Service {
	ports := make([]Port, 0, len(svc.Ports))
	for _, p := range svc.Ports {
		ports = append(ports, Port{Name: p.Name, Protocol: p.Protocol.String(), Port: p.Port, TargetPort: p.TargetPort})
	}
	return Service{
		Name:      svc.Name,
		VIPs:      orEmpty(svc.VIPs),
		Ports:     ports,
		Scheduler: svc.Scheduler.String(),
		Backends:  orEmpty(backends),
		File:      svc.File,
	}
}

// serviceByName returns one service as the proxy wants it; it need not be in the maps.
func (s *Server) serviceByName(name string) (view.Service, error) {
	for _, svc := range s.view.Services() {
		if svc.Name == name {
			return svc, nil
		}
	}
	return view.Service{}, fmt.Errorf("service %q: %w: \"tclb service list\" shows what there is", name, view.ErrNoService)
}

// serviceInMaps is serviceByName for what only makes sense once packets meet the service.
func (s *Server) serviceInMaps(name string) (view.Service, error) {
	svc, err := s.serviceByName(name)
	if err == nil && svc.ID == 0 {
		reason := cmp.Or(svc.Error, "the next reconcile brings it")
		err = fmt.Errorf("service %q is not in the maps yet: %s: %w", name, reason, errUnavailable)
	}
	return svc, err
}

// backendRows returns the rows of the backend listing, of one service unless the name is empty.
func (s *Server) backendRows(service string) []Backend {
	out := []Backend{}
	for _, b := range s.view.Backends(service) {
		if b.ID == 0 {
			continue
		}
		stat := s.datapath.BackendStat(b.ID)
		out = append(out, Backend{
			id: b.ID, Service: b.Service, Address: b.Address, Port: b.Port, Protocol: b.Protocol.String(),
			Node: b.Node, VLAN: vlanOf(b.VLAN), Weight: b.Weight, State: b.State.String(), Local: b.Local,
			ActiveConnections: stat.Active, TotalConnections: stat.Total,
			Latency: latencyOf(stat), Since: b.Since.UTC().Truncate(time.Second),
		})
	}
	slices.SortFunc(out, func(a, b Backend) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Node, b.Node), compareVLANs(a.VLAN, b.VLAN))
	})
	return out
}

func vlanOf(v lb.VLAN) *VLAN {
	if v.Device == "" {
		return nil
	}
	return &VLAN{Device: v.Device, ID: v.ID, MAC: v.MAC}
}

// compareVLANs puts what has none first.
func compareVLANs(a, b *VLAN) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID))
}

// latencyOf returns how long a backend takes to answer a SYN and then the first request, in seconds.
func latencyOf(stat datapath.BackendStat) *float64 {
	if stat.SYNLatency == 0 && stat.FirstLatency == 0 {
		return nil
	}
	seconds := (stat.SYNLatency + stat.FirstLatency).Round(time.Microsecond).Seconds()
	return &seconds
}

// endpointRows returns the rows of the endpoint listing, by container id and interface name.
func (s *Server) endpointRows() []Endpoint {
	out := []Endpoint{}
	for _, e := range s.view.Endpoints() {
		out = append(out, Endpoint{
			ContainerID: e.ContainerID, Ifname: e.Ifname, HostInterface: e.HostInterface,
			Addresses: orEmpty(e.Addresses), Services: orEmpty(e.Joined), Network: e.Network,
			Container: e.Container, Attach: e.Attach, Notes: orEmpty(e.Notes),
		})
	}
	slices.SortFunc(out, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.Ifname, b.Ifname))
	})
	return out
}

// flowNames turns a pair's ids into names and times. It is built once per listing.
type flowNames struct {
	services map[uint32]string
	nodes    map[uint32]string // by backend id
	zones    map[uint16]string // by node id
	own      string            // this node's name
	timeouts map[uint32]lb.Timeouts
	datapath Datapath
}

func (s *Server) newFlowNames() *flowNames {
	n := &flowNames{
		services: make(map[uint32]string),
		nodes:    make(map[uint32]string),
		zones:    make(map[uint16]string),
		own:      s.view.Node().Name,
		timeouts: make(map[uint32]lb.Timeouts),
		datapath: s.datapath,
	}
	for _, svc := range s.view.Services() {
		n.services[svc.ID] = svc.Name
	}
	for _, b := range s.view.Backends("") {
		n.nodes[b.ID] = b.Node
	}
	for _, peer := range s.view.Nodes() {
		n.zones[peer.ID] = peer.Name
	}
	delete(n.zones, 0)
	// 0 is "not in the maps" there, and "no service" or "no backend" in a pair.
	delete(n.services, 0)
	delete(n.nodes, 0)
	return n
}

func (n *flowNames) row(p datapath.Pair) Flow {
	return Flow{
		Protocol: p.Protocol.String(), Client: p.Client, VIP: p.VIP, Backend: p.Backend,
		State: p.State.String(), Node: n.node(p), Service: n.services[p.Service],
		AgeSeconds:     int64(p.Created / time.Second),
		ExpiresSeconds: int64(max(0, n.timeout(p)-p.Idle) / time.Second),
		Packets:        p.Packets[0] + p.Packets[1],
		Bytes:          p.Bytes[0] + p.Bytes[1],
		DSR:            p.DSR,
	}
}

// node returns the name of the backend's node. What came by tunnel stays here.
func (n *flowNames) node(p datapath.Pair) string {
	switch {
	case p.BackendZone != 0:
		return n.zones[p.BackendZone]
	case p.Return:
		return n.own
	}
	return n.nodes[p.BackendID]
}

// timeout returns how long a pair may be idle in the state that it is in.
func (n *flowNames) timeout(p datapath.Pair) time.Duration {
	t, ok := n.timeouts[p.Service]
	if !ok {
		// A service that vanished meanwhile has no times: its pairs go with the next sweep.
		if record, err := n.datapath.Service(p.Service); err == nil {
			t = record.Timeouts
		}
		n.timeouts[p.Service] = t
	}
	switch {
	case p.Protocol == lb.UDP && p.Packets[1] == 0 && (!p.DSR || p.Return || p.Packets[0] < 2):
		return t.UDP
	case p.Protocol == lb.UDP:
		return t.UDPStream
	case p.State == datapath.FlowOpening:
		return t.TCPSyn
	case p.State == datapath.FlowClosing || p.Leaving:
		return t.TCPFin
	}
	return t.TCPEstablished
}

// addressesOf returns the addresses of a service's backends that the user's word for one means:
// an address, node/address, vlan/address, or a container's id or name.
func (s *Server) addressesOf(service, word string) []netip.Addr {
	node, address, hasNode := strings.Cut(word, "/")
	if !hasNode {
		address = word
	}
	wanted, parseErr := netip.ParseAddr(address)
	containers := s.endpointsCalled(word)
	out := []netip.Addr{}
	for _, b := range s.view.Backends(service) {
		byAddress := parseErr == nil && b.Address == wanted.Unmap() && (!hasNode || b.Place() == node)
		if byAddress || b.Endpoint != "" && containers[b.Endpoint] {
			out = append(out, b.Address)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// minContainerID is how much of a container's id must be given to mean that container: the length
// that the runtimes' own listings show.
const minContainerID = 12

// endpointsCalled returns the ids of the attachments of the container with that id or name.
func (s *Server) endpointsCalled(word string) map[string]bool {
	out := make(map[string]bool)
	for _, e := range s.view.Endpoints() {
		if e.ContainerID == word || e.Container == word || len(word) >= minContainerID && strings.HasPrefix(e.ContainerID, word) {
			out[e.ID] = true
		}
	}
	return out
}
