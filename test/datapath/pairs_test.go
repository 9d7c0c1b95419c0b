package datapath

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// table is the connection table as it lies in memory, read past every typed method.
type table struct {
	rooms bpf.MapsCtRooms
	live  map[uint32]rawPair
	index map[uint64]int // pair << 1 | direction -> how often
	free  []uint32
}

// readTable may be called only while no program runs: it empties the free list and fills it again.
func (w *world) readTable() table {
	w.t.Helper()
	out := table{live: map[uint32]rawPair{}, index: map[uint64]int{}}
	w.check(w.openMap(bpf.MapsMapCtShared).Lookup(uint32(0), &out.rooms))
	pairs := w.openMap(bpf.MapsMapCtPairs)
	out.rooms.HighWater = min(out.rooms.HighWater, pairs.MaxEntries())
	for i := range out.rooms.HighWater {
		var p rawPair
		w.check(pairs.Lookup(i, &p))
		if p.Life&1 != 0 {
			out.live[i] = p
		}
	}
	buckets := w.openMap(bpf.MapsMapCtIndex)
	for i := range buckets.MaxEntries() {
		var b bpf.MapsCtBucket
		w.check(buckets.Lookup(i, &b))
		for _, slot := range b.Slot {
			if slot != 0 {
				out.index[slot&0xffffffff]++
			}
		}
	}
	free := w.openMap(bpf.MapsMapCtFree)
	var i uint32
	for free.LookupAndDelete(nil, &i) == nil {
		out.free = append(out.free, i)
	}
	for j := len(out.free) - 1; j >= 0; j-- {
		w.check(free.Put(nil, out.free[j]))
	}
	return out
}

// assertWhole counts everything again that the programs keep count of. A pair is in the index by both
// halves, once each; it is live or free, never both nor neither.
func (w *world) assertWhole() {
	w.t.Helper()
	table := w.readTable()
	w.assertHalves(table)
	seen := map[uint32]bool{}
	for _, i := range table.free {
		if _, live := table.live[i]; live || seen[i] || i >= table.rooms.HighWater {
			w.t.Errorf("pair %d is on the free list: live %v, on it before %v, high water %d", i, live, seen[i], table.rooms.HighWater)
		}
		seen[i] = true
	}
	if n := len(table.free) + len(table.live); n != int(table.rooms.HighWater) {
		w.t.Errorf("%d pairs are free and %d live, of %d ever used", len(table.free), len(table.live), table.rooms.HighWater)
	}
	w.assertCounts(table)
}

func (w *world) assertHalves(table table) {
	w.t.Helper()
	tuples := map[bpf.MapsTuple]uint32{}
	for i, p := range table.live {
		for dir := range p.Half {
			if n := table.index[uint64(i)<<1|uint64(dir)]; n != 1 {
				w.t.Errorf("half %d of pair %d is %d times in the index: %+v", dir, i, n, p)
			}
			if other, twice := tuples[p.Half[dir].Tuple]; twice {
				w.t.Errorf("pairs %d and %d have the same tuple %+v", i, other, p.Half[dir].Tuple)
			}
			tuples[p.Half[dir].Tuple] = i
		}
	}
	if len(table.index) != 2*len(table.live) {
		w.t.Errorf("%d halves in the index, %d pairs are live", len(table.index), len(table.live))
	}
}

func (w *world) assertCounts(table table) {
	w.t.Helper()
	var live [4]int64
	active := map[uint32]uint64{}
	backends, err := w.d.Backends()
	w.check(err)
	for _, p := range table.live {
		live[p.State&3]++
		if datapath.FlowState(p.State) == datapath.FlowEstablished && p.Backend != 0 && backends[p.Backend].Gen == p.BackendGen {
			active[p.Backend]++
		}
	}
	if live[0] != 0 {
		w.t.Errorf("%d live pairs are in no room", live[0])
	}
	for room := 1; room < len(live); room++ {
		if table.rooms.Live[room] != live[room] {
			w.t.Errorf("room %d: %d counted, %d there", room, table.rooms.Live[room], live[room])
		}
	}
	for id, b := range backends {
		if b.Service == 0 {
			continue // retired: its counts are nobody's until it is given anew
		}
		if got := w.d.BackendStat(id).Active; got != active[id] {
			w.t.Errorf("backend %d: %d active counted, %d there", id, got, active[id])
		}
	}
}

// storm sends what clients and backends of two services send in any order, all with numbers that belong
// to one handshake, so that flows come to every state and end in every way.
type storm struct {
	w    *world
	r    *rand.Rand
	vips [2][2]netip.Addr
}

