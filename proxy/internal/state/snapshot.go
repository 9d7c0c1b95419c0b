// Package state holds the desired state of a node: which services there are and who serves them.
//
// It merges what the sources say (services files, attached containers, commands) into snapshots.
// A snapshot is immutable and complete: nobody sees half a merge, and nothing is published
// before every source has been read once, because what is missing would be pruned.
package state

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// Snapshot is the desired state at one moment. Nobody changes it.
type Snapshot struct {
	// Revision rises with every snapshot.
	Revision uint64
	// Node is this node's name.
	Node string
	// Timeouts are the node-wide ones, every field set.
	Timeouts lb.Timeouts
	// Services by name. One that did not change is the same pointer as in the snapshot before.
	Services []*Service
	// Endpoints are the containers attached here, as the registry has them.
	Endpoints []registry.Endpoint
	// Peers are the other nodes of the cluster, by name.
	Peers map[string]*Peer
	// Joined names the services that an endpoint is a member of, by endpoint id, sorted.
	Joined map[string][]string
	// VLANs are the ways into VLANs. Never changed, nor nil.
	VLANs *VLANs
	// Nodes are the other nodes, by name. Never changed: a change makes another map.
	Nodes map[string]Node
	// Outside is what clients beyond the uplinks are told. Never changed, nor nil.
	Outside *Outside
}

// Service returns the service of that name, or nil.
func (s *Snapshot) Service(name string) *Service {
	if s == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(s.Services, name, func(v *Service, name string) int {
		return compareText(v.Spec.Name, name)
	})
	if !ok {
		return nil
	}
	return s.Services[i]
}

// Definition is a service as a source has it.
type Definition struct {
	Spec lb.Service // VIPs assigned
	File string     // where it is defined
}

// Service is a service with all its backends, whoever named them.
type Service struct {
	Spec     lb.Service // as defined; its own Backends are those of the file
	File     string
	Backends []Backend // by address, then node and VLAN
}

// Backend is one that serves a service, with the weight and state that are in force.
type Backend struct {
	lb.Backend

	// Ifindex is the host side of the container's veth and MAC the container's own address;
	// zero for what is not attached here.
	Ifindex uint32
	MAC     [6]byte
	Owner   uint32 // registry.Owner of it
	// Member says that the container joined by itself: it is in no file.
	Member bool
	// Remote says that it is on another node. Zone is that node's id, or that of its VLAN; 0 where it needs one
	// says that nobody knows a way to it.
	Remote bool
	Zone   uint16
	// Away says why one in a VLAN cannot be reached; "" = it can.
	Away string
	// Lost says that its node's lease has ended, and that it stays as one of the service's last.
	Lost bool
	// Drained and Weighted say that a command set the state or the weight.
	Drained, Weighted bool
	// Failed says that it fails its health checks, is ejected, or it or its node cannot be reached. State is Unhealthy then, unless it is
	// Draining or in Maintenance, which somebody asked for.
	Failed bool
	// Ejected says that it is Failed for no other reason than what its clients met.
	Ejected bool
	// Trial says that it is back from ejection, for one flow at a time.
	Trial bool
	// Since is when this process saw it get the state that it has.
	Since time.Time
}

// Key names the backend in tables, the same on every node that sees it under this name.
func (b *Backend) Key() string {
	if place := b.Place(); place != "" {
		return place + "/" + b.Address.String()
	}
	return b.Address.String()
}

// member is the endpoint that the backend stands and falls with, or "" if a file lists it.
func (b *Backend) member() string {
	if b.Member {
		return b.Endpoint
	}
	return ""
}

// Local says whether it is a container attached on this node.
func (b *Backend) Local() bool { return b.Ifindex != 0 }

// Placed says whether there is a way to it.
func (b *Backend) Placed() bool { return b.Zone != 0 || !b.Remote && !b.Tagged() }

// Tagged says whether it is in a VLAN.
func (b *Backend) Tagged() bool { return b.VLAN.Device != "" }

// Serves says whether it may take new flows.
func (b *Backend) Serves() bool { return b.State == lb.Active && b.Weight > 0 && b.Placed() }

// Able says whether it would take new flows if it was not ejected.
func (b *Backend) Able() bool { return b.Serves() || b.Ejected && b.mayServe() }

// mayServe says that nobody wants it not to serve.
func (b *Backend) mayServe() bool {
	return b.Weight > 0 && b.Placed() && b.State != lb.Draining && b.State != lb.Maintenance
}

// Resort says who takes the new flows of a service in a family.
type Resort uint8

// The resorts, the first of which somebody serves in. Weight 0 is an operator's word and is in none.
const (
	ResortActive  Resort = iota // who may
	ResortHealthy               // nobody may: who is draining and passes its health checks
	ResortAny                   // all of them fail: everybody, for the checks may be what is wrong
)

// ResortOf returns whom a service's backends leave for new flows, in one family.
func ResortOf(backends []Backend, ipv4 bool) Resort {
	resort := ResortAny
	for i := range backends {
		b := &backends[i]
		switch {
		case b.Address.Is4() != ipv4:
		case b.Serves():
			return ResortActive
		case ResortHealthy.Takes(b):
			resort = ResortHealthy
		}
	}
	return resort
}

// Takes says whether a backend of that family takes new flows.
func (r Resort) Takes(b *Backend) bool {
	able := b.Weight > 0 && b.Placed() && b.State != lb.Maintenance
	switch r {
	case ResortActive:
		return b.Serves()
	case ResortHealthy:
		return able && !b.Failed
	}
	return able
}

// families says which address families the VIPs have.
type families struct{ v4, v6 bool }

func familiesOf(vips []netip.Addr) (f families) {
	for _, v := range vips {
		if v.Is4() {
			f.v4 = true
		} else {
			f.v6 = true
		}
	}
	return f
}

func (f families) has(a netip.Addr) bool {
	if a.Is4() {
		return f.v4
	}
	return f.v6
}
