package reconcile_test

import (
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
)

// forked is a service with four frontends to the same backends.
func forked(scheduler lb.Scheduler) lb.Service {
	s := web("forked", "10.96.0.1", 3)
	s.Scheduler = scheduler
	s.VIPs = append(s.VIPs, addr("10.96.0.2"))
	s.Ports = append(s.Ports, lb.Port{Name: "alt", Protocol: lb.TCP, Port: 81, TargetPort: 8080})
	return s
}

// groups returns the groups of the frontends of forked, in order, and that of its backends.
func (n *node) groups() (fronts [4]uint32, backends uint32) {
	n.t.Helper()
	frontends, _ := n.maps.Frontends()
	for i := range fronts {
		key := lb.Frontend{VIP: []netip.Addr{addr("10.96.0.1"), addr("10.96.0.2")}[i/2], Port: 80 + uint16(i%2), Protocol: lb.TCP}
		fronts[i] = frontends[key].Group
	}
	_, b := n.record("198.51.100.1")
	return fronts, b.Group
}

func TestFrontendsTakeTurnsByThemselves(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxServices: 3}) // 11 groups
	expect := func(scheduler lb.Scheduler, own bool, when string) {
		t.Helper()
		n.ok()
		fronts, backends := n.groups()
		seen := make(map[uint32]bool)
		for _, id := range fronts {
			seen[id] = true
		}
		if fronts[0] != backends || backends == 0 || len(seen) != map[bool]int{false: 1, true: 4}[own] {
			t.Errorf("%s %s: the frontends have groups %v, the backends have %d", scheduler, when, fronts, backends)
		}
	}
	for range 3 { // more often than there are ids, unless they are given back
		for _, s := range []lb.Scheduler{lb.Maglev, lb.RoundRobin, lb.BoundedLoad, lb.LeastConn} {
			n.now = n.now.Add(reconcile.Grace)
			n.apply([]lb.Service{forked(s)})
			expect(s, s == lb.RoundRobin || s == lb.LeastConn, "in use")
			before, _ := n.groups()
			n.maps.Writes()
			n.start()
			n.apply([]lb.Service{forked(s)})
			expect(s, s == lb.RoundRobin || s == lb.LeastConn, "after a restart")
			if after, _ := n.groups(); after != before || n.maps.Writes() != 0 {
				t.Errorf("%s: a restart made groups %v of %v", s, after, before)
			}
		}
	}
}

// Where there are more frontends than ids, some share their turns; that is no error.
func TestFrontendsShareTurnsWhereThereAreNoIDs(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxServices: 2}) // 7 groups, for 10 frontends
	s := forked(lb.RoundRobin)
	for port := range uint16(3) {
		s.Ports = append(s.Ports, lb.Port{Protocol: lb.TCP, Port: 90 + port, TargetPort: 8080})
	}
	n.apply([]lb.Service{s})
	n.ok()
	frontends, _ := n.maps.Frontends()
	ids := make(map[uint32]bool)
	for key, f := range frontends {
		ids[f.Group] = true
		if f.Kind == datapath.KindService && f.Group == 0 {
			t.Errorf("%s:%d takes no turns", key.VIP, key.Port)
		}
	}
	if delete(ids, 0); len(ids) != 7 {
		t.Errorf("%d groups are used, of 7", len(ids))
	}
}
