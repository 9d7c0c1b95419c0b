package reconcile_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// fail makes these addresses the unhealthy backends of service a.
func (n *node) fail(addresses ...string) {
	n.t.Helper()
	set := make(map[state.HealthRef]struct{})
	for _, a := range addresses {
		set[state.HealthRef{Service: "a", Address: addr(a)}] = struct{}{}
	}
	n.store.SetUnhealthy(set)
	n.rec.Apply(n.store.Snapshot())
	n.ok()
}

// servers returns who has slots.
func (n *node) servers(vip string) []string {
	n.t.Helper()
	out := n.table(vip)
	slices.Sort(out)
	return slices.Compact(out)
}

// gens returns the generation of an address's records, by protocol.
func (n *node) gens(address string) map[lb.Protocol]uint32 {
	out := make(map[lb.Protocol]uint32)
	backends, _ := n.maps.Backends()
	for _, b := range backends {
		if b.Live && b.Address == addr(address) {
			out[b.Protocol] = b.Gen
		}
	}
	return out
}

// both is a service with a TCP and a UDP port.
func both(backends int) lb.Service {
	s := web("a", "10.96.0.1", backends)
	s.Ports = append(s.Ports, lb.Port{Name: "dns", Protocol: lb.UDP, Port: 53, TargetPort: 53})
	return s
}

func TestUnhealthyBackendLeavesTheTableAndComesBack(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{both(4)})
	whole := n.table("10.96.0.1")
	n.fail("198.51.100.2")
	for i, b := range n.table("10.96.0.1") {
		if b == "198.51.100.2" || whole[i] != "198.51.100.2" && b != whole[i] {
			t.Fatalf("slot %d went from %s to %s", i, whole[i], b)
		}
	}
	if _, b := n.record("198.51.100.2"); b.New || !b.Live {
		t.Errorf("record %+v, want one that keeps its flows and gets none", b)
	}
	n.fail()
	if diff := cmp.Diff(whole, n.table("10.96.0.1")); diff != "" {
		t.Errorf("the return did not restore the table:\n%s", diff)
	}
}

func TestUDPFlowsLeaveWhoFailsAndTCPFlowsStay(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{both(2)})
	before := n.gens("198.51.100.1")
	n.fail("198.51.100.1")
	left := map[lb.Protocol]uint32{lb.TCP: before[lb.TCP], lb.UDP: before[lb.UDP] + 1}
	if got := n.gens("198.51.100.1"); !cmp.Equal(got, left) {
		t.Errorf("generations %v, were %v: want UDP's one up", got, before)
	}
	// Nobody else is there: what it still gets is its own again.
	n.fail("198.51.100.1", "198.51.100.2")
	if got := n.servers("10.96.0.1"); len(got) != 2 {
		t.Errorf("all fail, and %v serve", got)
	}
	if got := n.gens("198.51.100.1"); !cmp.Equal(got, left) {
		t.Errorf("generations %v, want %v", got, left)
	}
	// One recovers: the other's flows of meanwhile leave.
	n.fail("198.51.100.1")
	if got := n.gens("198.51.100.1"); got[lb.UDP] != left[lb.UDP]+1 || got[lb.TCP] != left[lb.TCP] {
		t.Errorf("generations %v, were %v: want UDP's one up", got, left)
	}
	healed := n.gens("198.51.100.2")
	n.fail()
	if got := n.gens("198.51.100.2"); !cmp.Equal(got, healed) {
		t.Errorf("generations of who was well %v, want %v", got, healed)
	}
}

func TestDrainAndWeightZeroMoveNoUDPFlow(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{both(3)})
	before := n.gens("198.51.100.1")
	s := both(3)
	s.Backends[0].State, s.Backends[1].Weight = lb.Draining, 0
	n.apply([]lb.Service{s})
	n.ok()
	for _, a := range []string{"198.51.100.1", "198.51.100.2"} {
		if got := n.gens(a); !cmp.Equal(got, before) {
			t.Errorf("generations of %s %v, want %v", a, got, before)
		}
	}
}

func TestHealthyDrainersServeBeforeFailingBackends(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := both(3)
	s.Backends[0].State = lb.Draining
	s.Backends[2].Weight = 0
	n.apply([]lb.Service{s})
	for _, tt := range []struct{ fail, serve []string }{
		{nil, []string{"198.51.100.2"}},
		{[]string{"198.51.100.2"}, []string{"198.51.100.1"}},
		{[]string{"198.51.100.1", "198.51.100.2", "198.51.100.3"}, []string{"198.51.100.1", "198.51.100.2"}},
	} {
		n.fail(tt.fail...)
		if got := n.servers("10.96.0.1"); !slices.Equal(got, tt.serve) {
			t.Errorf("%v fail: %v serve, want %v", tt.fail, got, tt.serve)
		}
		for _, a := range []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"} {
			if _, b := n.record(a); b.New != slices.Contains(tt.serve, a) {
				t.Errorf("%v fail: %s may take new flows: %t", tt.fail, a, b.New)
			}
		}
	}
}
