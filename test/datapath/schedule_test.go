package datapath

import (
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

func TestTurnsAreExactInEachRound(t *testing.T) {
	w := scheduledWorld(t, 3, schedule{scheduler: lb.RoundRobin, weights: []uint32{100, 200, 700}})
	for round := range uint16(5) {
		if got := w.spread(10, 40000+round*10); !slices.Equal(got, []int{1, 2, 7}) {
			t.Errorf("round %d: %v, want [1 2 7]", round, got)
		}
	}
	first := w.d.Group(scheduledGroup).Cursor
	f, _ := w.begin(40000)
	f.out(packet.SYN, f.seq, 0)
	if got := w.d.Group(scheduledGroup).Cursor; got != first {
		t.Error("a repeated SYN took a turn")
	}
	w.change(w.containers[2], func(b *datapath.Backend) { b.New = false })
	if got := w.spread(20, 41000); got[2] != 0 || got[0] == 0 || got[1] == 0 {
		t.Errorf("with one gone: %v", got)
	}
}

func TestLeastConnIsExact(t *testing.T) {
	w := scheduledWorld(t, 3, schedule{scheduler: lb.LeastConn, weights: []uint32{100, 200, 700}})
	var held [3][]*flow
	for port := range uint16(20) {
		f := w.flow(vips[0], 0, lb.TCP, 40000+port)
		f.establish()
		at := w.indexOf(f.backend)
		held[at] = append(held[at], f)
	}
	w.loads(2, 4, 14)
	for _, f := range held[1] {
		f.close()
	}
	w.loads(2, 0, 14)
	for port := range uint16(4) {
		if _, at := w.begin(41000 + port); at != 1 {
			t.Errorf("flow %d went to container %d, want 1, which has least", port, at)
		}
	}
	w.loads(2, 4, 14)
}

// Without load everybody is equal: then it is weights that count, not the order of the list.
func TestLeastConnTakesTurnsAmongEquals(t *testing.T) {
	w := scheduledWorld(t, 3, schedule{scheduler: lb.LeastConn, weights: []uint32{100, 200, 700}})
	counts := make([]int, 3)
	for port := range uint16(50) {
		f := w.flow(vips[0], 0, lb.TCP, 40000+port)
		f.establish()
		f.close()
		counts[w.indexOf(f.backend)]++
	}
	if !slices.Equal(counts, []int{5, 10, 35}) {
		t.Errorf("one after the other: %v, want [5 10 35]", counts)
	}
	w.loads(0, 0, 0)
}

func TestLeastConnPassesOverWhoMayNotTakeNew(t *testing.T) {
	for _, sampled := range []bool{false, true} {
		w := scheduledWorld(t, 3, schedule{scheduler: lb.LeastConn, sampled: sampled})
		w.change(w.containers[0], func(b *datapath.Backend) { b.New = false })
		if got := w.spread(20, 40000); got[0] != 0 || got[1]+got[2] != 20 {
			t.Errorf("sampled %v: %v", sampled, got)
		}
		for _, c := range w.containers[1:] {
			w.change(c, func(b *datapath.Backend) { b.New = false })
		}
		verdict, _ := w.fromContainer(w.client, packet.Spec{
			Src: w.flow(vips[0], 0, lb.TCP, 50000).client,
			Dst: w.flow(vips[0], 0, lb.TCP, 50000).vip, Protocol: lb.TCP, Flags: packet.SYN, Seq: 1,
		})
		if w.drops("no-backend") != 1 {
			t.Errorf("sampled %v: nobody serves: verdict %d, %d refused", sampled, verdict, w.drops("no-backend"))
		}
	}
}

func TestLeastConnSamplesManyBackends(t *testing.T) {
	w := scheduledWorld(t, 15, schedule{scheduler: lb.LeastConn, sampled: true, weights: []uint32{300}})
	got := w.spread(170, 40000)
	if got[0] < 24 || got[0] > 36 {
		t.Errorf("three times the weight has %d of 170, want about 30: %v", got[0], got)
	}
	if least, most := slices.Min(got[1:]), slices.Max(got[1:]); least < 7 || most > 13 {
		t.Errorf("weights alike have from %d to %d, want about 10: %v", least, most, got)
	}
}

func TestBoundedLoadHasNobodyAboveItsShare(t *testing.T) {
	w := scheduledWorld(t, 4, schedule{scheduler: lb.BoundedLoad, factor: 1.25, weights: []uint32{100, 100, 200, 100}, affinity: time.Hour})
	// One client by affinity: each of its flows begins at the same slot.
	for n := range 100 {
		_, at := w.begin(40000 + uint16(n))
		share := []float64{1, 1, 2, 1}[at] / 5
		if load, most := w.stat(at).Load, ceil(1.25*float64(n+1)*share); load > most {
			t.Fatalf("flow %d: container %d has %d, at most %d allowed", n, at, load, most)
		}
	}
	var loads []uint64
	for i := range w.containers {
		loads = append(loads, w.stat(i).Load)
	}
	if home := w.bound(); loads[home] < ceil(1.25*100*[]float64{1, 1, 2, 1}[home]/5)-1 {
		t.Errorf("the client's own backend, %d, is not full: %v", home, loads)
	}
}

func ceil(x float64) uint64 {
	n := uint64(x)
	if float64(n) < x {
		n++
	}
	return n
}

// Unloaded, bounded-load is maglev: a flow goes where its tuple says.
func TestBoundedLoadWithoutLoadIsConsistent(t *testing.T) {
	w := scheduledWorld(t, 4, schedule{scheduler: lb.Maglev})
	var want []int
	for port := range uint16(60) {
		f := w.flow(vips[0], 0, lb.TCP, 40000+port)
		f.establish()
		f.close()
		want = append(want, w.indexOf(f.backend))
	}
	w.flush()
	w.scheduled(schedule{scheduler: lb.BoundedLoad, factor: 1.25})
	for port := range uint16(60) {
		f := w.flow(vips[0], 0, lb.TCP, 40000+port)
		f.establish()
		f.close()
		if at := w.indexOf(f.backend); at != want[port] {
			t.Errorf("port %d goes to %d, with maglev to %d", 40000+port, at, want[port])
		}
	}
}

// A packet in mid-flow without a pair goes on where its tuple alone says where the flow was.
func TestAPacketInMidFlowFindsItsBackendAgain(t *testing.T) {
	for _, s := range []lb.Scheduler{lb.Maglev, lb.BoundedLoad, lb.Random, lb.RoundRobin, lb.LeastConn, lb.Latency} {
		t.Run(s.String(), func(t *testing.T) {
			w := scheduledWorld(t, 4, schedule{scheduler: s, factor: 1.25})
			f := w.flow(vips[0], 0, lb.TCP, 40000)
			f.establish()
			before := f.backend.ifindex
			w.flush()
			if s == lb.Maglev || s == lb.BoundedLoad {
				f.out(packet.ACK, f.seq+1, backendISN+1)
				if f.backend.ifindex != before {
					t.Error("another backend has it")
				}
				return
			}
			w.reset(f)
		})
	}
}

// reset sends a packet in mid-flow and asserts that it is answered by a reset.
func (w *world) reset(f *flow) {
	w.t.Helper()
	_, got := w.fromContainer(w.client, packet.Spec{Src: f.client, Dst: f.vip, Protocol: lb.TCP, Flags: packet.ACK, Seq: f.seq + 1, Ack: backendISN + 1})
	if got.Flags&packet.RST == 0 || got.Dst != f.client || w.drops("no-pair") != 1 {
		w.t.Errorf("answered by %v, %d counted; want a reset", got, w.drops("no-pair"))
	}
}

func TestBoundedLoadResetsAMidFlowPacketWhoseBackendIsFull(t *testing.T) {
	w := scheduledWorld(t, 4, schedule{scheduler: lb.BoundedLoad, factor: 1.25})
	f := w.flow(vips[0], 0, lb.TCP, 40000)
	f.establish()
	home := w.indexOf(f.backend)
	w.flush()
	others := func(takeNew bool) {
		for i, c := range w.containers {
			if i != home {
				w.change(c, func(b *datapath.Backend) { b.New = takeNew })
			}
		}
	}
	others(false)
	w.spread(4, 50000)
	others(true)
	w.reset(f)
	if got := w.spread(1, 40001)[home] + w.spread(1, 40002)[home] + w.spread(1, 40003)[home]; got != 0 {
		t.Errorf("%d new flows went to a backend without room", got)
	}
}

func TestABackendOnTrialGetsOneFlowAtATime(t *testing.T) {
	for _, s := range []schedule{{scheduler: lb.Maglev}, {scheduler: lb.RoundRobin}, {scheduler: lb.LeastConn}, {scheduler: lb.BoundedLoad, factor: 1.25}} {
		w := scheduledWorld(t, 3, s)
		w.change(w.containers[1], func(b *datapath.Backend) { b.Trial = true })
		if got := w.spread(60, 40000); got[1] != 1 {
			t.Errorf("%s: %d flows went to it at once, want 1: %v", s.scheduler, got[1], got)
		}
		w.flush()
		answered := 0
		for port := uint16(41000); port < 41060; port++ {
			f := w.flow(vips[0], 0, lb.TCP, port)
			f.establish()
			if w.indexOf(f.backend) == 1 {
				answered++
			}
		}
		if answered < 10 {
			t.Errorf("%s: only %d of 60 flows one after the other, each answered", s.scheduler, answered)
		}
	}
}

// Rules that draw or take turns must find who is left, wherever that is in the table.
func TestTheLastOneIsFound(t *testing.T) {
	for _, s := range []lb.Scheduler{lb.Maglev, lb.Random, lb.RoundRobin, lb.LeastConn, lb.BoundedLoad, lb.Latency} {
		w := scheduledWorld(t, 40, schedule{scheduler: s, factor: 1.25})
		for i, c := range w.containers {
			if i != 37 {
				w.change(c, func(b *datapath.Backend) { b.New = false })
			}
		}
		if got := w.spread(20, 40000); got[37] != 20 {
			t.Errorf("%s: %v", s, got)
		}
	}
}

func TestLoadFollowsTheLifeOfFlows(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.RoundRobin})
	f, _ := w.begin(40000)
	w.loads(1)
	f.back(packet.SYN|packet.ACK, backendISN, f.seq+8) // it carried data
	f.out(packet.ACK, f.seq+8, backendISN+1)
	w.loads(1)
	if a := w.stat(0).Active; a != 1 {
		t.Errorf("%d active after the handshake", a)
	}
	w.begin(40001)
	w.loads(2)
	g := w.flow(vips[0], 0, lb.TCP, 40002)
	g.establish()
	w.loads(3)
	g.close()
	w.loads(2)
	w.flush()
	w.loads(0)

	// The next generation of a backend begins without the load of the one before, its group too.
	w.spread(5, 42000)
	w.loads(5)
	w.give(backendID(serviceID, 0, 0, lb.TCP), func(*datapath.Backend) {})
	w.loads(0)
	w.flush()
	w.loads(0)
	w.spread(2, 43000)
	w.d.MoveLoad(backendID(serviceID, 0, 0, lb.TCP), scheduledGroup, scheduledGroup+1)
	if a, b := w.d.Group(scheduledGroup).Load, w.d.Group(scheduledGroup+1).Load; a != 0 || b != 2 {
		t.Errorf("after a move the groups have loads of %d and %d", a, b)
	}
}

