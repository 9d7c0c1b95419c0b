package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// endings are the ways to a closing pair.
var endings = map[string][]segment{
	"both FINs":           closed,
	"the client's reset":  append(open[:3:3], segment{client, rstAck, 1, 1, 0, closing}),
	"the backend's reset": append(open[:3:3], segment{backend, rstAck, 1, 1, 0, closing}),
}

// TestAPortIsUsedAgainAtOnce: the SYN of a new connection from the port of one that ended is a new choice,
// without delay, and what the old backend still sends is nothing to it. (With IPVS this is a second's
// wait or a way to a dead backend, kubernetes/kubernetes#81775; Cilium waits for half a minute.)
func TestAPortIsUsedAgainAtOnce(t *testing.T) {
	for family := range families {
		for name, ending := range endings {
			w := newWorld(t, 3)
			old := w.life(family, 40000, initial[0])
			old.run(ending)
			w.change(old.backend, func(b *datapath.Backend) { b.New = false }) // it leaves, but is still there
			again := w.life(family, 40000, initial[1])
			again.run(asked)
			if again.backend.ifindex == old.backend.ifindex {
				t.Fatalf("%s: the new connection went to a backend that takes none", name)
			}
			late := []segment{
				{backend, ack, 1, 1, 100, 0}, {backend, finAck, 1, 1, 0, 0}, {backend, rstAck, 1, 1, 0, 0}, {backend, rst, 1, 0, 0, 0}, {backend, synAck, 0, 1, 0, 0},
			}
			w.stray(old, again, late, opening)
			again.run(open[1:])
			w.stray(old, again, late, established)
			again.run(closed[3:])
			if n := len(w.pairs()); n != 1 {
				t.Errorf("%s: %d pairs", name, n)
			}
			w.assertWhole()
		}
	}
}

// stray sends late segments of the old connection's backend. None may become the VIP's, which is what the
// new connection's client listens to, nor may the pair change.
func (w *world) stray(old, again *life, late []segment, state datapath.FlowState) {
	w.t.Helper()
	before := again.pair()
	for _, s := range late {
		spec := old.spec(s)
		verdict, got := w.fromContainer(old.backend, spec)
		if verdict != drop && got.Src != spec.Src {
			w.t.Errorf("%v of the old backend: verdict %d for %v", s, verdict, got)
		}
	}
	after := again.pair()
	if after.State != state || after.Index != before.Index || after.Packets != before.Packets {
		w.t.Errorf("the new connection is %+v, was %+v", after, before)
	}
}

// TestTheSameBackendAgain: where the new connection goes to the old one's backend, late segments have the
// new one's tuple. Its ends drop them by their numbers; they may not end the pair.
func TestTheSameBackendAgain(t *testing.T) {
	for family := range families {
		for name, ending := range endings {
			w := newWorld(t, 1)
			old := w.life(family, 40000, [2]uint32{1000, 7000})
			old.run(ending)
			again := w.life(family, 40000, [2]uint32{500_000_000, 900_000_000})
			again.run(open)
			for _, s := range []segment{{backend, rst, 1, 0, 0, 0}, {backend, rstAck, 1, 1, 0, 0}, {client, rst, 1, 0, 0, 0}, {client, rstAck, 1, 1, 0, 0}} {
				old.pass(name, s)
				if p := again.pair(); p.State != established {
					t.Fatalf("%s: %+v of the connection before: %+v", name, s, p)
				}
			}
			again.run(closed[3:])
		}
	}
}

// TestASYNBeforeTheBackendsFIN: a port is also used again while the old connection is half closed, by a
// client that forgot it. The SYN is passed on: its backend knows what to answer.
func TestASYNBeforeTheBackendsFIN(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		c := w.life(family, 40000, initial[0])
		c.run(halfClosed)
		c.run([]segment{{client, syn, 90000, 0, 0, established}, {backend, ack, 1, 2, 0, established}, {client, rst, 2, 0, 0, closing}})
		again := w.life(family, 40000, initial[1])
		again.run(closed)
	}
}

