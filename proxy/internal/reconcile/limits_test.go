package reconcile_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
)

// errorsOf returns the errors by service.
func (n *node) errorsOf() map[string]error {
	out := map[string]error{}
	for _, e := range n.rec.Errors() {
		out[e.Service] = e.Err
	}
	return out
}

// wantFull checks that exactly the named services report a full map.
func (n *node) wantFull(names ...string) {
	n.t.Helper()
	got := n.errorsOf()
	for _, name := range names {
		if !errors.Is(got[name], datapath.ErrFull) {
			n.t.Errorf("service %s: %v, want ErrFull", name, got[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		n.t.Errorf("other services failed too: %v", got)
	}
}

func TestFullFrontendsMapKeepsWhatFits(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 1)})
	before := n.table("10.96.0.1")
	n.maps.MaxFrontends = 8 // four each: the VIP and the backend's own address, as such and with a port
	two := []lb.Service{web("a", "10.96.0.1", 1), webOf("b", "10.96.0.2", "203.0.113.1")}
	n.apply(two)
	n.ok()
	n.apply(append(two, webOf("c", "10.96.0.3", "203.0.113.2")))
	n.wantFull("c")
	if len(n.table("10.96.0.2")) == 0 {
		t.Error("b lost its table")
	}
	if diff := cmp.Diff(before, n.table("10.96.0.1")); diff != "" {
		t.Errorf("the service that was there changed:\n%s", diff)
	}
	n.maps.MaxFrontends = 0
	n.now = n.now.Add(time.Hour)
	n.rec.Retry()
	n.ok()
}

// webOf is a service with one backend.
func webOf(name, vip, backend string) lb.Service {
	s := web(name, vip, 0)
	s.Backends = []lb.Backend{{Address: addr(backend), Weight: 100}}
	return s
}

func TestFullArenaKeepsTheOldTable(t *testing.T) {
	n := newNode(t, datapath.Sizes{TableSlots: 256})
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)}) // 256 slots in 64 positions, and a seat list
	n.ok()
	n.apply([]lb.Service{web("a", "10.96.0.1", 2), web("b", "10.96.0.2", 5)}) // 128 more
	n.ok()
	before := n.table("10.96.0.1")
	n.apply([]lb.Service{web("a", "10.96.0.1", 3), web("b", "10.96.0.2", 5)})
	n.wantFull("a")
	if diff := cmp.Diff(before, n.table("10.96.0.1")); diff != "" {
		t.Errorf("without room for a new table the old one should stay:\n%s", diff)
	}
	n.apply([]lb.Service{web("a", "10.96.0.1", 3)})
	n.now = n.now.Add(time.Hour)
	n.rec.Retry()
	n.ok()
	if got := n.table("10.96.0.1"); len(got) != 512 {
		t.Errorf("table has %d slots after b made room, want 512", len(got))
	}
}

func TestFullBackendsMapServesWithTheRest(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxBackends: 4})
	n.apply([]lb.Service{web("a", "10.96.0.1", 5)})
	n.wantFull("a")
	served := map[string]int{}
	for _, b := range n.table("10.96.0.1") {
		served[b]++
	}
	for _, b := range []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"} {
		if served[b] == 0 {
			t.Errorf("backend %s does not serve", b)
		}
	}
}

func TestFullServicesMapIsReported(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxServices: 2})
	n.apply([]lb.Service{web("a", "10.96.0.1", 1), web("b", "10.96.0.2", 1)})
	n.wantFull("b")
	n.apply([]lb.Service{web("a", "10.96.0.1", 1)})
	n.ok()
	n.apply([]lb.Service{web("b", "10.96.0.2", 1)})
	n.now = n.now.Add(time.Hour)
	n.rec.Retry()
	n.ok()
	if got := n.rec.Service("b"); got.ID != 1 {
		t.Errorf("service b has id %d after a made room, want 1", got.ID)
	}
}

func TestLateRetirementSparesWhoGotTheID(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxBackends: 3})
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)})
	n.maps.Fail = func(op string, _ any) error {
		if op == "PutBackends" {
			return errInjected
		}
		return nil
	}
	n.apply([]lb.Service{web("a", "10.96.0.1", 1)})
	n.maps.Fail = nil
	n.now = n.now.Add(time.Hour)
	n.apply([]lb.Service{web("a", "10.96.0.1", 1), webOf("b", "10.96.0.2", "203.0.113.1")})
	n.now = n.now.Add(time.Hour)
	n.rec.Retry()
	n.ok()
	n.record("198.51.100.1")
	n.record("203.0.113.1")
}

