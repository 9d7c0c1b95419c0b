package state

import (
	"maps"
	"net/netip"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// HealthRef names a backend for as long as what is known of its health is true of it: another
// container at the same address is another one.
type HealthRef struct {
	Service  string
	Node     string // or VLAN: lb.Backend.Place
	Address  netip.Addr
	Endpoint string
}

// SetUnhealthy replaces the set of backends that fail their health checks. The caller leaves it alone
// from then on.
func (s *Store) SetUnhealthy(unhealthy map[HealthRef]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(s.unhealthy, unhealthy) {
		return
	}
	touched := servicesOf(s.unhealthy, unhealthy)
	s.unhealthy = unhealthy
	s.publish(touched)
}

// servicesOf returns the services whose part of two sets differs.
func servicesOf[V comparable](a, b map[HealthRef]V) map[string]bool {
	out := make(map[string]bool)
	for _, sets := range [...][2]map[HealthRef]V{{a, b}, {b, a}} {
		for ref, v := range sets[0] {
			if other, ok := sets[1][ref]; !ok || other != v {
				out[ref.Service] = true
			}
		}
	}
	return out
}

// Ejection is what follows from what clients met at a backend.
type Ejection uint8

// The ejections.
const (
	Ejected Ejection = iota + 1 // it takes no new flows
	OnTrial                     // one at a time
)

// SetEjections replaces the set of backends that are ejected or on trial. The caller leaves it alone
// from then on.
func (s *Store) SetEjections(ejections map[HealthRef]Ejection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(s.ejections, ejections) {
		return
	}
	touched := servicesOf(s.ejections, ejections)
	s.ejections = ejections
	s.publish(touched)
}

// judge puts what health checks and clients say, and whether there is a way to it, beside what was asked
// for and what is known of it already. s.mu is held.
func (s *Store) judge(service string, b *Backend) {
	if b.Remote {
		s.judgeRemote(service, b)
	}
	away := b.Away != "" || b.Remote && b.Zone != 0 && !s.nodes[b.Node].Reachable
	if len(s.unhealthy)+len(s.ejections) == 0 && !away {
		return
	}
	ref := b.HealthRef(service)
	_, fails := s.unhealthy[ref]
	ejection := s.ejections[ref]
	fails = fails || away || b.Failed && !b.Ejected
	b.Ejected = !fails && (b.Ejected || ejection == Ejected)
	b.Failed = fails || b.Ejected
	if b.Failed && b.State == lb.Active {
		b.State = lb.Unhealthy
	}
	b.Trial = (b.Trial || ejection == OnTrial) && b.Serves()
}

// HealthRef returns the backend's name for SetUnhealthy and SetEjections.
func (b *Backend) HealthRef(service string) HealthRef {
	return HealthRef{Service: service, Node: b.Place(), Address: b.Address, Endpoint: b.Endpoint}
}

// HealthToTell returns the backends on a node that are not as they should be, for the other nodes.
func HealthToTell(svc *Service, node string) []PeerHealth {
	var out []PeerHealth
	for i := range svc.Backends {
		b := &svc.Backends[i]
		if b.Node == node && !b.Remote && (b.Failed || b.Trial) {
			out = append(out, PeerHealth{Address: b.Address, Endpoint: b.member(), Ejected: b.Ejected, Trial: b.Trial})
		}
	}
	return out
}