func (s storm) frame() (string, container, packet.Spec) {
	family, proto := s.r.IntN(2), []lb.Protocol{lb.TCP, lb.TCP, lb.TCP, lb.UDP}[s.r.IntN(4)]
	on, program := s.w.client, datapath.FromContainer
	client := netip.AddrPortFrom(on.addr[family], 40000+uint16(s.r.IntN(512)))
	vip := netip.AddrPortFrom(s.vips[s.r.IntN(2)][family], servicePort)
	segments := []struct {
		flags    packet.Flags
		seq, ack uint32
	}{
		{packet.SYN, 1000, 0},
		{packet.ACK, 1001, backendISN + 1},
		{packet.ACK, 1001, backendISN + 1},
		{packet.FIN | packet.ACK, 1001, backendISN + 1},
		{packet.RST | packet.ACK, 1001, backendISN + 1},
	}
	answers := segments[:0:0]
	for _, o := range segments {
		o.seq, o.ack = backendISN+o.seq-1000, 1001
		answers = append(answers, o)
	}
	answers[0].flags |= packet.ACK
	switch s.r.IntN(8) {
	case 0: // a process of this host, as a client
		on, program = s.w.host, datapath.FromHost
		client = netip.AddrPortFrom(outside().addr[family], client.Port())
	case 1, 2, 3: // a backend
		on = s.w.containers[s.r.IntN(len(s.w.containers))]
		client, vip = netip.AddrPortFrom(on.addr[family], targetPort), client
		segments = answers
	}
	o := segments[s.r.IntN(len(segments))]
	return program, on, packet.Spec{Src: client, Dst: vip, Protocol: proto, Flags: o.flags, Seq: o.seq, Ack: o.ack, SrcMAC: on.mac}
}

func (s storm) send() error {
	program, on, spec := s.frame()
	frame, err := spec.Build()
	if err != nil {
		return err
	}
	_, err = s.w.d.Program(program).Run(&ebpf.RunOptions{Data: frame, Context: skbContext{Ifindex: on.ifindex}})
	return err
}

// sometimes does what a proxy does besides: backends go and come back as others, idle flows are
// swept, all flows are flushed.
func (s storm) sometimes(i int) error {
	if i%500 != 0 {
		return nil
	}
	switch s.r.IntN(8) {
	case 0:
		_, err := s.w.d.Sweep(datapath.SweepRequest{Flush: true, Service: uint32(1 + s.r.IntN(2))})
		return err
	case 1:
		id := backendID(uint32(1+s.r.IntN(2)), s.r.IntN(len(s.w.containers)), s.r.IntN(2), lb.TCP)
		b, err := s.w.d.Backend(id)
		if err != nil {
			return err
		}
		b.Live, b.New = !b.Live, !b.New
		return s.w.d.PutBackends([]uint32{id}, []datapath.Backend{b})
	}
	_, err := s.w.d.Sweep(datapath.SweepRequest{Max: 128})
	return err
}

// TestPairsAreMadeAndEndedWhole lets every way that a pair can come or go happen at once on all CPUs, with
// the rooms full, and then recounts. Tables that evict each direction by itself have to look for
// the missing half at every packet.
func TestPairsAreMadeAndEndedWhole(t *testing.T) {
	rounds := 40000
	if testing.Short() {
		rounds = 8000
	}
	w := newSizedWorld(t, 3, datapath.Sizes{MaxServices: 64, MaxBackends: 256, TableSlots: 16384, MaxConntrack: 256})
	w.service(2, vips2, w.containers)
	fast := datapath.DefaultTimeouts
	fast.UDP, fast.UDPStream, fast.TCPSyn = 30*time.Millisecond, 50*time.Millisecond, 40*time.Millisecond
	w.check(w.d.PutService(2, datapath.Service{Gen: 1, BaseGen: 1, Timeouts: fast}))
	for round := range 3 {
		w.parallel(4, func(worker int) {
			s := storm{w: w, r: rand.New(rand.NewPCG(uint64(round), uint64(worker))), vips: [2][2]netip.Addr{vips, vips2}}
			for i := range rounds / 3 {
				if err := s.send(); err != nil {
					t.Error(err)
					return
				}
				if err := s.sometimes(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
		w.assertWhole()
	}
	rooms, err := w.d.Rooms()
	w.check(err)
	t.Logf("%+v", rooms)
	for _, room := range []datapath.Room{datapath.RoomOpening, datapath.RoomEstablished, datapath.RoomClosing} {
		if rooms[room].Created == 0 {
			t.Errorf("no flow ever came to the room %q: the storm is too weak", room)
		}
	}
	if rooms[datapath.RoomEstablished].Evicted == 0 || rooms[datapath.RoomOpening].Evicted == 0 {
		t.Errorf("nothing was evicted: %+v", rooms)
	}
	w.assertEmptyAfterFlush()
}

// rawPair is a pair as programs have it.
type rawPair = bpf.MapsCtPair

// edit changes a pair's record. No program may run.
func (w *world) edit(index uint32, f func(*rawPair)) {
	w.t.Helper()
	pairs := w.openMap(bpf.MapsMapCtPairs)
	var p rawPair
	w.check(pairs.Lookup(index, &p))
	f(&p)
	w.check(pairs.Put(index, &p))
}

// age makes a pair idle for d longer than it is.
func (w *world) age(index uint32, d time.Duration) {
	w.t.Helper()
	ticks := w.ticks(d)
	w.edit(index, func(p *rawPair) {
		for i := range p.Half {
			p.Half[i].Seen -= ticks
		}
	})
}

func (w *world) ticks(d time.Duration) uint32 {
	w.t.Helper()
	var s bpf.MapsNodeSettings
	w.check(w.openMap(bpf.MapsMapSettings).Lookup(uint32(0), &s))
	return uint32(int64(d) * int64(s.Second) / int64(time.Second))
}
