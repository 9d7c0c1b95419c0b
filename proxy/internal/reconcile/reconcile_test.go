package reconcile_test

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/datapath/dptest"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/registry"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

var update = flag.Bool("update", false, "rewrite golden files")

// node is a proxy without its sources: state, reconciler, maps and a clock.
type node struct {
	t     testing.TB
	maps  *dptest.Maps
	dir   string
	now   time.Time
	store *state.Store
	rec   *reconcile.Reconciler
}

var nodeTimeouts = lb.Timeouts{
	TCPEstablished: 135 * time.Minute, TCPSyn: time.Minute, TCPFin: 30 * time.Second,
	UDP: 30 * time.Second, UDPStream: 3 * time.Minute,
}

func newNode(t testing.TB, sizes datapath.Sizes) *node {
	n := &node{t: t, maps: dptest.New(sizes), dir: t.TempDir(), now: time.Unix(1e9, 0)}
	n.start()
	return n
}

// start is a proxy that starts on the maps and the state directory that are there.
func (n *node) start() {
	n.store = state.New("node-a", n.dir, nodeTimeouts, quiet)
	clock := func() time.Time { return n.now }
	n.rec = reconcile.New(reconcile.Options{
		Maps:     n.maps,
		Arena:    datapath.NewArena(n.maps.Sizes().TableSlots, reconcile.Grace, clock),
		TableDir: filepath.Join(n.dir, "tables"),
		Now:      clock,
		Log:      quiet,
	})
}

var quiet = slog.New(slog.DiscardHandler)

// apply makes the maps equal to services and endpoints.
func (n *node) apply(services []lb.Service, endpoints ...registry.Endpoint) {
	n.t.Helper()
	n.store.SetServices(define(services))
	n.store.SetEndpoints(slices.Clone(endpoints))
	n.rec.Apply(n.store.Snapshot())
	n.rec.Save()
}

// ok fails the test if anything is not in the maps as it should be.
func (n *node) ok() {
	n.t.Helper()
	for _, e := range n.rec.Errors() {
		n.t.Errorf("%s: %v", e.Service, e.Err)
	}
}

func define(services []lb.Service) []state.Definition {
	out := make([]state.Definition, len(services))
	for i, s := range services {
		out[i] = state.Definition{Spec: s, File: s.Name + ".yaml"}
	}
	return out
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// web is a service with one port and backends at 198.51.100.1 and so on.
func web(name, vip string, backends int) lb.Service {
	s := lb.Service{
		Name:    name,
		VIPs:    []netip.Addr{addr(vip)},
		Ports:   []lb.Port{{Name: "http", Protocol: lb.TCP, Port: 80, TargetPort: 8080}},
		Members: true,
	}
	for i := range backends {
		s.Backends = append(s.Backends, lb.Backend{Address: addr(fmt.Sprintf("198.51.100.%d", i+1)), Weight: 100})
	}
	return s
}

func container(id, address string, ifindex uint32, services ...string) registry.Endpoint {
	return registry.Endpoint{
		ID:          registry.EndpointID(id, "eth0"),
		ContainerID: id,
		Ifname:      "eth0",
		HostIfindex: ifindex,
		MAC:         fmt.Sprintf("02:00:00:00:00:%02x", ifindex),
		Addresses:   []netip.Addr{addr(address)},
		Services:    services,
		Created:     time.Unix(int64(ifindex), 0),
	}
}

// table returns the backend address of each slot of a frontend.
func (n *node) table(vip string) []string {
	n.t.Helper()
	frontends, _ := n.maps.Frontends()
	f, ok := frontends[lb.Frontend{VIP: addr(vip), Port: 80, Protocol: lb.TCP}]
	if !ok {
		n.t.Fatalf("no frontend for %s", vip)
	}
	if f.Table.Len == 0 {
		return nil
	}
	slots, err := n.maps.ReadRegion(f.Table)
	if err != nil {
		n.t.Fatal(err)
	}
	seats, err := n.maps.ReadRegion(f.Members)
	if err != nil {
		n.t.Fatal(err)
	}
	backends, _ := n.maps.Backends()
	out := make([]string, len(slots))
	for i, s := range slots {
		out[i] = backends[seats[s]].Address.String()
	}
	return out
}

// record returns the live record at an address.
func (n *node) record(address string) (uint32, datapath.Backend) {
	n.t.Helper()
	backends, _ := n.maps.Backends()
	for id, b := range backends {
		if b.Live && b.Address == addr(address) {
			return id, b
		}
	}
	n.t.Fatalf("no live backend at %s", address)
	return 0, datapath.Backend{}
}

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
	s.Backends[1].State = lb.Unhealthy
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

func (n *node) frontend(vip string) datapath.Frontend {
	frontends, _ := n.maps.Frontends()
	return frontends[lb.Frontend{VIP: addr(vip), Port: 80, Protocol: lb.TCP}]
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

func (n *node) frontends() map[lb.Frontend]datapath.Frontend {
	f, _ := n.maps.Frontends()
	return f
}

func TestResyncRepairsWhatOthersChanged(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	s := web("a", "10.96.0.1", 3)
	s.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	n.apply([]lb.Service{s})
	n.ok()
	key := lb.Frontend{VIP: addr("10.96.0.1"), Port: 80, Protocol: lb.TCP}
	id, _ := n.record("198.51.100.2")
	damage := map[string]func(){
		"frontend deleted":  func() { _ = n.maps.DeleteFrontends([]lb.Frontend{key}) },
		"frontend replaced": func() { _ = n.maps.PutFrontends(map[lb.Frontend]datapath.Frontend{key: {Kind: 2}}) },
		"direct deleted": func() {
			_ = n.maps.DeleteFrontends([]lb.Frontend{{VIP: addr("198.51.100.1"), Port: 8080, Protocol: lb.TCP}})
		},
		"foreign frontend": func() {
			_ = n.maps.PutFrontends(map[lb.Frontend]datapath.Frontend{{VIP: addr("10.1.1.1"), Port: 1, Protocol: lb.TCP}: {Service: 77}})
		},
		"backend replaced": func() { _ = n.maps.PutBackends([]uint32{id}, []datapath.Backend{{Gen: 50, Protocol: lb.TCP}}) },
		"foreign backend": func() {
			_ = n.maps.PutBackends([]uint32{99}, []datapath.Backend{{Gen: 5, Protocol: lb.TCP, Live: true}})
		},
		"table":          func() { _ = n.maps.WriteRegion(n.frontend("10.96.0.1").Table, []uint32{1, 1, 1, 1, 1, 1, 1}) },
		"service record": func() { _ = n.maps.PutService(1, datapath.Service{Gen: 1}) },
		"node timeouts":  func() { _ = n.maps.PutService(0, datapath.Service{}) },
		"allow": func() {
			_ = n.maps.DeleteAllow(datapath.AllowKey{Service: 1, Prefix: s.Allow[0]})
			_ = n.maps.PutAllow(datapath.AllowKey{Service: 1, Prefix: netip.MustParsePrefix("0.0.0.0/0")})
		},
	}
	before := dumpWithoutGens(n.maps)
	for name, damage := range damage {
		t.Run(name, func(t *testing.T) {
			damage()
			n.rec.Resync()
			n.ok()
			if diff := cmp.Diff(before, dumpWithoutGens(n.maps)); diff != "" {
				t.Errorf("not repaired (-want +got):\n%s", diff)
			}
			n.maps.Writes()
			n.rec.Resync()
			if w := n.maps.Writes(); w != 0 {
				t.Errorf("a resync of right maps wrote %d entries", w)
			}
		})
	}
}

// dumpWithoutGens leaves out what may rise with a repair.
func dumpWithoutGens(m *dptest.Maps) []string {
	var out []string
	for _, line := range strings.Split(m.Dump(), "\n") {
		if strings.HasSuffix(line, "retired") {
			continue
		}
		words := strings.Fields(line)
		if len(words) > 0 && words[0] == "backend" {
			words[1] = "ID"
		}
		if len(words) > 0 && words[0] == "frontend" && len(words) > 8 {
			for i, w := range words[8:] { // shares by id
				_, words[8+i], _ = strings.Cut(w, ":")
			}
			slices.Sort(words[8:])
		}
		out = append(out, strings.Join(slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "gen=") }), " "))
	}
	slices.Sort(out)
	return out
}

