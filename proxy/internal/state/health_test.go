package state

import (
	"maps"
	"strconv"
	"testing"

	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

func ref(b Backend) HealthRef { return b.HealthRef("web") }

// setUnhealthy replaces the set by these backends of web.
func setUnhealthy(s *Store, refs ...HealthRef) {
	set := make(map[HealthRef]struct{})
	for _, r := range refs {
		set[r] = struct{}{}
	}
	s.SetUnhealthy(set)
}

func TestUnhealthyIsAStateOfActiveBackendsOnly(t *testing.T) {
	d := service("web", "10.96.0.1")
	d.Spec.Backends = []lb.Backend{
		{Address: addr("198.51.100.1"), Weight: 100},
		{Address: addr("198.51.100.2"), Weight: 100, State: lb.Draining},
		{Address: addr("198.51.100.3")},
		{Address: addr("198.51.100.4"), Weight: 100},
	}
	s := newStore(t)
	s.SetServices([]Definition{d})
	web := s.Snapshot().Service("web").Backends
	setUnhealthy(s, ref(web[0]), ref(web[1]), ref(web[2]))
	wantBackends(t, s, "web", "198.51.100.1 weight=100 unhealthy ifindex=0", "198.51.100.2 weight=100 draining ifindex=0",
		"198.51.100.3 weight=0 maintenance ifindex=0", "198.51.100.4 weight=100 active ifindex=0")
	for i, b := range s.Snapshot().Service("web").Backends {
		if b.Failed != (i < 3) {
			t.Errorf("%s: failed %t", b.Key(), b.Failed)
		}
	}
	before := s.Snapshot()
	setUnhealthy(s, ref(web[0]), ref(web[1]), ref(web[2]))
	if s.Snapshot() != before {
		t.Error("an equal set made another snapshot")
	}
	setUnhealthy(s)
	wantBackends(t, s, "web", "198.51.100.1 weight=100 active ifindex=0", "198.51.100.2 weight=100 draining ifindex=0",
		"198.51.100.3 weight=0 maintenance ifindex=0", "198.51.100.4 weight=100 active ifindex=0")
}

func TestHealthIsNotInheritedByTheNextContainer(t *testing.T) {
	e := endpoint("c1", 3, "10.88.0.5")
	e.Services = []string{"web"}
	s := newStore(t, e)
	s.SetServices([]Definition{service("web", "10.96.0.1")})
	setUnhealthy(s, ref(s.Snapshot().Service("web").Backends[0]))
	wantBackends(t, s, "web", "node-a/10.88.0.5 weight=100 unhealthy ifindex=3")
	other := endpoint("c2", 4, "10.88.0.5")
	other.Services = []string{"web"}
	s.SetEndpoints(append(s.Snapshot().Endpoints, other))
	wantBackends(t, s, "web", "node-a/10.88.0.5 weight=100 active ifindex=4")
}

func TestWhoTakesNewFlows(t *testing.T) {
	active := Backend{Backend: lb.Backend{Address: addr("198.51.100.1"), Weight: 1}}
	failing, draining, both, parked, remote := active, active, active, active, active
	failing.State, failing.Failed = lb.Unhealthy, true
	draining.State = lb.Draining
	both.State, both.Failed = lb.Draining, true
	parked.Weight, parked.State = 0, lb.Maintenance
	remote.Remote = true
	other := active
	other.Address = addr("2001:db8::1")
	for _, tt := range []struct {
		name     string
		backends []Backend
		want     []bool
	}{
		{"one active", []Backend{failing, active, draining, parked, remote}, []bool{false, true, false, false, false}},
		{"healthy ones drain", []Backend{failing, draining, both, parked, remote}, []bool{false, true, false, false, false}},
		{"all fail", []Backend{failing, both, parked, remote}, []bool{true, true, false, false}},
		{"nobody could", []Backend{parked, remote}, []bool{false, false}},
		{"active in the other family", []Backend{failing, other}, []bool{true, false}},
	} {
		resort := ResortOf(tt.backends, true)
		for i := range tt.backends {
			if b := &tt.backends[i]; b.Address.Is4() && resort.Takes(b) != tt.want[i] {
				t.Errorf("%s: backend %d takes new flows: %t", tt.name, i, !tt.want[i])
			}
		}
	}
}

func TestEjectedIsUnhealthyAndOnTrialServes(t *testing.T) {
	d := service("web", "10.96.0.1")
	for _, b := range []lb.Backend{{Weight: 100}, {Weight: 100}, {Weight: 100, State: lb.Draining}, {}, {Weight: 100, Node: "node-b"}} {
		b.Address = addr("198.51.100." + strconv.Itoa(len(d.Spec.Backends)+1))
		d.Spec.Backends = append(d.Spec.Backends, b)
	}
	s := newStore(t)
	s.SetServices([]Definition{d})
	refs := make([]HealthRef, 5)
	for i, b := range s.Snapshot().Service("web").Backends {
		refs[i] = ref(b)
	}
	for _, tt := range []struct {
		name      string
		unhealthy []HealthRef
		ejection  Ejection   // of all
		state     lb.State   // of the first, which nobody wants not to serve
		want      [5][4]bool // failed, ejected, on trial, able
	}{
		{"nobody", nil, 0, lb.Active, [5][4]bool{{3: true}, {3: true}, {}, {}, {}}},
		{"all ejected", nil, Ejected, lb.Unhealthy, [5][4]bool{{true, true, false, true}, {true, true, false, true}, {true, true}, {true, true}, {true, true}}},
		{"all ejected, one fails its check too", refs[:1], Ejected, lb.Unhealthy, [5][4]bool{{0: true}, {true, true, false, true}, {true, true}, {true, true}, {true, true}}},
		{"all on trial", nil, OnTrial, lb.Active, [5][4]bool{{2: true, 3: true}, {2: true, 3: true}, {}, {}, {}}},
		{"all on trial, one fails its check", refs[:1], OnTrial, lb.Unhealthy, [5][4]bool{{0: true}, {2: true, 3: true}, {}, {}, {}}},
	} {
		setUnhealthy(s, tt.unhealthy...)
		ejections := make(map[HealthRef]Ejection)
		for _, r := range refs {
			if tt.ejection != 0 {
				ejections[r] = tt.ejection
			}
		}
		s.SetEjections(ejections)
		before := s.Snapshot()
		s.SetEjections(maps.Clone(ejections))
		if s.Snapshot() != before {
			t.Errorf("%s: an equal set made another snapshot", tt.name)
		}
		backends := before.Service("web").Backends
		if backends[0].State != tt.state {
			t.Errorf("%s: the first is %s, want %s", tt.name, backends[0].State, tt.state)
		}
		for i := range backends {
			b := &backends[i]
			if got := [4]bool{b.Failed, b.Ejected, b.Trial, b.Able()}; got != tt.want[i] {
				t.Errorf("%s: backend %d: failed, ejected, on trial, able: %v, want %v", tt.name, i, got, tt.want[i])
			}
		}
	}
}
