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
	Node     string
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
	s.unhealthy = unhealthy
	s.publish()
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
	s.ejections = ejections
	s.publish()
}

// judge puts what health checks and clients say beside what was asked for. s.mu is held.
func (s *Store) judge(service string, b *Backend) {
	if len(s.unhealthy)+len(s.ejections) == 0 {
		return
	}
	ref := b.HealthRef(service)
	_, fails := s.unhealthy[ref]
	ejection := s.ejections[ref]
	b.Ejected = ejection == Ejected && !fails
	b.Failed = fails || b.Ejected
	if b.Failed && b.State == lb.Active {
		b.State = lb.Unhealthy
	}
	b.Trial = ejection == OnTrial && b.Serves()
}

// HealthRef returns the backend's name for SetUnhealthy and SetEjections.
func (b *Backend) HealthRef(service string) HealthRef {
	return HealthRef{Service: service, Node: b.Node, Address: b.Address, Endpoint: b.Endpoint}
}
