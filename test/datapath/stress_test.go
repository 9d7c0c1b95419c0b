package datapath

import (
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/tc-loadbalancer/tclb/bpf"
	"github.com/tc-loadbalancer/tclb/pkg/datapath"
	"github.com/tc-loadbalancer/tclb/pkg/lb"
	"github.com/tc-loadbalancer/tclb/pkg/packet"
)

// openMap opens a map of the world by its pin, past the typed methods.
func (w *world) openMap(name string) *ebpf.Map {
	w.t.Helper()
	if m := w.maps[name]; m != nil {
		return m
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.d.Dir(), "maps", name), nil)
	w.check(err)
	w.t.Cleanup(func() { m.Close() })
	w.maps[name] = m
	return m
}

// indexEntries counts the slots in use and the keys that spilled.
func (w *world) indexEntries() (slots, spilled int) {
	w.t.Helper()
	m := w.openMap(bpf.MapsMapCtIndex)
	for i := range m.MaxEntries() {
		var b bpf.MapsCtBucket
		w.check(m.Lookup(i, &b))
		spilled += int(int32(b.Spilled))
		for _, s := range b.Slot {
			if s != 0 {
				slots++
			}
		}
	}
	return slots, spilled
}

// TestPairsStayWholeUnderConcurrency sends the same few flows from several threads, with SYNs,
// FINs, resets and flushes at random, and then looks for anything left or counted twice.
func TestPairsStayWholeUnderConcurrency(t *testing.T) {
	w := newWorld(t, 3)
	w.parallel(4, func(worker int) {
		r := rand.New(rand.NewPCG(1, uint64(worker)))
		for range 30000 {
			s := packet.Spec{
				Src:      netip.AddrPortFrom(w.client.addr[0], 40000+uint16(r.IntN(64))),
				Dst:      netip.AddrPortFrom(vips[0], servicePort),
				Protocol: lb.TCP, Seq: 1, Ack: backendISN + 1, SrcMAC: w.client.mac,
				Flags: []packet.Flags{packet.SYN, packet.SYN, packet.ACK, packet.FIN | packet.ACK, packet.RST}[r.IntN(5)],
			}
			if r.IntN(4) == 0 {
				s.Protocol = lb.UDP
			}
			frame, err := s.Build()
			if err != nil {
				t.Error(err)
				return
			}
			opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, 256), Context: skbContext{Ifindex: w.client.ifindex}}
			if _, err := w.d.Program(datapath.FromContainer).Run(&opts); err != nil {
				t.Error(err)
				return
			}
			if r.IntN(5000) == 0 {
				if _, err := w.d.Sweep(datapath.SweepRequest{Flush: true}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	pairs := w.pairs()
	seen := map[string]bool{}
	active := 0
	for _, p := range pairs {
		key := p.Client.String() + p.Protocol.String()
		if seen[key] {
			t.Errorf("flow %s has two pairs", key)
		}
		seen[key] = true
		if p.Active {
			active++
		}
	}
	if got := w.active(); got != uint64(active) {
		t.Errorf("%d connections counted, %d pairs are established", got, active)
	}
	if slots, _ := w.indexEntries(); slots != 2*len(pairs) {
		t.Errorf("%d index entries for %d pairs", slots, len(pairs))
	}
	w.assertEmptyAfterFlush()
}

func (w *world) assertEmptyAfterFlush() {
	w.t.Helper()
	if _, err := w.d.Sweep(datapath.SweepRequest{Flush: true}); err != nil {
		w.t.Fatal(err)
	}
	rooms, err := w.d.Rooms()
	w.check(err)
	for name, r := range rooms {
		if r.Live != 0 {
			w.t.Errorf("room %s holds %d after a flush", name, r.Live)
		}
	}
	slots, spilled := w.indexEntries()
	if slots != 0 || spilled != 0 || w.active() != 0 || len(w.pairs()) != 0 {
		w.t.Errorf("after a flush: %d index entries, %d spilled, %d active, %d pairs", slots, spilled, w.active(), len(w.pairs()))
	}
}

// TestHalfOpenFloodEvictsNoEstablishedFlow fills the opening room many times over.
func TestHalfOpenFloodEvictsNoEstablishedFlow(t *testing.T) {
	w := newWorld(t, 3)
	w.flow(vips[0], 0, lb.TCP, 40000).establish()
	w.flow(vips[1], 1, lb.UDP, 40000).establish()
	for i := range 20000 {
		f := w.flow(vips[0], 0, lb.TCP, uint16(1024+i))
		if f.client.Port() != 40000 {
			f.out(packet.SYN, 1, 0)
		}
	}
	rooms, err := w.d.Rooms()
	w.check(err)
	opening, established := rooms[datapath.RoomOpening], rooms[datapath.RoomEstablished]
	if established.Live != 2 || established.Evicted != 0 {
		t.Errorf("established room: %+v", established)
	}
	if opening.Live != opening.Capacity || opening.Evicted != opening.Created-opening.Live-1 {
		t.Errorf("opening room: %+v", opening)
	}
	w.assertEmptyAfterFlush()
}

// TestFullMainRoomEvictsTheIdle fills the main room with flows and goes on; one stays busy.
func TestFullMainRoomEvictsTheIdle(t *testing.T) {
	w := newWorld(t, 3)
	busy := w.flow(vips[0], 0, lb.TCP, 999)
	busy.establish()
	capacity := int(w.d.Sizes().MaxConntrack)
	for i := range capacity + 2000 {
		w.flow(vips[0], 0, lb.UDP, uint16(1024+i)).out(0, 0, 0)
		if i%16 == 0 {
			busy.out(packet.ACK, busy.seq+1, backendISN+1)
		}
	}
	rooms, err := w.d.Rooms()
	w.check(err)
	if r := rooms[datapath.RoomEstablished]; r.Live != r.Capacity || r.Evicted != 2001 {
		t.Errorf("established room: %+v", r)
	}
	for _, p := range w.pairs() {
		if p.Protocol == lb.TCP {
			w.assertEmptyAfterFlush()
			return
		}
	}
	t.Error("the busy flow was evicted")
}
