package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// minContainerID is how much of a container's id must be given to mean that container.
const minContainerID = 12

// SetDrain drains a backend by command, or ends that. See Find for what names a backend.
func (s *Store) SetDrain(service, backend string, drain bool) error {
	return s.override(service, backend, func(o *Override) { o.Drain = drain })
}

// SetWeight sets a backend's weight by command; nil ends that.
func (s *Store) SetWeight(service, backend string, weight *int) error {
	if weight != nil && (*weight < 0 || *weight > lb.MaxWeight) {
		return fmt.Errorf("set weight of %s: %d is not between 0 and %d", backend, *weight, lb.MaxWeight)
	}
	return s.override(service, backend, func(o *Override) { o.Weight = weight })
}

// override changes what commands say about a backend. It is on disk before it is in force: a drain
// that a restart forgets would send new flows to a machine that is being taken down.
func (s *Store) override(service, backend string, change func(*Override)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.current.Load().Find(service, backend)
	if err != nil {
		return err
	}
	before := maps.Clone(s.overrides.by)
	for _, b := range found {
		k := overrideKey{service, b.Place(), b.Address}
		o, ok := s.overrides.by[k]
		if !ok || o.Endpoint != b.member() {
			o = Override{Service: service, Node: b.Place(), Address: b.Address, Endpoint: b.member()}
		}
		change(&o)
		if s.shared {
			o.Origin, o.Unsent = s.node, true
		}
		s.overrides.by[k] = o
		if o.Ended() {
			s.overrides.end(k, s.shared)
		}
	}
	if err := s.overrides.save(); err != nil {
		s.overrides.by = before
		return err
	}
	s.publish(map[string]bool{service: true})
	return nil
}

// Find returns the backends of a service that a user means by an address, node/address, VLAN/address (eth1.100/192.0.2.7), or a
// container's id or name. A container with an address of each family is two.
func (s *Snapshot) Find(service, backend string) ([]Backend, error) {
	svc := s.Service(service)
	if svc == nil {
		return nil, fmt.Errorf("find service %q: %w", service, ErrNoService)
	}
	node, text, hasNode := strings.Cut(backend, "/")
	if !hasNode {
		node, text = "", backend
	}
	address, err := netip.ParseAddr(text)
	address = address.Unmap()
	var found []Backend
	for _, b := range svc.Backends {
		if err == nil && b.Address == address && (!hasNode || b.Place() == node) || b.Endpoint != "" && s.isContainer(b.Endpoint, backend) {
			found = append(found, b)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find backend %q of service %s: %w", backend, service, ErrNoBackend)
	}
	return found, nil
}

// isContainer says whether an endpoint belongs to the container of that id or name.
func (s *Snapshot) isContainer(endpoint, text string) bool {
	is := func(e registry.Endpoint) bool {
		return e.ID == endpoint && (e.Container == text || e.ContainerID == text ||
			len(text) >= minContainerID && strings.HasPrefix(e.ContainerID, text))
	}
	for _, p := range s.Peers {
		if slices.ContainsFunc(p.Members, is) {
			return true
		}
	}
	return slices.ContainsFunc(s.Endpoints, is)
}
