package userspace

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
	"github.com/tc-loadbalancer/tclb/proxy/internal/api"
	"github.com/tc-loadbalancer/tclb/proxy/internal/metrics"
	"github.com/tc-loadbalancer/tclb/proxy/internal/reconcile"
	"github.com/tc-loadbalancer/tclb/proxy/internal/sweep"
)

// Maps stands wherever the kernel's maps do.
var (
	_ reconcile.Maps   = (*Maps)(nil)
	_ metrics.Datapath = (*Maps)(nil)
	_ api.Datapath     = (*Maps)(nil)
	_ sweep.Table      = (*Maps)(nil)
	_ sweep.Maps       = (*Maps)(nil)
	_ sched.Records    = (*question)(nil)
	_                  = sweep.NewRecounter((*Maps)(nil).Recount, nil)
)

// world is maps with one service, and a clock that moves only when it is told to.
type world struct {
	t    testing.TB
	m    *Maps
	time atomic.Int64
	ids  []uint32
}

const (
	serviceID = 1
	groupID   = 7
)

var (
	vip      = netip.MustParseAddr("192.0.2.10")
	tcpFront = lb.Frontend{VIP: vip, Port: 80, Protocol: lb.TCP}
	udpFront = lb.Frontend{VIP: vip, Port: 53, Protocol: lb.UDP}
)

// plan is what a test says about the service.
type plan struct {
	scheduler lb.Scheduler
	backends  int
	weights   []uint32 // of the first ones; the rest has 100
	factor    float64
	affinity  time.Duration
	allow     []netip.Prefix
	sizes     datapath.Sizes
	sampled   bool
}

func newWorld(t testing.TB, p plan) *world {
	t.Helper()
	w := &world{t: t}
	if p.sizes == (datapath.Sizes{}) {
		p.sizes = datapath.Sizes{MaxServices: 8, MaxBackends: 256, TableSlots: 16384, MaxConntrack: 100000}
	}
	w.m = New(p.sizes, func() time.Time { return time.Unix(1000, w.time.Load()) })
	w.service(p)
	return w
}

// service writes the service, as the reconciler does: backends, table, frontends.
func (w *world) service(p plan) {
	w.t.Helper()
	members := make([]sched.Member, p.backends)
	seats := make([]uint32, p.backends)
	w.ids = seats
	sum := uint32(0)
	for i := range members {
		weight := uint32(100)
		if i < len(p.weights) {
			weight = p.weights[i]
		}
		sum += weight
		members[i] = sched.Member{Key: string(rune('A'+i/26)) + string(rune('a'+i%26)), Weight: weight}
		seats[i] = uint32(10 + i)
		w.put(i, datapath.Backend{
			Address: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), Port: 8080, Protocol: lb.TCP, Gen: 1, Service: serviceID,
			Live: true, New: true, Weight: weight, Group: groupID,
		})
	}
	base, err := sched.New(members)
	w.check(err)
	f := datapath.Frontend{
		Service: serviceID, Scheduler: p.scheduler, Affinity: p.affinity > 0, Allow: len(p.allow) > 0, Group: groupID, Weight: sum,
		Members: datapath.Region{Offset: 15000, Len: uint32(len(seats))},
	}
	var slots []uint32
	switch {
	case p.scheduler == lb.RoundRobin:
		f.Listed = true
		slots, err = base.AppendSequence(nil, nil)
	case p.scheduler == lb.LeastConn && !p.sampled:
		f.Listed, f.Head = true, uint32(len(seats))
		if slots, err = base.AppendServing(nil, nil); err == nil {
			slots, err = base.AppendSequence(slots, nil)
		}
	default:
		slots, err = base.Table(nil)
	}
	w.check(err)
	f.Slots = uint32(len(slots))
	slots, f.Narrow = datapath.Pack(slots, len(seats))
	f.Table = datapath.Region{Offset: 64, Len: uint32(len(slots))}
	w.check(w.m.WriteRegion(f.Table, slots))
	w.check(w.m.WriteRegion(f.Members, seats))
	w.check(w.m.PutService(serviceID, datapath.Service{
		Gen: 1, BaseGen: 1, Timeouts: datapath.DefaultTimeouts, LoadFactor: p.factor, Affinity: p.affinity,
	}))
	for _, prefix := range p.allow {
		w.check(w.m.PutAllow(datapath.AllowKey{Service: serviceID, Prefix: prefix}))
	}
	w.check(w.m.PutFrontends(map[lb.Frontend]datapath.Frontend{tcpFront: f, udpFront: f, {VIP: vip}: {Kind: datapath.KindVIP}}))
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(i int, b datapath.Backend) {
	w.t.Helper()
	w.check(w.m.PutBackend(uint32(10+i), b))
}

// change writes a backend's record anew.
func (w *world) change(i int, f func(*datapath.Backend)) {
	w.t.Helper()
	b := *w.m.BackendAt(w.ids[i])
	f(&b)
	w.put(i, b)
}

func (w *world) pass(d time.Duration) { w.time.Add(int64(d)) }

func clientAt(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), uint16(port))
}

// ends counts calls of gone.
type ends struct{ n atomic.Int32 }

func (e *ends) gone() { e.n.Add(1) }

func (w *world) begin(front lb.Frontend, port int) *Flow {
	w.t.Helper()
	f, err := w.m.Begin(front, clientAt(port), nil)
	w.check(err)
	return f
}

// at returns which backend a flow is at.
func (w *world) at(f *Flow) int { return int(f.Backend().Addr().As4()[3]) }

func (w *world) stat(i int) datapath.BackendStat { return w.m.BackendStat(w.ids[i]) }

// spread begins n flows and returns how many each backend got.
func (w *world) spread(n, from int) []int {
	w.t.Helper()
	counts := make([]int, len(w.ids))
	for i := range n {
		counts[w.at(w.begin(tcpFront, from+i))]++
	}
	return counts
}

// settled fails the test if a recount differs.
func (w *world) settled() {
	w.t.Helper()
	drift, err := w.m.Recount()
	w.check(err)
	if drift.Active+drift.Load+drift.Groups != 0 {
		w.t.Errorf("drift %+v", drift)
	}
}

func (w *world) drops(r datapath.DropReason) uint64 {
	w.t.Helper()
	all, err := w.m.Drops()
	w.check(err)
	return all[r]
}
