package reconcile_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
)

func TestMapsFollowFromServices(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	dual := web("dual", "10.96.0.10", 2)
	dual.VIPs = append(dual.VIPs, addr("fd00:96::10"), addr("10.96.0.11"))
	dual.Ports = append(dual.Ports,
		lb.Port{Name: "dns", Protocol: lb.UDP, Port: 53, TargetPort: 53},
		lb.Port{Name: "alt", Protocol: lb.TCP, Port: 8080, TargetPort: 8080})
	dual.Backends = append(dual.Backends, lb.Backend{Address: addr("2001:db8::1"), Weight: 50})
	dual.Backends[1].State = lb.Draining
	dual.Affinity = lb.Affinity{Mode: lb.AffinityClientIP, Timeout: time.Hour}
	dual.Timeouts.UDP = 10 * time.Second
	strict := web("strict", "10.96.0.20", 1)
	strict.Scheduler = lb.BoundedLoad
	strict.BoundedLoad = 1.1
	strict.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	n.apply([]lb.Service{dual, strict, web("empty", "10.96.0.30", 0)},
		container("c1", "10.88.0.5", 7, "strict"), container("c2", "10.88.0.6", 8, "not-there-yet"))
	n.ok()

	got := n.maps.Dump()
	path := filepath.Join("testdata", "maps.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("maps differ (-want +got):\n%s", diff)
	}
}

func TestRestartWritesNothing(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	services := []lb.Service{web("a", "10.96.0.1", 3), web("b", "10.96.0.2", 5), web("c", "10.96.0.3", 0)}
	services[0].BoundedLoad = 1.3
	services[0].Backends[1].State = lb.Draining
	services[1].Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	services[1].Affinity = lb.Affinity{Mode: lb.AffinityClientIP, Timeout: 90 * time.Second}
	member := container("c1", "10.88.0.5", 7, "a", "b")
	n.apply(services, member)
	// A history that a fresh table would not repeat.
	services[1].Backends = services[1].Backends[1:]
	n.apply(services, member)
	n.ok()
	before := n.maps.Dump()
	n.maps.Writes()

	n.start()
	n.apply(services, member)
	n.ok()
	if w := n.maps.Writes(); w != 0 {
		t.Errorf("restart wrote %d entries: %q", w, n.maps.Log()[max(0, len(n.maps.Log())-10):])
	}
	if diff := cmp.Diff(before, n.maps.Dump()); diff != "" {
		t.Errorf("maps changed:\n%s", diff)
	}
}

func TestRestartRemovesWhatWentMeanwhile(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	stays := web("stays", "10.96.0.1", 2)
	goes := web("goes", "10.96.0.2", 3)
	goes.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	n.apply([]lb.Service{stays})
	alone := n.maps.Dump()
	n.apply([]lb.Service{stays, goes}, container("c1", "10.88.0.5", 7, "goes"))

	n.start()
	n.apply([]lb.Service{stays})
	n.ok()
	var got []string
	for _, line := range strings.Split(n.maps.Dump(), "\n") {
		// Records by id keep their generations; everything that packets look up is gone.
		if !strings.HasSuffix(line, "retired") && !strings.HasPrefix(line, "service 2 ") {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(strings.Split(alone, "\n"), got); diff != "" {
		t.Errorf("leftovers (-want +got):\n%s", diff)
	}
}

func TestNothingIsPrunedBeforeEverySourceReported(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 0)}, container("c1", "10.88.0.5", 7, "a"))
	before := n.maps.Dump()
	n.start()
	n.store.SetServices(define([]lb.Service{web("a", "10.96.0.1", 0)}))
	n.rec.Apply(n.store.Snapshot())
	if n.maps.Dump() != before || n.rec.Ready() {
		t.Errorf("maps were touched before the containers were known")
	}
}

func TestExclusionAndReturnRestoreTheTable(t *testing.T) {
	for _, exclude := range []struct {
		name   string
		change func(*lb.Service)
	}{
		{"draining", func(s *lb.Service) { s.Backends[2].State = lb.Draining }},
		{"maintenance", func(s *lb.Service) { s.Backends[2].Weight = 0 }},
		{"removed", func(s *lb.Service) { s.Backends = slices.Delete(slices.Clone(s.Backends), 2, 3) }},
	} {
		t.Run(exclude.name, func(t *testing.T) {
			n := newNode(t, datapath.Sizes{})
			n.apply([]lb.Service{web("a", "10.96.0.1", 5)})
			whole := n.table("10.96.0.1")
			s := web("a", "10.96.0.1", 5)
			exclude.change(&s)
			n.apply([]lb.Service{s})
			for i, b := range n.table("10.96.0.1") {
				switch {
				case whole[i] == "198.51.100.3" && b == whole[i]:
					t.Fatalf("slot %d still leads to the excluded backend", i)
				case whole[i] != "198.51.100.3" && b != whole[i]:
					t.Fatalf("slot %d of another backend moved", i)
				}
			}
			n.apply([]lb.Service{web("a", "10.96.0.1", 5)})
			n.ok()
			if diff := cmp.Diff(whole, n.table("10.96.0.1")); diff != "" {
				t.Errorf("the return did not restore the table:\n%s", diff)
			}
		})
	}
}