func TestResyncBelievesThePluginOnce(t *testing.T) {
	n := newNode(t, datapath.Sizes{})
	n.apply([]lb.Service{web("a", "10.96.0.1", 0)}, container("c1", "10.88.0.5", 7, "a"))
	if got, _ := n.maps.RetireEndpoint(7, nil); got != 1 {
		t.Fatalf("retired %d records, want 1", got)
	}
	n.rec.Resync()
	if strings.Contains(n.maps.Dump(), " live") {
		t.Error("what the plugin marked gone was brought back before its endpoint file could go")
	}
	n.rec.Resync()
	if !strings.Contains(n.maps.Dump(), " live") {
		t.Error("the endpoint is still there a minute later, and its backend is not back")
	}
}

var errInjected = errors.New("injected")

func TestFaultsAreRetriedAndHealed(t *testing.T) {
	for _, op := range []string{"PutFrontends", "DeleteFrontends", "PutService", "PutBackends", "WriteRegion", "PutAllow", "DeleteAllow"} {
		t.Run(op, func(t *testing.T) {
			n := newNode(t, datapath.Sizes{})
			first := []lb.Service{web("a", "10.96.0.1", 3), web("b", "10.96.0.2", 2)}
			first[0].Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			second := []lb.Service{web("b", "10.96.0.2", 1), web("c", "10.96.0.3", 4)}
			second[1].Allow = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			n.apply(first)
			n.ok()

			failed := 0
			n.maps.Fail = func(o string, _ any) error {
				if o == op {
					failed++
					return errInjected
				}
				return nil
			}
			n.apply(second)
			if failed == 0 || len(n.rec.Errors()) == 0 {
				t.Fatalf("%d operations failed, %d errors reported", failed, len(n.rec.Errors()))
			}
			if at, ok := n.rec.NextRetry(); !ok || at.Before(n.now) {
				t.Errorf("next retry %v, %t", at, ok)
			}
			n.maps.Fail = nil
			n.now = n.now.Add(time.Hour)
			n.rec.Retry()
			n.ok()

			clean := newNode(t, datapath.Sizes{})
			clean.apply(first)
			clean.apply(second)
			if diff := cmp.Diff(live(clean.maps), live(n.maps)); diff != "" {
				t.Errorf("after the fault is gone the maps differ from those without a fault:\n%s", diff)
			}
		})
	}
}

// live returns what packets can look up, without ids.
func live(m *dptest.Maps) []string {
	var out []string
	for _, line := range dumpWithoutGens(m) {
		if strings.HasPrefix(line, "service") || strings.TrimSpace(line) == "" {
			continue
		}
		words := strings.Fields(line)
		out = append(out, strings.Join(slices.DeleteFunc(words, func(w string) bool { return strings.HasPrefix(w, "service=") }), " "))
	}
	return out
}
