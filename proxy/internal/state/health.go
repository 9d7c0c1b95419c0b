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

// judge puts what health checks say beside what was asked for. s.mu is held.
func (s *Store) judge(service string, b *Backend) {
	if len(s.unhealthy) == 0 {
		return
	}
	if _, b.Failed = s.unhealthy[b.HealthRef(service)]; b.Failed && b.State == lb.Active {
		b.State = lb.Unhealthy
	}
}

// HealthRef returns the backend's name for SetUnhealthy.
func (b *Backend) HealthRef(service string) HealthRef {
	return HealthRef{Service: service, Node: b.Node, Address: b.Address, Endpoint: b.Endpoint}
}
