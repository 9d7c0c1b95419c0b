package datapath

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// parity compares what the programs and the rules in Go make of the same maps, while flows open, are
// answered and refused, and backends come, go and are tried.
type parity struct {
	w       *world
	rng     *rand.Rand
	sources []netip.Addr
	port    uint16
	opening []*parityFlow
	chosen  int // flows that both gave a backend
	refused int // flows that both gave none
	second  int // that both gave another backend
}

type parityFlow struct {
	*flow
	id       uint32
	refusals int
}

// choose sends a flow's SYN and asserts that it goes where the rule says.
func (p *parity) choose(f *parityFlow, avoid uint32) bool {
	w := p.w
	w.t.Helper()
	in := w.records(f.client.Addr(), p.rng)
	in.without(avoid)
	cursor := w.d.Group(scheduledGroup).Cursor
	want, ok := in.pick(f.client, f.vip, avoid)
	verdict, got := w.fromContainer(w.client, packet.Spec{Src: f.client, Dst: f.vip, Protocol: lb.TCP, Flags: packet.SYN, Seq: f.seq})
	if turns := w.d.Group(scheduledGroup).Cursor - cursor; turns != in.turns {
		w.t.Fatalf("%v took %d turns, in Go %d", f.client, turns, in.turns)
	}
	if !ok {
		if got.Flags&packet.RST == 0 {
			w.t.Fatalf("%v: verdict %d for %v, in Go nobody may take it", f.client, verdict, got)
		}
		p.refused++
		return false
	}
	f.backend, f.target = w.containerOf(got), got
	if f.id = backendID(serviceID, w.indexOf(f.backend), 0, lb.TCP); verdict != redirect || f.id != want.ID {
		w.t.Fatalf("%v, avoiding %d: backend %d, in Go %d of %+v", f.client, avoid, f.id, want.ID, in.stat)
	}
	p.chosen++
	return true
}

func (p *parity) begin() {
	p.port++
	f := &parityFlow{flow: p.w.flow(vips[0], 0, lb.TCP, 10000+p.port)}
	f.client = netip.AddrPortFrom(p.sources[p.rng.IntN(len(p.sources))], 10000+p.port)
	if p.choose(f, 0) {
		p.opening = append(p.opening, f)
	}
}

// take returns a flow that is opening, and forgets it.
func (p *parity) take() *parityFlow {
	if len(p.opening) == 0 {
		return nil
	}
	i := p.rng.IntN(len(p.opening))
	f := p.opening[i]
	p.opening = slices.Delete(p.opening, i, i+1)
	return f
}

func (p *parity) answer() {
	f := p.take()
	if f == nil || p.gone(f) {
		return
	}
	f.back(packet.SYN|packet.ACK, backendISN, f.seq+1)
	if p.rng.IntN(3) > 0 {
		f.out(packet.ACK, f.seq+1, backendISN+1)
	}
}

func (p *parity) gone(f *parityFlow) bool {
	b, err := p.w.d.Backend(f.id)
	p.w.check(err)
	return !b.Live
}

// refuse lets the backend refuse a flow, and the flow's next SYN find another one if there is any.
func (p *parity) refuse() {
	f := p.take()
	if f == nil || p.gone(f) {
		return
	}
	in := p.w.records(f.client.Addr(), p.rng)
	want := f.refusals < 2 && in.rule().Another(in, f.id)
	if kept := f.refusal() == drop; kept != want {
		p.w.t.Fatalf("%v was kept: %t, in Go %t", f.client, kept, want)
	}
	if !want {
		return
	}
	f.refusals++
	if p.choose(f, f.id) {
		p.second++
		p.opening = append(p.opening, f)
	}
}

// operate changes backends.
func (p *parity) operate() {
	c := p.w.containers[p.rng.IntN(len(p.w.containers))]
	switch p.rng.IntN(5) {
	case 0:
		p.w.change(c, func(b *datapath.Backend) { b.New = false })
	case 1, 2:
		p.w.change(c, func(b *datapath.Backend) { b.New, b.Live = true, true })
	case 3:
		p.w.change(c, func(b *datapath.Backend) { b.Trial = !b.Trial })
	case 4:
		p.w.change(c, func(b *datapath.Backend) { b.Live = p.rng.IntN(3) > 0 })
	}
}