// TestTimeouts looks at every state just before and just after it has been idle for what its service says.
func TestTimeouts(t *testing.T) {
	services := [2]lb.Timeouts{
		{TCPSyn: 10 * time.Second, TCPFin: 20 * time.Second, TCPEstablished: 50 * time.Second, UDP: 30 * time.Second, UDPStream: 40 * time.Second},
		{TCPSyn: 70 * time.Second, TCPFin: 60 * time.Second, TCPEstablished: 80 * time.Second, UDP: 90 * time.Second, UDPStream: 100 * time.Second},
	}
	states := []struct {
		name  string
		proto lb.Protocol
		begin func(*flow)
		idle  func(lb.Timeouts) time.Duration
		room  datapath.Room
	}{
		{"opening", lb.TCP, func(f *flow) { f.out(syn, f.seq, 0) }, func(t lb.Timeouts) time.Duration { return t.TCPSyn }, datapath.RoomOpening},
		{"established", lb.TCP, (*flow).establish, func(t lb.Timeouts) time.Duration { return t.TCPEstablished }, datapath.RoomEstablished},
		{"closing", lb.TCP, func(f *flow) { f.establish(); f.close() }, func(t lb.Timeouts) time.Duration { return t.TCPFin }, datapath.RoomClosing},
		{"UDP", lb.UDP, func(f *flow) { f.out(0, 0, 0); f.out(0, 0, 0) }, func(t lb.Timeouts) time.Duration { return t.UDP }, datapath.RoomEstablished},
		{"UDP with answers", lb.UDP, (*flow).establish, func(t lb.Timeouts) time.Duration { return t.UDPStream }, datapath.RoomEstablished},
	}
	for family, name := range families {
		w := newWorld(t, 3)
		w.service(2, vips2, w.containers)
		for i, timeouts := range services {
			w.check(w.d.PutService(uint32(i+1), datapath.Service{Gen: 1, BaseGen: 1, Timeouts: timeouts}))
			for j, s := range states {
				f := w.flow([]netip.Addr{vips[family], vips2[family]}[i], family, s.proto, uint16(40000+j))
				s.begin(f)
				before := w.rooms()[s.room]
				w.age(f.pair().Index, s.idle(timeouts)-time.Second)
				if n := w.sweep(); n != 0 {
					t.Errorf("%s, service %d, %s: ended a second before its time", name, i+1, s.name)
				}
				w.age(f.pair().Index, time.Second+50*time.Millisecond)
				if n := w.sweep(); n != 1 {
					t.Errorf("%s, service %d, %s: not ended after its time", name, i+1, s.name)
				}
				if after := w.rooms()[s.room]; after.Live != before.Live-1 || after.Expired != before.Expired+1 || after.Evicted != 0 {
					t.Errorf("%s, service %d, %s: room %+v, was %+v", name, i+1, s.name, after, before)
				}
			}
		}
		w.assertWhole()
		w.assertEmptyAfterFlush()
	}
}

// TestEitherDirectionKeepsAFlow: one side may be silent for ever.
func TestEitherDirectionKeepsAFlow(t *testing.T) {
	eachInOne(t, func(t *testing.T, w *world, family int, proto lb.Protocol) {
		f := w.flow(vips[family], family, proto, 40000)
		f.establish()
		for _, send := range []func(){
			func() { f.out(ack, f.seq+8, backendISN+9) },
			func() { f.back(ack, backendISN+9, f.seq+8) },
		} {
			for range 3 {
				w.age(f.pair().Index, 3*time.Hour)
				send()
				if n := w.sweep(); n != 0 {
					t.Fatal("ended right after a packet")
				}
			}
		}
	})
}

// sweep sweeps everything and returns how many pairs ended.
func (w *world) sweep() uint32 {
	w.t.Helper()
	r, err := w.d.Sweep(datapath.SweepRequest{})
	w.check(err)
	return r.Removed
}

// TestAFlowThatIdledOut goes on where its tuple says where it went, and else gets a reset: never silence
// (moby/moby#31208, open since 2017: connections hang once IPVS has forgotten them).
func TestAFlowThatIdledOut(t *testing.T) {
	for family := range families {
		w := newWorld(t, 3)
		for _, scheduler := range []lb.Scheduler{lb.Maglev, lb.Random, lb.RoundRobin, lb.LeastConn} {
			w.schedule(family, scheduler)
			for port := uint16(40000); port < 40010; port++ {
				f := w.flow(vips[family], family, lb.TCP, port)
				f.establish()
				where := f.backend.ifindex
				w.age(f.pair().Index, 3*time.Hour)
				if n := w.sweep(); n != 1 {
					t.Fatalf("%d flows ended", n)
				}
				if scheduler != lb.Maglev {
					w.refused(datapath.FromContainer, f.from, packet.Spec{
						Src: f.client, Dst: f.vip, Protocol: lb.TCP, Flags: ack | packet.PSH, Seq: f.seq + 8, Ack: backendISN + 9,
					}, "no-pair")
					continue
				}
				f.out(ack|packet.PSH, f.seq+8, backendISN+9)
				if f.backend.ifindex != where {
					t.Error("went on elsewhere")
				}
				f.back(ack, backendISN+9, f.seq+15)
			}
			w.flush()
		}
		w.assertWhole()
	}
}

// schedule gives the world's service another scheduler.
func (w *world) schedule(family int, s lb.Scheduler) {
	w.t.Helper()
	all, err := w.d.Frontends()
	w.check(err)
	for key, f := range all {
		if f.Kind == datapath.KindService && key.VIP == vips[family] {
			f.Scheduler = s
			w.check(w.d.PutFrontends(map[lb.Frontend]datapath.Frontend{key: f}))
		}
	}
}
