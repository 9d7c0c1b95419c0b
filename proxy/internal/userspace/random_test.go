package userspace

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
)

// script does random things to a world: what connections do, and what the reconciler and commands do.
type script struct {
	w     *world
	rng   *rand.Rand
	flows []*Flow
	port  int
}

func (s *script) step() {
	w := s.w
	if len(s.flows) == 0 || s.rng.IntN(3) == 0 {
		s.port++
		front := []lb.Frontend{tcpFront, udpFront}[s.rng.IntN(2)]
		// gone may be called while anybody holds any lock but the flow's own: it asks the maps something.
		if f, err := w.m.Begin(front, clientAt(s.port%60000+1), func() { w.m.Group(groupID) }); err == nil {
			s.flows = append(s.flows, f)
		}
		return
	}
	i := s.rng.IntN(len(s.flows))
	f := s.flows[i]
	switch s.rng.IntN(9) {
	case 0, 1:
		f.Connected()
	case 2:
		if !f.Failed(Failure(s.rng.IntN(2))) && s.rng.IntN(2) == 0 {
			f.End()
		}
	case 3:
		f.Closing()
	case 4:
		f.Sent(1, 100)
		f.Idle()
	case 5:
		f.Answered(1, 1000)
		f.Backend()
	default:
		f.End()
		s.flows = slices.Delete(s.flows, i, i+1)
	}
}

// operate does what the rest of the proxy does.
func (s *script) operate() {
	w, i := s.w, s.rng.IntN(len(s.w.ids))
	switch s.rng.IntN(8) {
	case 0:
		w.change(i, func(b *datapath.Backend) { b.Gen++ })
		w.m.ResetBackendStat(w.ids[i], groupID)
	case 1:
		w.change(i, func(b *datapath.Backend) { b.Live, b.New = !b.Live, !b.Live })
	case 2:
		w.change(i, func(b *datapath.Backend) { b.Group = groupID + uint32(s.rng.IntN(3)) })
		w.m.MoveLoad(w.ids[i], groupID, groupID+1)
	case 3:
		w.change(i, func(b *datapath.Backend) { b.New, b.Trial = b.Live, s.rng.IntN(4) == 0 })
	case 4:
		w.pass(time.Duration(s.rng.IntN(20)) * time.Second)
	case 5:
		_, err := w.m.Sweep(datapath.SweepRequest{Max: 10})
		w.check(err)
	case 6:
		if s.rng.IntN(10) == 0 {
			_, err := w.m.Sweep(datapath.SweepRequest{Flush: true, Service: serviceID})
			w.check(err)
		}
	case 7:
		w.check(w.m.Pairs(func(datapath.Pair) bool { return s.rng.IntN(50) > 0 }))
	}
}

// empty fails the test unless ending every flow leaves no count.
func (w *world) empty(flows []*Flow) {
	w.t.Helper()
	for _, f := range flows {
		f.End()
	}
	for i := range w.ids {
		if s := w.stat(i); s.Load+s.Active != 0 {
			w.t.Errorf("backend %d: %+v", i, s)
		}
	}
	for id := range uint32(3) {
		if g := w.m.Group(groupID + id); g.Load != 0 {
			w.t.Errorf("group %d: %+v", groupID+id, g)
		}
	}
	rooms, err := w.m.Rooms()
	w.check(err)
	for name, r := range rooms {
		if r.Live != 0 {
			w.t.Errorf("room %s: %+v", name, r)
		}
	}
	if n := w.m.rooms.used.Load(); n != 0 {
		w.t.Errorf("%d places are taken", n)
	}
	w.check(w.m.Pairs(func(p datapath.Pair) bool { w.t.Errorf("a flow is left: %+v", p); return true }))
}

func TestRandomLivesAreCountedExactly(t *testing.T) {
	for _, s := range schedulers {
		w := newWorld(t, plan{scheduler: s, factor: 1.25, backends: 6, affinity: time.Duration(s%2) * time.Minute, sizes: datapath.Sizes{
			MaxServices: 8, MaxBackends: 64, TableSlots: 16384, MaxConntrack: 200,
		}})
		run := &script{w: w, rng: rand.New(rand.NewPCG(7, uint64(s)))}
		for n := range 6000 {
			run.step()
			if n%5 == 0 {
				run.operate()
			}
			if n%200 == 0 {
				w.settled()
			}
			if t.Failed() {
				t.Fatalf("%s, step %d", s, n)
			}
		}
		w.settled()
		w.empty(run.flows)
	}
}

func TestManyGoroutinesAreCountedExactly(t *testing.T) {
	for _, s := range []lb.Scheduler{lb.Maglev, lb.LeastConn, lb.BoundedLoad, lb.Latency} {
		w := newWorld(t, plan{scheduler: s, factor: 1.25, backends: 6, affinity: time.Duration(s%2) * time.Minute})
		scripts := make([]*script, 8)
		var wg sync.WaitGroup
		for i := range scripts {
			scripts[i] = &script{w: w, rng: rand.New(rand.NewPCG(uint64(i), uint64(s))), port: i * 5000}
			wg.Go(func() {
				for n := range 1500 {
					scripts[i].step()
					if i == 0 && n%3 == 0 {
						scripts[i].operate()
					}
				}
			})
		}
		wg.Wait()
		w.settled()
		var flows []*Flow
		for _, s := range scripts {
			flows = append(flows, s.flows...)
		}
		w.empty(flows)
	}
}

// A flow is used by two directions, a timer and whoever ends it, all at once.
func TestOneFlowIsSafeForMany(t *testing.T) {
	w := newWorld(t, plan{scheduler: lb.Latency, backends: 3})
	for n := range 100 {
		f, end := w.watched(tcpFront, 1000+n)
		var wg sync.WaitGroup
		for _, act := range []func(){
			f.Connected, f.Closing, f.End, func() { f.Sent(1, 1) }, func() { f.Answered(1, 1) }, func() { f.Failed(Refused) },
			func() { w.change(n%3, func(b *datapath.Backend) { b.Gen++ }) }, func() { f.Backend() }, func() { f.Idle() },
		} {
			wg.Go(act)
		}
		wg.Wait()
		f.End()
		if end.n.Load() > 1 {
			t.Fatalf("told %d times", end.n.Load())
		}
	}
	w.settled()
	w.empty(nil)
}