// settle keeps the age of refusals away from where a moment decides: they are new, or long ago.
func (p *parity) settle() {
	now, second := p.w.clock()
	stats := p.w.openMap(bpf.MapsMapBackendStats)
	for i := range p.w.containers {
		id := backendID(serviceID, i, 0, lb.TCP)
		var s bpf.MapsBackendStat
		p.w.check(stats.Lookup(id, &s))
		if s.Refused == 0 {
			continue
		}
		if s.Refused = now; p.rng.IntN(8) == 0 {
			s.Refused = now - 4*second
		}
		p.w.check(stats.Put(id, &s))
	}
}

func TestTheRulesOfGoChooseAsThePrograms(t *testing.T) {
	for _, s := range []schedule{
		{scheduler: lb.Maglev},
		{scheduler: lb.RoundRobin, weights: []uint32{100, 200, 700}},
		{scheduler: lb.LeastConn, weights: []uint32{100, 200, 700}},
		{scheduler: lb.BoundedLoad, factor: 1.25, weights: []uint32{100, 200, 700}},
	} {
		for _, affinity := range []time.Duration{0, time.Hour} {
			t.Run(fmt.Sprintf("%s/affinity=%t", s.scheduler, affinity > 0), func(t *testing.T) {
				s.affinity = affinity
				w := scheduledWorld(t, 9, s)
				p := &parity{w: w, rng: rand.New(rand.NewPCG(7, uint64(s.scheduler)))}
				for n := range byte(30) {
					p.sources = append(p.sources, w.source(100+n))
				}
				for n := range 1500 {
					if n%100 == 0 {
						p.opening = nil
						w.flush()
					}
					switch p.settle(); p.rng.IntN(10) {
					case 0:
						p.operate()
					case 1, 2:
						p.answer()
					case 3:
						p.refuse()
					default:
						p.begin()
					}
				}
				if p.chosen < 700 || p.second < 10 || p.refused > p.chosen/4 {
					t.Errorf("only %d were chosen, %d a second time, %d refused", p.chosen, p.second, p.refused)
				}
			})
		}
	}
}

// What is drawn cannot be compared flow by flow, but the shares can.
func TestTheRulesOfGoDrawAsThePrograms(t *testing.T) {
	for _, c := range []struct {
		schedule
		measured bool
	}{
		{schedule{scheduler: lb.Random, weights: []uint32{100, 200, 700}}, false},
		{schedule{scheduler: lb.LeastConn, sampled: true, weights: []uint32{100, 200, 700}}, false},
		{schedule{scheduler: lb.Latency, weights: []uint32{100, 200, 700}}, false},
		{schedule{scheduler: lb.Latency, weights: []uint32{100, 200, 700}}, true},
	} {
		t.Run(fmt.Sprintf("%s/measured=%t", c.scheduler, c.measured), func(t *testing.T) {
			w := scheduledWorld(t, 5, c.schedule)
			rng := rand.New(rand.NewPCG(7, 7))
			w.loaded(c.measured)
			const draws = 3000
			var kernel, program [5]int
			for n := range draws {
				f := w.flow(vips[0], 0, lb.TCP, uint16(10000+n))
				f.out(packet.SYN, f.seq, 0)
				kernel[w.indexOf(f.backend)]++
				w.flush()
				w.loaded(c.measured)
			}
			in := w.records(w.client.addr[0], rng)
			for range draws {
				got, ok := in.pick(netip.AddrPortFrom(w.client.addr[0], 1), netip.AddrPortFrom(vips[0], servicePort), 0)
				if !ok {
					t.Fatal("nobody may take it")
				}
				program[(got.ID-backendID(serviceID, 0, 0, lb.TCP))/4]++
			}
			for i := range kernel {
				// Six standard deviations of a difference of two shares that are alike, at most.
				if d := kernel[i] - program[i]; d > 230 || d < -230 {
					t.Errorf("backend %d has %d of %d, in Go %d: %v and %v", i, kernel[i], draws, program[i], kernel, program)
				}
			}
		})
	}
}

// loaded gives the backends loads, and latencies if they are measured.
func (w *world) loaded(measured bool) {
	w.t.Helper()
	now, _ := w.clock()
	stats := w.openMap(bpf.MapsMapBackendStats)
	for i := range w.containers {
		s := bpf.MapsBackendStat{Load: []uint32{3, 1, 8, 0, 2}[i]}
		if measured {
			s.Syn.Ns, s.Syn.Tick = []uint32{100000, 400000, 50000, 900000, 0}[i], now
			s.First.Ns, s.First.Tick = 1000*uint32(i), now
		}
		w.check(stats.Put(backendID(serviceID, i, 0, lb.TCP), &s))
	}
}
