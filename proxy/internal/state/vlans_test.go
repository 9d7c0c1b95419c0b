package state

import (
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
)

// inVLANs is a service with one address in two VLANs.
func inVLANs(name, vip string) Definition {
	d := service(name, vip)
	for _, id := range []uint16{200, 100} {
		d.Spec.Backends = append(d.Spec.Backends, lb.Backend{Address: addr("198.51.100.1"), Weight: 1, VLAN: lb.VLAN{Device: "eth1", ID: id}})
	}
	return d
}

func TestBackendsInVLANsFollowWhatIsKnownOfThem(t *testing.T) {
	here, tagged := service("here", "10.96.0.1"), inVLANs("tagged", "10.96.0.2")
	here.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1"), Weight: 1}}
	s := newStore(t)
	s.SetServices([]Definition{here, tagged})
	backends := func() (first, second Backend) {
		list := s.Snapshot().Service("tagged").Backends
		return list[0], list[1]
	}
	a, b := backends()
	if a.VLAN.ID != 100 || b.VLAN.ID != 200 || a.Placed() || a.Serves() || a.Away == "" || a.Key() != "eth1.100/198.51.100.1" {
		t.Errorf("before anything is known: %+v, %+v", a, b)
	}
	before := s.Snapshot()
	one, two := a.VLAN.Link(), b.VLAN.Link()
	known := func(hosts map[VLANHost]string) *VLANs {
		return &VLANs{Ways: map[lb.VLAN]Way{one: {Zone: 4100}, two: {Zone: 4200}}, Hosts: hosts}
	}
	s.SetVLANs(known(map[VLANHost]string{{one, a.Address}: ""}))
	if a, b = backends(); a.Zone != 4100 || !a.Serves() || b.Zone != 4200 || !b.Placed() || b.Serves() || !b.Failed || b.State != lb.Unhealthy {
		t.Errorf("the first one answers: %+v, %+v", a, b)
	}
	after := s.Snapshot()
	if after.Service("here") != before.Service("here") || after.Revision != before.Revision+1 {
		t.Error("a service without VLANs changed, or the revision did not")
	}
	s.SetVLANs(known(map[VLANHost]string{{one, a.Address}: ""}))
	if s.Snapshot() != after {
		t.Error("the same makes another snapshot")
	}
	s.SetVLANs(known(map[VLANHost]string{{one, a.Address}: "nobody answers", {two, a.Address}: ""}))
	if a, b = backends(); a.Serves() || a.Away != "nobody answers" || !b.Serves() || b.Away != "" {
		t.Errorf("the other one answers: %+v, %+v", a, b)
	}
	s.SetVLANs(&VLANs{Ways: map[lb.VLAN]Way{one: {Zone: 4100}, two: {4200, "device eth1 is down"}}, Hosts: map[VLANHost]string{{one, a.Address}: "", {two, a.Address}: ""}})
	if a, b = backends(); !a.Serves() || b.Serves() || b.Away != "device eth1 is down" {
		t.Errorf("a device is down: %+v, %+v", a, b)
	}
}

func TestAGivenMACNeedsNoAnswer(t *testing.T) {
	d := inVLANs("tagged", "10.96.0.2")
	for i := range d.Spec.Backends {
		d.Spec.Backends[i].VLAN.MAC = "02:00:5e:10:00:09"
	}
	s := newStore(t)
	s.SetVLANs(&VLANs{Ways: map[lb.VLAN]Way{{Device: "eth1", ID: 100}: {Zone: 4100}}})
	s.SetServices([]Definition{d})
	if list := s.Snapshot().Service("tagged").Backends; !list[0].Serves() || list[1].Serves() {
		t.Errorf("%+v", list)
	}
}

// A container that has an address of a VLAN is not the backend there, and joins beside it.
func TestAContainerIsNobodyInAVLAN(t *testing.T) {
	d := inVLANs("tagged", "10.96.0.2")
	d.Spec.Members = true
	s := newStore(t)
	e := endpoint("c1", 7, "198.51.100.1")
	e.Services = []string{"tagged"}
	s.SetServices([]Definition{d})
	s.SetEndpoints([]registry.Endpoint{e})
	local := 0
	list := s.Snapshot().Service("tagged").Backends
	for _, b := range list {
		if b.Local() {
			local++
		}
		if b.Local() == b.Tagged() {
			t.Errorf("%+v", b)
		}
	}
	if len(list) != 3 || local != 1 {
		t.Errorf("%d of %d backends are here", local, len(list))
	}
}

// Commands name one of them by its VLAN.
func TestDrainNamesAVLAN(t *testing.T) {
	s := newStore(t)
	s.SetServices([]Definition{inVLANs("tagged", "10.96.0.2")})
	if err := s.SetDrain("tagged", "eth1.200/198.51.100.1", true); err != nil {
		t.Fatal(err)
	}
	list := s.Snapshot().Service("tagged").Backends
	if list[0].Drained || !list[1].Drained {
		t.Errorf("drained: %v, %v", list[0].Drained, list[1].Drained)
	}
	if err := s.SetDrain("tagged", "eth1.300/198.51.100.1", true); err == nil {
		t.Error("a VLAN that is not there is drained")
	}
	if err := s.SetDrain("tagged", "198.51.100.1", true); err != nil || !s.Snapshot().Service("tagged").Backends[0].Drained {
		t.Errorf("the address alone: %v", err)
	}
}

// What is known of one's health is not true of the other.
func TestHealthIsKnownByVLAN(t *testing.T) {
	s := newStore(t)
	s.SetVLANs(&VLANs{
		Ways:  map[lb.VLAN]Way{{Device: "eth1", ID: 100}: {Zone: 4100}, {Device: "eth1", ID: 200}: {Zone: 4200}},
		Hosts: map[VLANHost]string{{lb.VLAN{Device: "eth1", ID: 100}, addr("198.51.100.1")}: "", {lb.VLAN{Device: "eth1", ID: 200}, addr("198.51.100.1")}: ""},
	})
	s.SetServices([]Definition{inVLANs("tagged", "10.96.0.2")})
	list := s.Snapshot().Service("tagged").Backends
	s.SetEjections(map[HealthRef]Ejection{list[0].HealthRef("tagged"): Ejected})
	list = s.Snapshot().Service("tagged").Backends
	if !list[0].Ejected || list[1].Ejected {
		t.Errorf("ejected: %v, %v", list[0].Ejected, list[1].Ejected)
	}
}