func TestReusedServiceIDIsAnotherGeneration(t *testing.T) {
	n := newNode(t, datapath.Sizes{MaxServices: 2})
	n.apply([]lb.Service{web("a", "10.96.0.1", 1)})
	before, _ := n.maps.Service(1)
	n.apply(nil)
	n.now = n.now.Add(time.Hour)
	n.apply([]lb.Service{web("b", "10.96.0.9", 1)})
	n.ok()
	after, _ := n.maps.Service(1)
	if after.Gen != before.Gen+1 || after.BaseGen <= before.BaseGen {
		t.Errorf("record %+v, want generations above %+v", after, before)
	}
}

func TestOneBadServiceDoesNotStopOthers(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	bad := netip.MustParseAddr("10.96.0.2")
	n.maps.Fail = func(op string, key any) error {
		if f, ok := key.(lb.Frontend); ok && op == "PutFrontends" && f.VIP == bad {
			return errInjected
		}
		return nil
	}
	n.apply([]lb.Service{web("a", "10.96.0.1", 2), web("b", "10.96.0.2", 2), web("c", "10.96.0.3", 2)})
	if got := n.errorsOf(); len(got) != 1 || !errors.Is(got["b"], errInjected) {
		t.Errorf("errors %v, want b's alone", got)
	}
	for _, vip := range []string{"10.96.0.1", "10.96.0.3"} {
		if len(n.table(vip)) == 0 {
			t.Errorf("%s has no table", vip)
		}
	}
}

func TestCorruptBaseIsReplacedAndAffinityEnds(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 3)})
	before, _ := n.maps.Service(1)
	path := filepath.Join(n.dir, "tables", "a.v4")
	if err := os.WriteFile(path, []byte("not a base"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.apply([]lb.Service{web("a", "10.96.0.1", 3)})
	n.ok()
	if after, _ := n.maps.Service(1); after.BaseGen != before.BaseGen+1 {
		t.Errorf("base generation %d, want %d", after.BaseGen, before.BaseGen+1)
	}
	if data, _ := os.ReadFile(path); strings.HasPrefix(string(data), "not") {
		t.Error("the corrupt base is still there")
	}
}

func TestEpochRisesWithEachTable(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 3)})
	before := n.frontend("10.96.0.1")
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)})
	after := n.frontend("10.96.0.1")
	if after.Table == before.Table || after.Epoch != before.Epoch+1 {
		t.Errorf("table %v epoch %d, before %v epoch %d", after.Table, after.Epoch, before.Table, before.Epoch)
	}
	n.apply([]lb.Service{web("a", "10.96.0.1", 2)})
	if again := n.frontend("10.96.0.1"); again != after {
		t.Errorf("an equal snapshot changed the frontend to %+v", again)
	}
}

func TestArenaAndIDsDoNotLeak(t *testing.T) {
	n := newNode(t, datapath.Sizes{TableSlots: 4096, MaxBackends: 16, MaxServices: 4})
	for i := range 200 {
		n.now = n.now.Add(time.Minute)
		s := []lb.Service{web("a", "10.96.0.1", 1+i%4)}
		if i%3 == 0 {
			s = append(s, webOf(fmt.Sprintf("b%d", i), "10.96.0.2", fmt.Sprintf("203.0.113.%d", i)))
		}
		n.apply(s)
		if errs := n.rec.Errors(); len(errs) > 0 {
			t.Fatalf("round %d: %v", i, errs[0].Err)
		}
	}
}

// many is the node that the size limits are measured with.
func many(services, backends int) []lb.Service {
	out := make([]lb.Service, services)
	for i := range out {
		s := web(fmt.Sprintf("s%d", i), fmt.Sprintf("10.97.%d.%d", i/250, i%250+1), 0)
		for b := range backends {
			s.Backends = append(s.Backends, lb.Backend{Address: addr(fmt.Sprintf("192.%d.%d.%d", b+1, i/250, i%250+1)), Weight: 100})
		}
		out[i] = s
	}
	return out
}

func TestFiveThousandServicesFitInMemory(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	services := many(5000, 5)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	n.apply(services)
	n.ok()
	n.maps.Log()
	if used := int64(heap()) - int64(before); used > 60<<20 {
		t.Errorf("state, reconciler and its mirror of the maps take %d MiB", used>>20)
	}
	if got := n.rec.Service("s4999"); len(got.Backends) != 5 {
		t.Errorf("the last service has %d backends", len(got.Backends))
	}
	n.maps.Writes()
	n.start()
	n.apply(services)
	if w := n.maps.Writes(); w != 0 {
		t.Errorf("restart wrote %d entries", w)
	}
}

func BenchmarkLoadTenThousandServices(b *testing.B) {
	services := define(many(10000, 10))
	for b.Loop() {
		n := newNode(b, datapath.Sizes{})
		n.store.SetEndpoints(nil)
		n.store.SetServices(services)
		n.rec.Apply(n.store.Snapshot())
	}
}

var _ reconcile.Arena = (*datapath.Arena)(nil)
