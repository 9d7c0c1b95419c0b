package reconcile_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// nodes makes other nodes known.
func (n *node) nodes(nodes map[string]state.Node) {
	n.t.Helper()
	n.store.SetNodes(nodes)
	n.rec.Apply(n.store.Snapshot())
	n.ok()
}

// spread is service a with a backend here and one of the same address on node-b.
func spread() lb.Service {
	s := both(1)
	s.Backends = append(s.Backends, lb.Backend{Address: s.Backends[0].Address, Node: "node-b", Weight: 100})
	return s
}

// zones returns the ids of service a's live TCP backends, by zone.
func (n *node) zones() map[uint16]uint32 {
	out := make(map[uint16]uint32)
	backends, _ := n.maps.Backends()
	for id, b := range backends {
		if b.Live && b.Protocol == lb.TCP {
			out[b.Zone] = id
		}
	}
	return out
}

// slots counts the slots of service a by zone.
func (n *node) slots() map[uint16]int {
	n.t.Helper()
	f := n.frontend("10.96.0.1")
	positions, err := n.maps.ReadRegion(f.Table)
	if err != nil {
		n.t.Fatal(err)
	}
	seats, err := n.maps.ReadRegion(f.Members)
	if err != nil {
		n.t.Fatal(err)
	}
	backends, _ := n.maps.Backends()
	out := make(map[uint16]int)
	for _, s := range f.Unpack(positions) {
		out[backends[seats[s]].Zone]++
	}
	return out
}

func TestBackendsOfOtherNodesServeByZone(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{spread()})
	n.ok()
	if got := n.zones(); len(got) != 1 {
		t.Fatalf("nobody knows node-b, and backends by zone are %v", got)
	}
	n.nodes(map[string]state.Node{"node-b": {ID: 7, Reachable: true}})
	before, slots := n.zones(), n.slots()
	if len(before) != 2 || before[0] == 0 || before[7] == 0 {
		t.Fatalf("backends by zone: %v", before)
	}
	if slots[0] < 40 || slots[7] < 40 {
		t.Errorf("slots by zone: %v", slots)
	}
	// A proxy that starts finds them by zone, and writes nothing.
	n.start()
	n.store.SetNodes(map[string]state.Node{"node-b": {ID: 7, Reachable: true}})
	n.maps.Writes()
	n.apply([]lb.Service{spread()})
	n.ok()
	if got := n.zones(); got[0] != before[0] || got[7] != before[7] {
		t.Errorf("ids by zone were %v, are %v", before, got)
	}
	if w := n.maps.Writes(); w != 0 {
		t.Errorf("a restart makes %d writes", w)
	}
}

// Their addresses may be somebody else's here.
func TestAddressesOfBackendsElsewhereAreNotTracked(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := both(0)
	s.Backends = []lb.Backend{{Address: addr("198.51.100.9"), Node: "node-b", Weight: 100}}
	n.store.SetNodes(map[string]state.Node{"node-b": {ID: 7, Reachable: true}})
	n.apply([]lb.Service{s})
	n.ok()
	for key, f := range n.frontends() {
		if f.Kind == datapath.KindBackend {
			t.Errorf("%v is tracked", key)
		}
	}
}

func TestUDPFlowsLeaveALostNodeAndTCPFlowsStay(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := both(1)
	s.Backends = append(s.Backends, lb.Backend{Address: addr("198.51.100.9"), Node: "node-b", Weight: 100})
	n.store.SetNodes(map[string]state.Node{"node-b": {ID: 7, Reachable: true}})
	n.apply([]lb.Service{s})
	before := n.gens("198.51.100.9")
	n.nodes(map[string]state.Node{"node-b": {ID: 7}})
	after := n.gens("198.51.100.9")
	if after[lb.UDP] != before[lb.UDP]+1 || after[lb.TCP] != before[lb.TCP] {
		t.Errorf("generations %v, were %v: want UDP's one up", after, before)
	}
	if got := n.servers("10.96.0.1"); !slices.Equal(got, []string{"198.51.100.1"}) {
		t.Errorf("%v serve", got)
	}
	// Its backend is the last one: it is what there is.
	n.fail("198.51.100.1")
	if got := n.servers("10.96.0.1"); len(got) != 2 {
		t.Errorf("all fail, and %v serve", got)
	}
}