func TestAnswersToSYNsAreCounted(t *testing.T) {
	w := scheduledWorld(t, 1, schedule{scheduler: lb.RoundRobin})
	stat := func(syns, answered, rejected uint32) {
		t.Helper()
		if s := w.stat(0); s.SYNs != syns || s.Answered != answered || s.Rejected != rejected {
			t.Errorf("%d SYNs, %d answered, %d rejected; want %d, %d, %d", s.SYNs, s.Answered, s.Rejected, syns, answered, rejected)
		}
	}
	f, _ := w.begin(40000)
	f.out(packet.SYN, f.seq, 0)
	stat(1, 0, 0)
	for range 2 {
		f.back(packet.SYN|packet.ACK, backendISN, f.seq+8)
		stat(1, 1, 0)
	}
	g, _ := w.begin(40001)
	g.back(packet.RST|packet.ACK, 0, g.seq+8)
	stat(2, 1, 1)

	time.Sleep(20 * time.Millisecond)
	h, _ := w.begin(40002)
	w.unreachable(h)
	stat(3, 1, 2)
	u := w.flow(vips[0], 0, lb.TCP, 40003)
	u.establish()
	w.unreachable(u) // says nothing about a connection that stands
	stat(4, 2, 2)
}

// unreachable sends the backend's ICMP error about the flow's last packet.
func (w *world) unreachable(f *flow) {
	w.t.Helper()
	seen, err := f.target.Build()
	w.check(err)
	s := failure(passage{seen: seen}, f.backend.addr[0], 20, packet.ICMP{Type: packet.Unreachable4, Code: packet.CodePort4})
	if verdict, got := w.fromContainer(f.backend, s); verdict != redirect || got.ICMP == nil {
		w.t.Fatalf("verdict %d for %v", verdict, got)
	}
}

// bound returns which container the client is bound to: where its next flow goes that has all room.
func (w *world) bound() int {
	w.t.Helper()
	w.flush()
	_, at := w.begin(60000)
	return at
}
