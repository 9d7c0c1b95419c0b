package datapath

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
	"github.com/tc-loadbalancer/tclb/pkg/sched"
)

// schedule is what a test says about the world's service: IPv4 and TCP only.
type schedule struct {
	scheduler lb.Scheduler
	weights   []uint32 // of the first containers; the rest has 100
	factor    float64
	affinity  time.Duration
	baseGen   uint32
	sampled   bool // least-conn as if there were many
}

// Where scheduled puts its tables, out of the way of the world's.
const (
	scheduledTable   = 8192
	scheduledMembers = 8192 - 64
	scheduledGroup   = 7
)

func scheduledKey() lb.Frontend {
	return lb.Frontend{VIP: vips[0], Port: servicePort, Protocol: lb.TCP}
}

// scheduled makes the service's IPv4 TCP port work by a scheduler, the way the proxy does. Seats are in
// the order of the containers' addresses, which is that of the containers.
func (w *world) scheduled(s schedule) {
	w.t.Helper()
	members := make([]sched.Member, len(w.containers))
	ids := make([]uint32, len(w.containers))
	var sum uint32
	for i, c := range w.containers {
		weight := uint32(100)
		if i < len(s.weights) {
			weight = s.weights[i]
		}
		members[i] = sched.Member{Key: c.addr[0].String(), Weight: weight}
		sum += weight
		ids[i] = backendID(serviceID, i, 0, lb.TCP)
		w.weigh(i, weight)
	}
	base, err := sched.New(members)
	w.check(err)
	seats := make([]uint32, len(ids))
	for i, m := range members {
		seats[w.seatOf(base, m.Key)] = ids[i]
	}
	f := datapath.Frontend{
		Service: serviceID, Scheduler: s.scheduler, Affinity: s.affinity > 0, Group: scheduledGroup, Weight: sum,
		Members: datapath.Region{Offset: scheduledMembers, Len: uint32(len(seats))},
	}
	table := w.tableOf(base, s, &f)
	f.Slots = uint32(len(table))
	table, f.Narrow = datapath.Pack(table, len(seats))
	f.Table = datapath.Region{Offset: scheduledTable, Len: uint32(len(table))}
	w.check(w.d.WriteRegion(f.Table, table))
	w.check(w.d.WriteRegion(f.Members, seats))
	w.check(w.d.PutService(serviceID, datapath.Service{
		Gen: 1, BaseGen: 1 + s.baseGen, Timeouts: datapath.DefaultTimeouts, LoadFactor: s.factor, Affinity: s.affinity,
	}))
	w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{scheduledKey(): f}))
}

func (w *world) tableOf(base *sched.Base, s schedule, f *datapath.Frontend) []uint32 {
	w.t.Helper()
	var table []uint32
	var err error
	switch {
	case s.scheduler == lb.RoundRobin:
		f.Listed = true
		table, err = base.AppendSequence(nil, nil)
	case s.scheduler == lb.LeastConn && !s.sampled:
		f.Listed, f.Head = true, uint32(len(base.Seats))
		table, err = base.AppendServing(nil, nil)
		w.check(err)
		table, err = base.AppendSequence(table, nil)
	default:
		table, err = base.Table(nil)
	}
	w.check(err)
	return table
}

// weigh writes a backend's weight and group into its record.
func (w *world) weigh(i int, weight uint32) {
	w.t.Helper()
	id := backendID(serviceID, i, 0, lb.TCP)
	b, err := w.d.Backend(id)
	w.check(err)
	b.Weight, b.Group = weight, scheduledGroup
	w.putBackend(id, b)
}

func (w *world) stat(i int) datapath.BackendStat {
	return w.d.BackendStat(backendID(serviceID, i, 0, lb.TCP))
}

// begin sends a SYN of the client's from a port and returns the flow and which container got it.
func (w *world) begin(port uint16) (*flow, int) {
	w.t.Helper()
	f := w.flow(vips[0], 0, lb.TCP, port)
	f.out(packet.SYN, f.seq, 0)
	return f, w.indexOf(f.backend)
}

func (w *world) indexOf(c container) int {
	return slices.IndexFunc(w.containers, func(o container) bool { return o.ifindex == c.ifindex })
}

// spread begins n flows from different ports and returns how many each container got.
func (w *world) spread(n int, from uint16) []int {
	w.t.Helper()
	counts := make([]int, len(w.containers))
	for i := range n {
		_, at := w.begin(from + uint16(i))
		counts[at]++
	}
	return counts
}

// source lets the flows come from another address of the client's.
func (w *world) source(last byte) netip.Addr {
	w.t.Helper()
	a := w.client.addr[0].As4()
	a[3] = last
	addr := netip.AddrFrom4(a)
	w.check(w.d.PutEndpoint(datapath.EndpointKey{Address: addr, Ifindex: w.client.ifindex}, datapath.Endpoint{Owner: 1}))
	return addr
}

// load fails the test unless each container's load, and the group's, is what is expected.
func (w *world) loads(want ...int) {
	w.t.Helper()
	sum := 0
	for i, n := range want {
		sum += n
		if got := w.stat(i).Load; got != uint64(n) {
			w.t.Errorf("container %d has a load of %d, want %d", i, got, n)
		}
	}
	if got := w.d.Group(scheduledGroup).Load; got != int64(sum) {
		w.t.Errorf("the group has a load of %d, want %d", got, sum)
	}
}

// scheduledWorld is a world whose service works by a scheduler.
func scheduledWorld(t *testing.T, backends int, s schedule) *world {
	t.Helper()
	w := newWorld(t, backends)
	w.scheduled(s)
	return w
}