func TestVIPsSayWhoAnswersForThem(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	services := []lb.Service{web("a", "10.96.0.1", 1), web("b", "10.96.0.2", 1)}
	n.apply(services)
	check := func(what string, announced, own bool) {
		t.Helper()
		for _, s := range services {
			f := n.frontends()[lb.Frontend{VIP: s.VIPs[0]}]
			if f.Announce != announced || f.Own != (own && s.Name == "a") {
				t.Errorf("%s: VIP of %s: announced %v, own %v", what, s.Name, f.Announce, f.Own)
			}
		}
	}
	set := func(o state.Outside) {
		n.store.SetOutside(&o)
		n.rec.Apply(n.store.Snapshot())
		n.ok()
	}
	check("at first", false, false)
	set(state.Outside{Announcers: []string{"node-a"}, Own: []netip.Addr{addr("10.96.0.1")}})
	check("alone", true, true)
	n.start() // a restart, which knows this before it begins
	n.store.SetOutside(&state.Outside{Announcers: []string{"node-a"}, Own: []netip.Addr{addr("10.96.0.1")}})
	n.maps.Writes()
	n.apply(services)
	check("after a restart", true, true)
	if w := n.maps.Writes(); w != 0 {
		t.Errorf("a restart makes %d writes", w)
	}
	set(state.Outside{Announcers: []string{"node-b"}})
	check("another node", false, false)
	set(state.Outside{})
	check("nobody", false, false)
}

func TestServicesSayWhetherTheirBackendsAnswerDirectly(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	for _, on := range []bool{false, true, false} {
		s := web("a", "10.96.0.1", 1)
		s.DSR = on
		n.apply([]lb.Service{s})
		n.ok()
		for key, f := range n.frontends() {
			if want := on && f.Kind == datapath.KindService; f.DSR != want {
				t.Errorf("%v: dsr is %v, want %v", key, f.DSR, want)
			}
		}
	}
}

// vlans makes backends in VLANs of eth1 reachable, by the zones that their VLANs have.
func (n *node) vlans(address string, zones map[uint16]uint16) {
	n.t.Helper()
	v := &state.VLANs{Ways: map[lb.VLAN]state.Way{}, Hosts: map[state.VLANHost]string{}}
	for id, zone := range zones {
		link := lb.VLAN{Device: "eth1", ID: id}
		v.Ways[link], v.Hosts[state.VLANHost{VLAN: link, Address: addr(address)}] = state.Way{Zone: zone}, ""
	}
	n.store.SetVLANs(v)
}

// One address in two VLANs is two backends, neither of which is tracked as such here.
func TestBackendsInVLANsServeByZone(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := both(0)
	for _, id := range []uint16{100, 200} {
		s.Backends = append(s.Backends, lb.Backend{Address: addr("198.51.100.9"), Weight: 100, VLAN: lb.VLAN{Device: "eth1", ID: id}})
	}
	n.vlans("198.51.100.9", map[uint16]uint16{100: 4100, 200: 4200})
	n.apply([]lb.Service{s})
	n.ok()
	before, slots := n.zones(), n.slots()
	if len(before) != 2 || before[4100] == 0 || before[4200] == 0 || slots[4100] < 40 || slots[4200] < 40 {
		t.Fatalf("backends by zone: %v, slots %v", before, slots)
	}
	for key, f := range n.frontends() {
		if f.Kind == datapath.KindBackend {
			t.Errorf("%v is tracked", key)
		}
	}
	n.start()
	n.vlans("198.51.100.9", map[uint16]uint16{100: 4100, 200: 4200})
	n.maps.Writes()
	n.apply([]lb.Service{s})
	n.ok()
	if w := n.maps.Writes(); w != 0 || n.zones()[4100] != before[4100] {
		t.Errorf("a restart makes %d writes: %v, were %v", w, n.zones(), before)
	}
}
