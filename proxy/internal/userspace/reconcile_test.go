package userspace

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/state"
)

// What the reconciler writes is what flows are begun by, and resyncs find nothing to repair.
func TestFlowsFollowTheDesiredState(t *testing.T) {
	m := New(datapath.Sizes{MaxServices: 16, MaxBackends: 64, TableSlots: 8192, MaxConntrack: 1024}, time.Now)
	arena := datapath.NewArena(m.Sizes().TableSlots, reconcile.Grace, time.Now)
	arena.Quiesce = m.Quiesce
	log := slog.New(slog.DiscardHandler)
	store := state.New("node-a", t.TempDir(), datapath.DefaultTimeouts, log)
	store.SetEndpoints(nil)
	rec := reconcile.New(reconcile.Options{Maps: m, Arena: arena, TableDir: t.TempDir(), Now: time.Now, Log: log})
	apply := func(spec lb.Service) {
		t.Helper()
		store.SetServices([]state.Definition{{Spec: spec}})
		rec.Apply(store.Snapshot())
		rec.Resync()
		if s := rec.Stats(); s.Repaired != 0 {
			t.Fatalf("%+v", s)
		}
	}
	for _, s := range schedulers {
		spec := lb.Service{
			Name: "web", VIPs: []netip.Addr{vip}, Scheduler: s, BoundedLoad: 1.25,
			Ports: []lb.Port{{Protocol: lb.TCP, Port: 80, TargetPort: 8080}, {Protocol: lb.UDP, Port: 53, TargetPort: 53}},
		}
		for i := range byte(5) {
			spec.Backends = append(spec.Backends, lb.Backend{Address: netip.AddrFrom4([4]byte{198, 51, 100, i + 1}), Weight: 100})
		}
		apply(spec)
		flows := make(map[*Flow]*ends)
		met := make(map[netip.AddrPort]int)
		for n := range 200 {
			e := new(ends)
			f, err := m.Begin([]lb.Frontend{tcpFront, udpFront}[n%2], clientAt(40000+n), e.gone)
			if err != nil {
				t.Fatalf("%s: %v", s, err)
			}
			f.Connected()
			flows[f] = e
			met[f.Backend()]++
		}
		if len(met) != 10 {
			t.Errorf("%s: met %v", s, met)
		}
		gone := spec.Backends[2].Address
		spec.Backends = append(spec.Backends[:2:2], spec.Backends[3:]...)
		apply(spec)
		for f, e := range flows {
			if told := e.n.Load() == 1; told != (f.Backend().Addr() == gone) {
				t.Errorf("%s: a flow at %s was told to end: %t", s, f.Backend(), told)
			}
			f.End()
		}
		if d, err := m.Recount(); err != nil || d.Active+d.Load+d.Groups != 0 {
			t.Errorf("%s: drift %+v, %v", s, d, err)
		}
	}
}
