package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// states are what a file can make of a backend; the other states are found out.
var states = choice([]option[lb.State]{{"active", lb.Active}, {"draining", lb.Draining}})

// backendKey is what makes a backend of a service different from another. Commands name
// backends by it.
type backendKey struct {
	node    string
	vlan    lb.VLAN // without MAC
	address netip.Addr
}

// readBackends decodes the backends that stand in the file.
func (d *Definition) readBackends(m *mapping) {
	elements := m.elements("backends")
	if len(elements) == 0 {
		return
	}
	seen := make(firsts[backendKey], len(elements))
	d.Service.Backends = make([]lb.Backend, 0, len(elements))
	d.backends, d.nodes = make([]spot, 0, len(elements)), make([]spot, 0, len(elements))
	for _, e := range elements {
		e.fields(func(m *mapping) {
			b := lb.Backend{Weight: lb.DefaultWeight}
			set(m, "node", &b.Node, orEmpty(nodeName))
			set(m, "weight", &b.Weight, integer(0, lb.MaxWeight))
			set(m, "state", &b.State, states)
			var tag vlanSpot
			m.fields("vlan", func(m *mapping) { tag = readVLAN(m, &b.VLAN) })
			m.require("address", "give the backend's address")
			at, ok := m.get("address")
			if !ok {
				return
			}
			if b.Address, ok = value(at, local("backend address")); ok {
				node, ok := m.get("node")
				if !ok {
					node = at // nothing is wrong with it
				}
				if d.addBackend(at, node, b, seen) && b.VLAN.Device != "" {
					tag.backend = len(d.Service.Backends) - 1
					d.vlans = append(d.vlans, tag)
				}
			}
		})
	}
}

// addBackend takes a backend in unless its address is in the way, and says whether it did.
func (d *Definition) addBackend(at, node cursor, b lb.Backend, seen firsts[backendKey]) bool {
	what := "backend " + b.Address.String()
	if b.Node != "" {
		what += " of node " + b.Node
	}
	if vlan := b.VLAN.Name(); vlan != "" {
		what += " in VLAN " + vlan
	}
	if !seen.add(at, backendKey{b.Node, b.VLAN.Link(), b.Address}, what) {
		return false
	}
	if b.Node != "" && b.VLAN.Device != "" {
		node.fail("backend %s has a node and a vlan: leave out node, every node reaches it by a device of its own", b.Address)
		return false
	}
	if b.Node == "" && slices.Contains(d.Service.VIPs, b.Address) {
		at.fail("backend address %s is a VIP of this service: give the address of who serves it", b.Address)
		return false
	}
	d.Service.Backends = append(d.Service.Backends, b)
	d.backends, d.nodes = append(d.backends, at.spot()), append(d.nodes, node.spot())
	if len(d.Service.VIPs) == 0 || d.vipLost {
		return true // CheckPool comes later, or the VIPs must be right first
	}
	if reason := familyMismatch(b.Address, d.Service.VIPs); reason != "" {
		at.fail("%s", reason)
	}
	return true
}

// familyMismatch says why no client can reach a backend through the VIPs, or returns "".
func familyMismatch(backend netip.Addr, vips []netip.Addr) string {
	for _, vip := range vips {
		if vip.Is4() == backend.Is4() {
			return ""
		}
	}
	return fmt.Sprintf("backend address %s is %s, but the service has no %[2]s VIP: add one to vips or remove the backend",
		backend, family(backend))
}

// readVLAN decodes the tag with which a backend is reached, and returns where it stands.
func readVLAN(m *mapping, v *lb.VLAN) vlanSpot {
	m.require("device", "give the device that carries the tag")
	m.require("id", "give the VLAN id, 1 to 4094")
	at := setAt(m, "device", &v.Device, device)
	set(m, "id", &v.ID, integer[uint16](1, 4094))
	set(m, "mac", &v.MAC, orEmpty(hardwareAddress))
	return vlanSpot{at: m.spot(), device: at}
}
