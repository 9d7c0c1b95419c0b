package state

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func TestOnlyServicesOfANodeChangeWithIt(t *testing.T) {
	here, there := service("here", "10.96.0.1"), service("there", "10.96.0.2")
	here.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1"), Node: "node-a", Weight: 1}}
	there.Spec.Backends = []lb.Backend{{Address: addr("198.51.100.1"), Node: "node-b", Weight: 1}}
	s := newStore(t)
	s.SetServices([]Definition{here, there})
	if b := s.Snapshot().Service("there").Backends[0]; !b.Remote || b.Placed() || b.Serves() {
		t.Errorf("a backend on a node that nobody knows: %+v", b)
	}
	before := s.Snapshot()
	s.SetNodes(map[string]Node{"node-b": {ID: 3, Reachable: true}, "node-c": {ID: 4, Reachable: true}})
	after := s.Snapshot()
	if b := after.Service("there").Backends[0]; !b.Remote || b.Zone != 3 || !b.Serves() {
		t.Errorf("the node is known: %+v", b)
	}
	if after.Service("here") != before.Service("here") || after.Revision != before.Revision+1 {
		t.Error("a service without it changed, or the revision did not")
	}
	s.SetNodes(map[string]Node{"node-b": {ID: 3, Reachable: true}, "node-c": {ID: 4, Reachable: true}})
	if s.Snapshot() != after {
		t.Error("the same nodes make another snapshot")
	}
	s.SetNodes(map[string]Node{"node-b": {ID: 3}, "node-c": {ID: 4, Reachable: true}})
	if b := s.Snapshot().Service("there").Backends[0]; b.Serves() || !b.Failed || b.State != lb.Unhealthy || !b.Placed() {
		t.Errorf("the node cannot be reached: %+v", b)
	}
}

func TestNodesAgreeWhoAnswersForAVIP(t *testing.T) {
	names := []string{"node-a", "node-b", "node-c"}
	turned := &Outside{Announcers: []string{"node-c", "node-a", "node-b"}}
	all, two := &Outside{Announcers: names}, &Outside{Announcers: names[:2]}
	count := make(map[string]int)
	for i := range 300 {
		vip := netip.MustParseAddr(fmt.Sprintf("10.96.%d.%d", i/250, i%250))
		who := all.Announcer(vip)
		count[who]++
		if got := turned.Announcer(vip); got != who {
			t.Errorf("%s: %s, in another order %s", vip, who, got)
		}
		if got := two.Announcer(vip); who != "node-c" && got != who {
			t.Errorf("%s moves from %s to %s when node-c goes", vip, who, got)
		}
	}
	for _, n := range names {
		if count[n] < 60 {
			t.Errorf("VIPs by node: %v", count)
		}
	}
	if got := (&Outside{}).Announcer(addr("10.96.0.1")); got != "" {
		t.Errorf("nobody announces, and %q answers", got)
	}
}

// Nodes of different versions have to agree too.
func TestWhoAnswersForAVIPIsPinned(t *testing.T) {
	all := &Outside{Announcers: []string{"node-a", "node-b", "node-c"}}
	for vip, want := range map[string]string{"10.96.0.1": "node-c", "10.96.0.5": "node-a", "10.96.0.9": "node-c", "fd00:96::2": "node-a"} {
		if got := all.Announcer(addr(vip)); got != want {
			t.Errorf("%s: %s, want %s", vip, got, want)
		}
	}
}
