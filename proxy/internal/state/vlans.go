package state

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// VLANs is what is known of the ways to backends in VLANs. Nobody changes it once it is handed over.
type VLANs struct {
	Ways  map[lb.VLAN]Way     // by lb.VLAN.Link
	Hosts map[VLANHost]string // who was asked who it is: "" = it answers, else why it cannot be reached
}

// Way is a VLAN as programs know it.
type Way struct {
	Zone    uint16
	Problem string // why nobody in it can be reached; "" = they can
}

// VLANHost is an address in a VLAN.
type VLANHost struct {
	VLAN    lb.VLAN // lb.VLAN.Link
	Address netip.Addr
}

// SetVLANs replaces what is known of the ways to backends in VLANs.
func (s *Store) SetVLANs(v *VLANs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if maps.Equal(s.vlans.Ways, v.Ways) && maps.Equal(s.vlans.Hosts, v.Hosts) {
		return
	}
	touched := make(map[string]bool)
	if before := s.current.Load(); before != nil {
		for _, svc := range before.Services {
			touched[svc.Spec.Name] = slices.ContainsFunc(svc.Backends, func(b Backend) bool { return b.Tagged() && v.moves(&b) })
		}
	}
	s.vlans = v
	s.publish(touched)
}

// moves says whether a backend is reached another way than it was.
func (v *VLANs) moves(b *Backend) bool {
	zone, away := v.wayTo(&b.Backend)
	return zone != b.Zone || away != b.Away
}

// wayTo returns the zone of a backend in a VLAN, and why it cannot be reached.
func (v *VLANs) wayTo(b *lb.Backend) (zone uint16, away string) {
	way, known := v.Ways[b.VLAN.Link()]
	switch {
	case !known:
		return 0, "it was not looked for yet"
	case way.Problem != "" || b.VLAN.MAC != "":
		return way.Zone, way.Problem
	}
	problem, asked := v.Hosts[VLANHost{b.VLAN.Link(), b.Address}]
	if !asked {
		problem = "it was not looked for yet"
	}
	return way.Zone, problem
}