func TestLastResortServesButNeverWeightZero(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := web("a", "10.96.0.1", 3)
	s.Backends[0].State = lb.Draining
	s.Backends[1].State = lb.Draining
	s.Backends[2].Weight = 0
	n.apply([]lb.Service{s})
	n.ok()
	got := map[string]bool{}
	for _, b := range n.table("10.96.0.1") {
		got[b] = true
	}
	if want := map[string]bool{"198.51.100.1": true, "198.51.100.2": true}; !cmp.Equal(got, want) {
		t.Errorf("who serves: %v, want %v", got, want)
	}
	if _, b := n.record("198.51.100.1"); !b.New {
		t.Error("last resort may not take new flows")
	}
	if _, b := n.record("198.51.100.3"); b.New || !b.Live {
		t.Errorf("backend in maintenance: new=%t live=%t, want it to keep old flows only", b.New, b.Live)
	}
}

func TestAnotherContainerAtTheAddressIsAnotherGeneration(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 0)}, container("old", "10.88.0.5", 7, "a"))
	id, before := n.record("10.88.0.5")
	n.maps.SetBackendStat(id, datapath.BackendStat{Total: 9})
	n.apply([]lb.Service{web("a", "10.96.0.1", 0)}, container("new", "10.88.0.5", 8, "a"))
	n.ok()
	again, after := n.record("10.88.0.5")
	if again != id || after.Gen != before.Gen+1 || after.Ifindex != 8 {
		t.Errorf("record %d %+v, want id %d, generation %d, ifindex 8", again, after, id, before.Gen+1)
	}
	if s := n.maps.BackendStat(id); s.Total != 0 {
		t.Errorf("the new container begins with the counters of the old one: %+v", s)
	}
	// The same container again, after a restart of the proxy, keeps its flows.
	n.start()
	n.apply([]lb.Service{web("a", "10.96.0.1", 0)}, container("new", "10.88.0.5", 8, "a"))
	if _, b := n.record("10.88.0.5"); b.Gen != after.Gen {
		t.Errorf("generation %d after a restart, want %d", b.Gen, after.Gen)
	}
}

func TestRemovedBackendsFlowsEndAndItsIDRests(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxBackends: 4})
	n.apply([]lb.Service{web("a", "10.96.0.1", 3)})
	id, before := n.record("198.51.100.3")
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)})
	backends, _ := n.maps.Backends()
	if b := backends[id]; b.Gen != before.Gen+1 || b.Live || b.New {
		t.Errorf("retired record %+v, want generation %d without flags", b, before.Gen+1)
	}
	other := web("b", "10.96.0.2", 0)
	other.Backends = []lb.Backend{{Address: addr("203.0.113.1"), Weight: 100}}
	n.apply([]lb.Service{web("a", "10.96.0.1", 2), other})
	if len(n.rec.Errors()) == 0 {
		t.Fatal("the id was given away while packets may still know it")
	}
	n.now = n.now.Add(reconcile.Grace + time.Minute)
	n.rec.Retry()
	n.ok()
	if reused, b := n.record("203.0.113.1"); reused != id || b.Gen != before.Gen+2 {
		t.Errorf("backend has id %d generation %d, want %d and %d", reused, b.Gen, id, before.Gen+2)
	}
}

func TestVIPMovesBetweenServicesWithoutAGap(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	a, b := web("a", "10.96.0.1", 1), web("b", "10.96.0.2", 1)
	n.apply([]lb.Service{a, b})
	a.VIPs, b.VIPs = b.VIPs, a.VIPs
	n.maps.Log()
	n.apply([]lb.Service{a, b})
	n.ok()
	for _, op := range n.maps.Log() {
		if strings.HasPrefix(op, "DeleteFrontends") {
			t.Errorf("a frontend that stays was deleted: %s", op)
		}
	}
	if got := n.rec.Service("a").ID; got != n.frontend("10.96.0.2").Service {
		t.Errorf("10.96.0.2 belongs to service %d, want %d", n.frontend("10.96.0.2").Service, got)
	}
}

func TestWritesGoBackendsTableFrontends(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)})
	n.maps.Log()
	n.apply([]lb.Service{web("a", "10.96.0.1", 3)})
	rank := map[string]int{"PutBackends": 1, "PutService": 2, "PutFrontends": 3, "DeleteFrontends": 4}
	last := 0
	for _, op := range n.maps.Log() {
		name, _, _ := strings.Cut(op, " ")
		if r := rank[name]; r != 0 {
			if r < last {
				t.Errorf("%s came too late", op)
			}
			last = r
		}
	}
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)})
	log := n.maps.Log()
	swap := slices.IndexFunc(log, func(op string) bool { return strings.HasPrefix(op, "PutFrontends") })
	retire := slices.IndexFunc(log, func(op string) bool { return strings.HasPrefix(op, "PutBackends") })
	if swap < 0 || retire < swap {
		t.Errorf("the backend was retired before its table was swapped: %q", log)
	}
}

func TestBackendAddressNeverOverwritesAVIP(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	a := web("a", "10.96.0.1", 0)
	a.Ports[0].TargetPort = 80
	a.Backends = []lb.Backend{{Address: addr("10.96.0.2"), Weight: 100}}
	b := web("b", "10.96.0.2", 1)
	n.apply([]lb.Service{a, b})
	n.ok()
	if f := n.frontend("10.96.0.2"); f.Kind != datapath.KindService {
		t.Errorf("VIP's key has kind %d", f.Kind)
	}
	n.apply([]lb.Service{a})
	if f, ok := n.frontends()[lb.Frontend{VIP: addr("10.96.0.2"), Port: 80, Protocol: lb.TCP}]; !ok || f.Kind != datapath.KindBackend {
		t.Errorf("after the VIP went the backend's own address is %+v, %t", f, ok)
	}
}
